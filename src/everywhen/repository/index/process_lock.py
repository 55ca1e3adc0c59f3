# SPDX-License-Identifier: AGPL-3.0-or-later
"""A lock between processes that the operating system releases when its holder dies.

Used for the files of a cache, and for a capture's folder on its host; nothing in a repository depends on it
(docs/locking.md). `fcntl.flock` on POSIX (it belongs to the open file, so two objects in one process exclude each other
too), `msvcrt.locking` on Windows, on a byte far behind the content, because Windows' locks forbid reading and writing what
they cover.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

_FAR = 1 << 40

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, *, wait: bool) -> bool:
        while True:
            position = os.lseek(descriptor, 0, os.SEEK_CUR)
            os.lseek(descriptor, _FAR, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            except OSError:  # LK_LOCK gives up after ten seconds
                if not wait:
                    return False
            else:
                return True
            finally:
                os.lseek(descriptor, position, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int, *, wait: bool) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True


def try_lock(descriptor: int) -> bool:
    """Lock an open file without waiting; False when somebody else has it. Closing the file releases it."""
    return _lock(descriptor, wait=False)


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Hold the lock file `path` (created when there is none) while the block runs; waits for it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        try:
            _lock(descriptor, wait=True)
            if not _still_there(path, descriptor):  # the folder was deleted while we waited: lock the new file instead
                continue
            yield
            return
        finally:
            os.close(descriptor)


def _still_there(path: str, descriptor: int) -> bool:
    try:
        there, ours = os.stat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)
