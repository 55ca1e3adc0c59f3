# SPDX-License-Identifier: AGPL-3.0-or-later
"""QEMU's image locks (QEMU, block/file-posix.c): is a virtual machine using this image, and keeping it from doing so.

QEMU holds shared OFD locks on single bytes of an image file: on byte 100 + n while it uses permission n, on byte
200 + n while nobody else may use permission n. Before it uses n it looks whether anybody has locked 200 + n; before it
forbids n, whether anybody has locked 100 + n. Taking the same bytes makes both sides see each other. Backing files are
locked too, as read and not to be written. Locks are advisory, and go when the file is closed, also by a crash.

Linux only: without OFD locks nobody is seen and nothing is taken. Network file systems
may not have them; QEMU then goes without as well.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from everywhen.block.image_errors import ImageInUse, not_opened

try:
    import fcntl
except ImportError:  # Windows
    SUPPORTED = False
else:
    SUPPORTED = hasattr(fcntl, "F_OFD_GETLK")

_USES: Final = 100
_FORBIDS: Final = 200
_READ: Final = 0
_WRITE: Final = 1
_WRITE_UNCHANGED: Final = 2
_RESIZE: Final = 3
_ALL: Final = (_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE)
_FLOCK: Final = struct.Struct("@hhqqi4x")
_WITHOUT_LOCKS: Final = frozenset({errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})


@contextmanager
def reading(paths: Sequence[str]) -> Iterator[None]:
    """While this is held, QEMU opens none of these files for writing. Raises ImageInUse when one already is."""
    with ExitStack() as held:
        for path in paths:
            held.enter_context(_held(path, uses=(_READ,), forbids=(_WRITE, _RESIZE)))
        yield


def look(paths: Sequence[str]) -> None:
    """Keep nobody from anything. Raises ImageInUse when QEMU may write to one of these files now, or forbids reading it."""
    for path in paths:
        with _open(path) as fd:
            if any(_locked_by_others(fd, byte) for byte in (_USES + _WRITE, _USES + _RESIZE, _FORBIDS + _READ)):
                raise _in_use(path)


@contextmanager
def writing(path: str) -> Iterator[None]:
    """While this is held, QEMU opens `path` not at all. Raises ImageInUse when somebody has it open, even for reading."""
    with _held(path, uses=_ALL, forbids=_ALL):
        yield


@contextmanager
def _held(path: str, *, uses: Sequence[int], forbids: Sequence[int]) -> Iterator[None]:
    with _open(path) as fd:
        # First lock, then look, like QEMU: of two that come at the same time, at least one sees the other.
        for byte in [_USES + n for n in uses] + [_FORBIDS + n for n in forbids]:
            _lock(fd, byte)
        forbidden = any(_locked_by_others(fd, _FORBIDS + n) for n in uses)
        if forbidden or any(_locked_by_others(fd, _USES + n) for n in forbids):
            raise _in_use(path)
        yield


def _in_use(path: str) -> ImageInUse:
    return ImageInUse(f"{path} is in use by a running virtual machine or another tool of QEMU; shut that down first")


@contextmanager
def _open(path: str) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise not_opened(path, error) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _lockable(fd: int) -> bool:
    """QEMU locks regular files and host devices alike; other things cannot be images."""
    kind = os.fstat(fd).st_mode
    return SUPPORTED and (stat.S_ISREG(kind) or stat.S_ISBLK(kind))


def _lock(fd: int, byte: int) -> None:
    """A shared lock, which never conflicts with QEMU's, all of which are shared."""
    if not _lockable(fd):
        return
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise ImageInUse(f"byte {byte} of the image is locked exclusively by another program") from error
        if error.errno not in _WITHOUT_LOCKS:
            raise


def _locked_by_others(fd: int, byte: int) -> bool:
    """Whether an exclusive lock would be refused. Locks of this open file do not count."""
    if not _lockable(fd):
        return False
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            return False
        raise
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK
