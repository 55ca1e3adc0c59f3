# SPDX-License-Identifier: AGPL-3.0-or-later
"""A file descriptor that targets write through: whole writes at an offset, zeroes, typed errors, sticky failure.

After a failed write or fsync nothing more is written and `sync` never succeeds: the kernel may have dropped dirty pages
at the first failed fsync and report success at the second.

Zeroes: Linux zeroes a range of a block device by BLKZEROOUT (linux/fs.h; the device's own command where it has one,
else the kernel writes zeroes) and of a file by fallocate(PUNCH_HOLE). Where these are missing, zeroes are written. On a
device the kernel wants whole logical blocks; whole pages are used, so that a cached page is never zeroed in part.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import sys
import threading

from everywhen.block.target import Buffer, TargetError, os_error

if sys.platform == "linux":
    import fcntl

OPEN_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_BLKZEROOUT = 0x127F
_PUNCH_HOLE_KEEP_SIZE = 0x03
_PAGE = 4096
_ZEROES = memoryview(bytes(1 << 20))
_CANNOT_PUNCH = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY})


class Descriptor:
    """Owns `fd`, open for writing, of the file or block device `path`. Any number of threads may write."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self._is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self._failure: tuple[str, OSError] | None = None
        self._lock = threading.Lock()

    def write(self, offset: int, data: Buffer) -> None:
        """All of `data` at `offset`; no copy is made. Raises TargetError."""
        self._check()
        view = memoryview(data)
        try:
            while view:
                written = self._write_some(view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise self._fail("be written", error) from error

    def zero(self, offset: int, length: int) -> None:
        """Zeroes, by the kernel or the device itself where possible. Raises TargetError."""
        self._check()
        start, end = -(-offset // _PAGE) * _PAGE, (offset + length) // _PAGE * _PAGE
        if start >= end or not self._zero_pages(start, end - start):
            self._write_zeroes(offset, length)
            return
        self._write_zeroes(offset, start - offset)
        self._write_zeroes(end, offset + length - end)

    def truncate(self, size: int) -> None:
        """Set the file's size."""
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise os_error(self.path, f"have {size} bytes", error) from error

    def sync(self) -> None:
        """Make all that was written durable. Raises TargetError, also when an earlier write failed."""
        self._check()
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise self._fail("be made durable", error) from error

    def close(self) -> None:
        """Once or more often."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _fail(self, what: str, error: OSError) -> TargetError:
        self._failure = self._failure or (what, error)
        return os_error(self.path, what, error)

    def _check(self) -> None:
        """What failed first fails all that follows: of several threads any may be the one that is heard."""
        if self._failure is not None:
            what, error = self._failure
            raise os_error(self.path, what, error) from error

    def _write_some(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self.fd, view, offset)
        with self._lock:  # Windows: the position belongs to the descriptor
            os.lseek(self.fd, offset, os.SEEK_SET)
            return os.write(self.fd, view)

    def _write_zeroes(self, offset: int, length: int) -> None:
        for done in range(0, length, len(_ZEROES)):
            self.write(offset + done, _ZEROES[: length - done])

    def _zero_pages(self, offset: int, length: int) -> bool:
        """Let the kernel do it. False: it cannot."""
        if sys.platform != "linux":
            return False
        try:
            if self._is_device:
                fcntl.ioctl(self.fd, _BLKZEROOUT, struct.pack("QQ", offset, length))
            else:
                _punch(self.fd, offset, length)
        except OSError as error:
            if error.errno in _CANNOT_PUNCH:
                return False
            raise self._fail("be zeroed", error) from error
        return True


def _punch(fd: int, offset: int, length: int) -> None:
    """fallocate(2), which the os module lacks. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sync_folder(path: str) -> None:
    """Make names in this folder durable; nothing where folders cannot be opened (Windows). Raises TargetError."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | OPEN_FLAGS)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, fd)
            os.fsync(fd)
    except OSError as error:
        raise os_error(path, "be made durable", error) from error
