# SPDX-License-Identifier: AGPL-3.0-or-later
"""A restored disk as a new image file of any format.

The file grows as `NAME.everywhen-partial` beside its place and gets its name only when it is complete and durable, so a
file called NAME is never half a disk. The computed parts of the format are written first; ranges of the disk follow in
any order from any thread, straight to their final place. Holes are never written.

A partial file is locked (flock) by the process that writes it: one without a lock was left by a crash.

Names are not replaced by accident: NAME is first created empty with O_EXCL, which reserves it atomically on every file
system (hard links and renameat2 are missing on FAT and exFAT), then the partial file is renamed over it. A crash between
the two leaves an empty NAME and the complete partial file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from contextlib import AbstractContextManager, ExitStack

from everywhen.block.target import (
    Buffer,
    Target,
    TargetBusy,
    TargetExists,
    TargetUnsuitable,
    os_error,
)
from everywhen.block.target_descriptor import OPEN_FLAGS, Descriptor, sync_folder
from everywhen.block.target_mark import mark_path
from everywhen.formats.layouts.layout import Layout

if sys.platform == "linux":
    import fcntl

_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})  # some network file systems

PARTIAL_SUFFIX = ".everywhen-partial"

_HOW_TO_REPLACE = "Nothing was written. Overwrite: --overwrite. Write only what differs: --in-place"


class NewFile(Target):
    """An image file that did not exist, or that is replaced whole at the end.

    `lock` is entered before an existing file is replaced and left when the target is closed (QEMU's image locks).
    """

    def __init__(
        self, path: str, layout: Layout, *, overwrite: bool = False, lock: AbstractContextManager[object] | None = None
    ) -> None:
        """Raises TargetExists, TargetBusy, TargetUnsuitable, TargetNotWritable, TargetFull, and what `lock` raises."""
        self.path = os.path.realpath(path)
        self.partial = self.path + PARTIAL_SUFFIX
        self._layout = layout
        self._overwrite = overwrite
        self._closing = ExitStack()
        with ExitStack() as undo:
            undo.callback(self._closing.close)
            existing = _existing(path, self.path, overwrite=overwrite)
            if existing and lock is not None:
                self._closing.enter_context(lock)
            self._file = self._create(overwrite=overwrite)
            undo.callback(self.abandon)
            if existing:
                _take_over_rights(self._file.fd, existing)
            self._file.truncate(layout.file_size)
            for offset, content in layout.metadata():
                self._file.write(offset, content)
            undo.pop_all()

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        end = offset + len(view)
        if offset < 0 or end > self._layout.disk_size:
            raise ValueError(f"{offset} to {end} is outside a disk of {self._layout.disk_size} bytes")
        position = offset
        for start, length, place in self._layout.places(offset, len(view)):
            _check_zero(view[position - offset : start - offset], position)
            self._file.write(place, view[start - offset : start - offset + length])
            position = start + length
        _check_zero(view[position - offset :], position)

    def zero(self, offset: int, length: int) -> None:
        """Nothing to do: a new file has zeroes wherever nothing was written."""

    def finish(self) -> None:
        self._file.sync()
        try:
            if not self._overwrite:
                self._reserve()
            if sys.platform == "win32":
                self._file.close()  # Windows renames no open file; elsewhere the lock is held until the name is gone
            os.replace(self.partial, self.path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(mark_path(self.path))  # of a restore in place that this one makes good
        except OSError as error:
            raise os_error(self.path, "get its name", error) from error
        self._close()
        sync_folder(os.path.dirname(self.path))

    def abandon(self) -> str:
        if not self._open:
            return ""
        try:
            if self._left_complete:
                return f"The restored disk is complete in {self.partial}."
            os.unlink(self.partial)
        except OSError as error:
            return f"{self.partial} is left behind ({error.strerror}); delete it."
        finally:
            self._close()
        return ""

    _open = True
    _left_complete = False

    def _close(self) -> None:
        self._open = False
        self._file.close()
        self._closing.close()

    def _create(self, *, overwrite: bool) -> Descriptor:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | OPEN_FLAGS
        try:
            if overwrite:
                self._remove_stale()
            fd = os.open(self.partial, flags, 0o600)
        except FileExistsError:
            kind = os.stat(self.partial)
            safe = "An unfinished restore left it, or one is running. Nothing was written. Replace it: --overwrite"
            raise TargetExists(self.partial, kind.st_size, kind.st_mtime_ns, safe) from None
        except OSError as error:
            raise os_error(self.partial, "be created", error) from error
        file = Descriptor(self.partial, fd)
        try:
            _lock(fd, self.partial)
        except BaseException:
            file.close()
            raise
        return file

    def _remove_stale(self) -> None:
        """Remove a partial file that no process writes. Raises TargetBusy, OSError."""
        try:
            fd = os.open(self.partial, os.O_RDWR | OPEN_FLAGS)
        except FileNotFoundError:
            return
        try:
            _lock(fd, self.partial)
            os.unlink(self.partial)
        finally:
            os.close(fd)

    def _reserve(self) -> None:
        try:
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o600))
        except FileExistsError:
            self._left_complete = True
            kind = os.lstat(self.path)
            safe = f"It appeared during the restore and was not touched. The restored disk is complete in {self.partial}."
            raise TargetExists(self.path, kind.st_size, kind.st_mtime_ns, safe) from None


def _existing(asked: str, path: str, *, overwrite: bool) -> os.stat_result | None:
    """What is at `path` now. Raises when it must not be replaced, or when there is no folder for it."""
    name = path if os.path.abspath(asked) == path else f"{asked} (really {path})"
    try:
        kind = os.lstat(path)
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(path)):
            raise TargetUnsuitable(f"There is no folder {os.path.dirname(path)}. Nothing was written.") from None
        return None
    except OSError as error:
        raise os_error(name, "be reached", error) from error
    if not stat.S_ISREG(kind.st_mode):
        what = "a folder" if stat.S_ISDIR(kind.st_mode) else "no regular file"
        raise TargetUnsuitable(f"{name} is {what}. Nothing was written. Give the name of a file that is to be made.")
    if not overwrite:
        raise TargetExists(name, kind.st_size, kind.st_mtime_ns, _HOW_TO_REPLACE)
    return kind


def _lock(fd: int, partial: str) -> None:
    """Lock this partial file, and make sure that it still is the one of that name. Raises TargetBusy, OSError."""
    busy = TargetBusy(f"Another restore is writing {partial}. Nothing was written.")
    if sys.platform == "linux":
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
    if not os.path.lexists(partial) or not os.path.samestat(os.fstat(fd), os.lstat(partial)):
        raise busy


def _take_over_rights(fd: int, existing: os.stat_result) -> None:
    """The rights and, where this user may, the owner of the file that will be replaced."""
    if hasattr(os, "fchown"):
        with contextlib.suppress(PermissionError):  # only root may give files away; it is then ours, as any new file
            os.fchown(fd, existing.st_uid, existing.st_gid)
        os.fchmod(fd, stat.S_IMODE(existing.st_mode))


def _check_zero(view: memoryview, offset: int) -> None:
    if view and bytes(view).count(0) != len(view):
        raise ValueError(f"data at {offset} of the disk, which the layout has as not allocated")
