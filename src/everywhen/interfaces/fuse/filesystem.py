# SPDX-License-Identifier: AGPL-3.0-or-later
"""The file system's operations, as libfuse calls them from several threads: translations to and from `Folders`.

Read only for everybody (`ro`: the kernel answers EROFS by itself), and for the user who mounted it alone, as FUSE has it. What
the kernel keeps of a file is thrown away when the file's time or length is another (`auto_cache`).
Source: libfuse 3, include/fuse.h; why mfusepy: docs/access.md.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from everywhen.formats.layouts.runs import Runs
from everywhen.interfaces.fuse.attributes import attributes
from everywhen.interfaces.fuse.mount_point import SUBTYPE
from everywhen.interfaces.said_once import SaidOnce
from everywhen.services.failures import Failed, Failure, NotFound, WrongUsage
from everywhen.services.translation import as_failure
from everywhen.services.view.folders import Folders
from everywhen.services.view.nodes import Link, OpenFile

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")  # libfuse 2, where it is too, would be taken first

import mfusepy

_THREADS = 16
"""At most so many requests are answered at once; each that waits for a store that is far away takes one."""
_BLOCK = 65536
_NO_NUMBER = 0xFFFFFFFF
"""libfuse's own for what it does not know; with 0 Go's programs take the entry for one that was deleted."""
_LONGEST_NAME = 1024
"""Bytes; NTFS has names of 255 characters, and some of three bytes each."""

Warn = Callable[[str], None]


class Mount:
    """One mounted tree. `say` prints a line, `ready` is called when the file system can be used.

    What is called by name is what there is (`mfusepy.Operations` has them all); libfuse answers ENOSYS for the others.
    """

    use_ns = True

    def __init__(self, folders: Folders, *, url: str, say: Warn, ready: Callable[[], None]) -> None:
        self.was_ready = False
        self._folders = folders
        self._url = url
        self._say = SaidOnce(say)
        self._ready = ready
        self._files: dict[int, OpenFile] = {}
        self._data: dict[int, Runs] = {}
        self._last = 0
        self._lock = threading.Lock()

    def init(self, _path: str) -> None:
        """The kernel has taken the file system."""
        self.was_ready = True
        self._ready()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """Attributes: of an open file without asking what its name means by now."""
        file = self._files.get(fh) if fh else None
        if file is not None:
            return attributes(file.node, path)
        with self._errors(path):
            return attributes(self._folders.look_up(path), path)

    def statfs(self, _path: str) -> dict[str, int]:
        """Of a full file system: Samba takes one without a size for a broken one."""
        return {"f_bsize": _BLOCK, "f_frsize": _BLOCK, "f_blocks": 1, "f_namemax": _LONGEST_NAME}

    def readlink(self, path: str) -> str:
        """Where a link leads."""
        with self._errors(path):
            node = self._folders.look_up(path)
        if not isinstance(node, Link):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return node.target

    def readdir(self, path: str, _fh: int) -> list[tuple[str, dict[str, int], int]]:
        """Names in a folder. Without numbers: to find these, each would have to be looked up."""
        with self._errors(path):
            return [(name, {"st_ino": _NO_NUMBER}, 0) for name in (".", "..", *self._folders.names(path))]

    def listxattr(self, path: str) -> list[str]:
        """Names of extended attributes; the guest's files alone have some."""
        with self._errors(path):
            return list(self._folders.attributes(path))

    def getxattr(self, path: str, name: str, _position: int = 0) -> bytes:
        """One of them."""
        with self._errors(path):
            found = self._folders.attributes(path).get(name)
        if found is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return found

    def open(self, path: str, _flags: int) -> int:
        """A number for an open file."""
        with self._errors(path):
            file = self._folders.open(path)
        with self._lock:
            self._last += 1
            self._files[self._last] = file
            return self._last

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Bytes of an open file."""
        with self._errors(path):
            return self._files[fh].read(offset, size)

    def release(self, _path: str, fh: int) -> int:
        """Nobody uses this open file any more."""
        with self._lock:
            file = self._files.pop(fh)
            self._data.pop(fh, None)
        file.close()
        return 0

    def lseek(self, path: str, offset: int, whence: int, fh: int) -> int:
        """Where the next data or the next hole begins (lseek(2)); the end of the file is a hole."""
        file = self._files[fh]
        data = self._data.get(fh)
        if data is None:
            with self._errors(path):
                data = file.data()
            with self._lock:
                self._data[fh] = data
        index = int(data.ends.searchsorted(offset, side="right"))  # the first data that ends behind it
        start, end = (int(data.starts[index]), int(data.ends[index])) if index < len(data) else (file.node.length,) * 2
        if offset < 0 or offset >= file.node.length or (whence == os.SEEK_DATA and index == len(data)):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        if whence == os.SEEK_DATA:
            return max(offset, start)
        return offset if offset < start else end

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Errors as the kernel wants them: ENOENT for what is not there; else EIO, and a line for whoever started us."""
        try:
            yield
        except Exception as error:
            failure = as_failure(error, url=self._url)
            if failure is None:
                raise  # a fault of the program: libfuse's caller prints it, with where it happened
            if isinstance(failure, NotFound | WrongUsage):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
            self._say(f"{path}: {failure.what}")
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error


class _Fuse(mfusepy.FUSE):  # type: ignore[misc]
    """With the one operation for which mfusepy 3.1 has no translation (fuse.h: off_t (*lseek)(path, off_t, int, info))."""

    def lseek(self, path: bytes, offset: int, whence: int, info: Any) -> int:  # noqa: ANN401
        found: int = self.operations.lseek(path.decode(self.encoding, self.errors), offset, whence, info.contents.fh)
        return found


def serve(mount: Mount, path: str) -> None:
    """Mount on the folder `path`, in the foreground; returns when SIGINT or SIGTERM came, or when it was unmounted.

    libfuse has handlers of its own for these signals while it runs, and detaches the mount at the end. Raises Failed.
    """
    options: dict[str, Any] = {"fsname": SUBTYPE, "subtype": SUBTYPE, "ro": True, "auto_cache": True, "use_ino": True}
    options["max_idle_threads"] = _THREADS  # of its own default libfuse 3.14 says at each start that it is invalid
    if (mfusepy.fuse_version_major, mfusepy.fuse_version_minor) >= (3, 12):
        options["max_threads"] = _THREADS  # earlier ones do not know it
    try:
        _Fuse(mount, path, foreground=True, **options)
    except RuntimeError as error:
        if not mount.was_ready:
            raise _not_mounted(path, error) from error
        # After a signal, too, libfuse says that its loop has ended with an error.


def _not_mounted(path: str, error: Exception) -> Failure:
    return Failed(f"{path} could not be mounted (libfuse: error {error}).", on=path, safe="Nothing was mounted.")
