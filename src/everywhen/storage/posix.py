# SPDX-License-Identifier: AGPL-3.0-or-later
"""Objects as files below a folder [I-1, I-9; design 4.9.9].

A put writes `.tmp-…` in the target's folder, fsyncs it, gives it its name, fsyncs the folder. Interruptions leave:

| cut after | left behind | who cleans up |
|---|---|---|
| create, write, fsync | a `.tmp-` file, never listed | `sweep_temporaries` |
| link | the object, whole, and a second name `.tmp-` of it | `sweep_temporaries` |
| rename | the object, whole; after a power cut perhaps not, but it was not acknowledged | nobody needs to |

New folders are made durable up to the root. Another process may have made one and not yet fsynced its parent, so each
process fsyncs the parents of a folder before its first put there.

The root is remembered by device and inode: when a drive is taken out or unmounted, an empty folder appears in its place;
"there is nothing" would be a lie (gc would believe it), and a put would fill the system disk. That is Unavailable.
Links are not followed below the root: each folder on the way is looked at. This protects against accidents, not against
someone who may write to the root and swaps a folder at the right moment: the repository's encryption does.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import stat
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence

from everywhen.storage.base import (
    AlreadyExists,
    Buffer,
    NotAnObject,
    ObjectInfo,
    ObjectNotFound,
    Space,
    Traits,
    Unavailable,
    check_name,
    check_prefix,
    check_range,
)
from everywhen.storage.posix_calls import PosixCalls, name_exclusively, storage_error
from everywhen.storage.posix_files import OpenFiles

TEMPORARY = ".tmp-"
_LEFTOVER = re.compile(re.escape(TEMPORARY) + "[0-9]+-[0-9]+")


class PosixStore:
    """Objects below the folder `root`, which the first put makes if it is missing. Any number of threads, processes."""

    def __init__(self, root: str | os.PathLike[str], *, calls: PosixCalls | None = None) -> None:
        """`calls` are the system calls to use: tests pass their own."""
        self._root = os.path.abspath(os.fspath(root))
        self._calls = calls or PosixCalls()
        self._identity = self._identify()
        self._exclusive_names = True
        self._durable_folders: set[str] = set()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._files = OpenFiles(self._calls)
        weakref.finalize(self, self._files.close)

    @property
    def url(self) -> str:
        """The root as an absolute path."""
        return self._root

    @property
    def traits(self) -> Traits:
        """`put_if_absent` turns false when the file system was found to have no exclusive naming."""
        return Traits(put_if_absent=self._exclusive_names, consistent_list=True, remote=False)

    def get(self, name: str) -> bytes:
        """See ObjectReader."""
        try:
            descriptor = self._open(name)
            try:
                return self._calls.read(descriptor, 0, os.fstat(descriptor).st_size)
            finally:
                self._calls.close(descriptor)
        except OSError as error:
            raise storage_error(name, error) from error

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """See ObjectReader."""
        check_range(offset, length)
        try:
            return self._files.read(name, offset, length, self._open)
        except OSError as error:
            raise storage_error(name, error) from error

    def size(self, name: str) -> int:
        """See ObjectReader."""
        status = self._look(name)
        if status is None:
            self._check_root()
            raise ObjectNotFound(name, "there is no such object")
        return status.st_size

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See ObjectReader. Files with names that no object can have are somebody else's and left out."""
        folder = self._path(check_prefix(prefix)[:-1]) if prefix else self._root
        self._check_root()
        try:
            present = self._check_folders(prefix + "x" if prefix else "")
        except OSError as error:
            raise storage_error(prefix, error) from error
        return self._walk(folder, prefix) if present else iter(())

    def space(self) -> Space:
        """See ObjectReader. Of the file system that has the root, or will have it."""
        folder = self._root
        while not os.path.lexists(folder) and os.path.dirname(folder) != folder:
            folder = os.path.dirname(folder)
        try:
            usage = shutil.disk_usage(folder)
        except OSError as error:
            raise storage_error("", error) from error
        return Space(total=usage.total, free=usage.free)

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        """See ObjectStore."""
        target = self._path(name)
        views = [memoryview(part).cast("B") for part in parts]
        there = self._look(name)
        if there is not None and if_absent:
            raise AlreadyExists(name, "there is an object of that name")
        folder = os.path.dirname(target)
        try:
            self._make_durable_folder(folder)
            temporary = self._write_temporary(folder, lambda descriptor: self._calls.write(descriptor, views))
            try:
                if if_absent:
                    if not name_exclusively(self._calls, temporary, target):
                        self._exclusive_names = False
                else:
                    self._calls.replace(temporary, target)
            except BaseException:
                self._remove_quietly(temporary)
                raise
        except FileExistsError as error:
            raise AlreadyExists(name, "there is an object of that name") from error
        except FileNotFoundError as error:
            raise Unavailable(name, "its folder or temporary file was removed meanwhile, try again") from error
        except OSError as error:
            raise storage_error(name, error) from error
        self._make_names_durable(name, folder)

    def preallocate(self, name: str, size: int) -> None:
        """An object of `size` bytes of no meaning, whose room is really taken, durable on return. Raises OutOfSpace."""
        target = self._path(name)
        folder = os.path.dirname(target)
        try:
            self._make_durable_folder(folder)
            self._calls.replace(
                self._write_temporary(folder, lambda descriptor: self._calls.allocate(descriptor, size)), target
            )
        except OSError as error:
            raise storage_error(name, error) from error
        self._make_names_durable(name, folder)

    def delete(self, name: str) -> None:
        """See ObjectStore."""
        path = self._path(name)
        self._files.forget(name)
        if self._look(name) is None:
            self._check_root()
        try:
            self._calls.unlink(path)
        except FileNotFoundError:
            if not os.path.isdir(os.path.dirname(path)):
                return
        except OSError as error:
            raise storage_error(name, error) from error
        # Also when it was gone already: whoever removed it may not have come to this line.
        self._make_names_durable(name, os.path.dirname(path))

    def beside(self, own: Collection[str]) -> Sequence[str]:
        """Names in the root that are neither among `own` nor temporary files of ours: somebody else's, in order."""
        try:
            return sorted(name for name in os.listdir(self._root) if name not in own and not _LEFTOVER.fullmatch(name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error("", error) from error

    def sweep_temporaries(self, folders: Collection[str], *, now_ns: int, older_than_ns: int) -> int:
        """Remove what interrupted puts left behind in the root and anywhere below these of its folders: temporary files last
        written `older_than_ns` before `now_ns`. What lies elsewhere, or is a link, is somebody else's.

        Both in nanoseconds, `now_ns` since 1970 by the store's clock. An age of an hour spares every put under way.
        Returns the number of files removed.
        """
        removed = 0
        for folder, below, names in os.walk(self._root):  # does not follow links
            if folder == self._root:
                below[:] = [name for name in below if name in folders]
            for path in (os.path.join(folder, name) for name in names if _LEFTOVER.fullmatch(name)):
                try:
                    if now_ns - os.lstat(path).st_mtime_ns >= older_than_ns:
                        self._calls.unlink(path)
                        removed += 1
                except FileNotFoundError:
                    continue  # another sweep, or the put itself, was faster
                except OSError as error:
                    raise storage_error("", error) from error
        return removed

    def close(self) -> None:
        """Close the files kept open for reading; they are opened again when needed."""
        self._files.close()

    def _path(self, name: str) -> str:
        return os.path.join(self._root, *check_name(name).split("/"))

    def _identify(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._root)  # the root itself may be reached through links: it is what the user named
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error("", error) from error
        if not stat.S_ISDIR(status.st_mode):
            raise NotAnObject("", "this is not a folder")
        return status.st_dev, status.st_ino

    def _check_root(self) -> None:
        """Unavailable when the root is no longer the folder it was."""
        identity = self._identify()
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity:
            raise Unavailable("", f"{self._root} is not the folder it was: is its drive still there?")

    def _check_folders(self, name: str) -> bool:
        """Whether the folders that lead to the object are there; NotAnObject for a link or device among them."""
        path = self._root
        for component in name.split("/")[:-1]:
            path = os.path.join(path, component)
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:
                return False
            if stat.S_ISREG(mode):
                return False  # an object, so nothing is below it
            if not stat.S_ISDIR(mode):
                part = os.path.relpath(path, self._root).replace(os.sep, "/")
                raise NotAnObject(part, "a link or device is where the folder should be")
        return os.path.isdir(self._root)

    def _look(self, name: str) -> os.stat_result | None:
        """What is known of the object's file without opening it; None when there is none."""
        path = self._path(name)
        try:
            status = os.lstat(path) if self._check_folders(name) else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(name, error) from error
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise NotAnObject(name, "a folder, link or device is where the object should be")
        return status

    def _open(self, name: str) -> int:
        path = self._path(name)
        try:
            if self._check_folders(name):
                return self._calls.open_object(path)
        except FileNotFoundError:
            pass
        self._check_root()
        raise ObjectNotFound(name, "there is no such object")

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if _can_be_an_object(name):
                        yield from self._listed(entry, name)
        except FileNotFoundError:
            self._check_root()  # a folder that went away while we listed; nothing of ours removes folders
        except OSError as error:
            raise storage_error(prefix, error) from error

    def _listed(self, entry: os.DirEntry[str], name: str) -> Iterator[ObjectInfo]:
        if entry.is_dir(follow_symlinks=False):
            yield from self._walk(entry.path, name + "/")
            return
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return  # deleted since the listing began
        if not stat.S_ISREG(status.st_mode):
            raise NotAnObject(name, "a link or device is where the object should be")
        yield ObjectInfo(name, status.st_size, status.st_mtime_ns)

    def _make_durable_folder(self, folder: str) -> None:
        """Make `folder` and those above it, up to and including the root's parents, and their names durable."""
        with self._lock:
            self._check_root()
            if folder in self._durable_folders and os.path.isdir(folder):
                return
            made = []
            path = folder
            while not os.path.isdir(path):
                made.append(path)
                path = os.path.dirname(path)
            for missing in reversed(made):
                try:
                    self._calls.mkdir(missing)
                except FileExistsError:
                    if not os.path.isdir(missing):
                        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), missing) from None
            self._check_root()
            path = folder
            while path in made or (path != self._root and path.startswith(self._root)):
                path = os.path.dirname(path)
                self._calls.fsync_folder(path)
            self._durable_folders.add(folder)

    def _write_temporary(self, folder: str, fill: Callable[[int], None]) -> str:
        """A new file that `fill` (told its descriptor) gives its content, durable but for its name."""
        temporary = ""
        try:
            while True:
                # The process keeps the number apart from those of others, O_EXCL from leftovers and from other hosts.
                temporary = os.path.join(folder, f"{TEMPORARY}{os.getpid()}-{next(self._numbers)}")
                try:
                    descriptor = self._calls.create(temporary)  # Ctrl-C may come when it is there and has not returned
                    break
                except FileExistsError:
                    continue
            try:
                fill(descriptor)
                self._calls.fsync(descriptor)
            finally:
                self._calls.close(descriptor)
        except BaseException:
            self._remove_quietly(temporary)
            raise
        return temporary

    def _make_names_durable(self, name: str, folder: str) -> None:
        try:
            self._calls.fsync_folder(folder)
        except OSError as error:
            # Not the class that the error would have elsewhere: the change is there, so "nothing was changed" is wrong.
            raise Unavailable(name, f"changed, but perhaps not durably: {error.strerror}; do it again") from error

    def _remove_quietly(self, temporary: str) -> None:
        """After a failure, which is what the caller is to hear of; what cannot be removed is for the sweep."""
        try:
            self._calls.unlink(temporary)
        except OSError:
            return


def _can_be_an_object(name: str) -> bool:
    try:
        return bool(check_name(name))
    except ValueError:
        return False
