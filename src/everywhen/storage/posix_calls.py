# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the operating system is asked to do by the file system store, and what its errors mean.

One small class, so that a test can record the order of the calls (I-1: the file is fsynced before it gets its name, the
folder after) or let one of them fail. Here, and nowhere else, systems differ:

- Windows has neither writev nor pread, cannot fsync a folder (NTFS journals its names), and os.rename never replaces.
- FAT and exFAT have no hard links; Linux gives them a name with renameat2(RENAME_NOREPLACE) (renameat2(2), Linux 3.15;
  glibc 2.28, musl 1.2.6).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Sequence

from everywhen.storage.base import (
    AccessDenied,
    NotAnObject,
    ObjectNotFound,
    OutOfSpace,
    ReadOnly,
    StorageError,
    Unavailable,
)

WINDOWS = os.name == "nt"
_MAX_VECTORS = 1024  # IOV_MAX on Linux and the BSDs; more is EINVAL
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
# What link(2) says where there are no hard links: EPERM (FAT, exFAT), the others by FUSE and network file systems.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
_NO_SUCH_CALL = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})

_MEANING: dict[int, tuple[type[StorageError], str]] = {
    errno.ENOENT: (ObjectNotFound, "there is no such object"),
    errno.ENOSPC: (OutOfSpace, "no space is left on the medium; what was stored before is unharmed"),
    errno.EDQUOT: (OutOfSpace, "the quota on the medium is used up; what was stored before is unharmed"),
    errno.EROFS: (ReadOnly, "the medium is mounted read-only"),
    errno.EACCES: (AccessDenied, "the operating system refused this user"),
    errno.EPERM: (AccessDenied, "the operating system refused this user"),
    errno.ELOOP: (NotAnObject, "a symbolic link is where the object should be; it was not followed"),
    errno.EISDIR: (NotAnObject, "a folder is where the object should be"),
    errno.ENOTDIR: (NotAnObject, "a file is where a folder should be"),
    errno.ENXIO: (NotAnObject, "a device or pipe is where the object should be"),
}
_PASSING = (errno.ETIMEDOUT, errno.ESTALE, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOTCONN,
            errno.ECONNRESET, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENODEV)  # fmt: skip
_MEANING |= dict.fromkeys(_PASSING, (Unavailable, "the medium does not answer, try again"))


def storage_error(name: str, error: OSError) -> StorageError:
    """The typed error for what the operating system said about the object `name`."""
    kind, meaning = _MEANING.get(error.errno or 0, (StorageError, "the operating system reported an error"))
    return kind(name, f"{meaning} ({error.strerror or error})")


class PosixCalls:
    """The system calls of the file system store; all raise OSError."""

    def create(self, path: str) -> int:
        """Open a new file for writing; FileExistsError when something of that name is there."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)

    def open_object(self, path: str) -> int:
        """Open a file for reading: no link is followed, no pipe waited for; ELOOP, EISDIR, ENXIO instead."""
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags)
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            os.close(descriptor)
            code = errno.EISDIR if stat.S_ISDIR(mode) else errno.ENXIO
            raise OSError(code, os.strerror(code), path)
        return descriptor

    def read(self, descriptor: int, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file."""
        pieces = []
        while length > 0:
            if WINDOWS:
                os.lseek(descriptor, offset, os.SEEK_SET)
                piece = os.read(descriptor, length)
            else:
                piece = os.pread(descriptor, length, offset)
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, descriptor: int, parts: Sequence[memoryview]) -> None:
        """Write all `parts` (of bytes) in order, without joining them."""
        rest = [part for part in parts if len(part)]
        while rest:
            written = os.write(descriptor, rest[0]) if WINDOWS else os.writev(descriptor, rest[:_MAX_VECTORS])
            done = 0
            while done < len(rest) and written >= len(rest[done]):
                written -= len(rest[done])
                done += 1
            del rest[:done]
            if written:
                rest[0] = rest[0][written:]

    def allocate(self, descriptor: int, size: int) -> None:
        """Take `size` bytes of room; written out where the system or the file system cannot promise it otherwise."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
            return
        piece = memoryview(bytes(4 << 20))
        for at in range(0, size, len(piece)):
            self.write(descriptor, [piece[: size - at]])

    def fsync(self, descriptor: int) -> None:
        """Make a file's content durable."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)

    def fsync_folder(self, path: str) -> None:
        """Make the names in a folder durable."""
        if WINDOWS:
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: str, target: str) -> None:
        """A second name for a file; FileExistsError when something has it."""
        os.link(source, target)

    def rename_new(self, source: str, target: str) -> None:
        """Rename, FileExistsError when something has that name; ENOSYS where the system cannot say so."""
        if WINDOWS:
            os.rename(source, target)
            return
        library = ctypes.CDLL(None, use_errno=True)
        if not hasattr(library, "renameat2"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
        names = os.fsencode(source), os.fsencode(target)
        if library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_NOREPLACE)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), target)

    def replace(self, source: str, target: str) -> None:
        """Rename, replacing a file of that name."""
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        """Remove a file's name."""
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        """Make a folder; FileExistsError when something of that name is there."""
        os.mkdir(path)


def name_exclusively(calls: PosixCalls, temporary: str, target: str) -> bool:
    """Give `temporary` the name `target` unless something has it (FileExistsError); then `temporary` is gone.

    True when the system decided it in one step; False when it could only be looked up first, so that of two writers at
    the same instant both might believe to have won (file systems with neither hard links nor renameat2).
    """
    if not WINDOWS:
        try:
            calls.link(temporary, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            calls.unlink(temporary)
            return True
    try:
        calls.rename_new(temporary, target)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:
            raise
    else:
        return True
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    calls.replace(temporary, target)
    return False
