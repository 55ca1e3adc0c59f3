# SPDX-License-Identifier: AGPL-3.0-or-later
"""Times for the writes of several VMs on one host, in which no effect comes before its cause (docs/decisions/0005-groups.md).

A page of shared memory, `/dev/shm/everywhen-NAME`, in which each sink has a word of its own: its newest stamp. It is not in the
state folder, because writing to a page of a file on a disk may wait for that disk. Which page it is, the file `.clock` in the
state folder says; the name is random, and is what points call the clock.

| word | meaning |
|---|---|
| 0 | how many members there are |
| 1 to 240 | who they are: hash of the folder that a member spools to |
| 241 to 480 | the newest stamp of each, in nanoseconds since 1970; 0: none yet |

A word is written by one process and read by others without a lock, as in `counters.py`. It never shrinks, and stays when its
process ends: what comes after a write that was lost must be later than all that was stamped before it.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import stat
import struct
from contextlib import suppress
from pathlib import Path

from everywhen.formats.ids import Randomness
from everywhen.repository.index.process_lock import exclusive

_MEMORY = Path("/dev/shm")  # noqa: S108 - whoever lists it sees the names; a page that is not ours is not used
_NOTE = ".clock"
_MEMBERS = 240
_KEYS, _TIMES = 1, 1 + _MEMBERS
_SIZE = 4096
_NAME = re.compile(r"[0-9a-f]{32}")
_LONGEST_AHEAD_NS = 300 * 10**9
"""A clock that was set back by more than this is believed by those who begin after that: minutes at which time stands still are
worse than an order that is not claimed between them and those who began before."""


class SharedClock:
    """One member's use of the page. For one thread."""

    def __init__(self, name: str, member: str) -> None:
        """Of a clock that this member has joined. Raises OSError, ValueError (it has not)."""
        descriptor = _opened(name)
        try:
            self._words = memoryview(mmap.mmap(descriptor, _SIZE)).cast("Q")
        finally:
            os.close(descriptor)
        keys = self._words[_KEYS : _KEYS + self._words[0]].tolist()
        self._mine = _TIMES + keys.index(_key(member))

    def stamp(self, now_ns: int) -> int:
        """The time of a write that is not answered yet, where the wall clock says `now_ns`: later than all that were stamped
        before it came."""
        newest = max(self._words[_TIMES : _TIMES + self._words[0]])
        stamped = now_ns if now_ns > newest else newest + 1
        self._words[self._mine] = stamped
        return stamped


def join(folder: Path, member: str, now_ns: int, randomness: Randomness) -> str:
    """The name of the clock of the state `folder`, of which `member` is one from now on; a new one where there is none, or
    it is so far ahead of the wall clock that it is not believed. Raises OSError."""
    note = folder / _NOTE
    with exclusive(f"{note}.lock"):
        name = _noted(note)
        if name is None or not _joined(name, member, now_ns):
            old, name = name, randomness(16).hex()
            descriptor = os.open(_path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                try:
                    os.posix_fallocate(descriptor, 0, _SIZE)
                finally:
                    os.close(descriptor)
                _joined(name, member, now_ns)
                _note_down(note, name)
            except BaseException:
                _path(name).unlink()  # nobody has heard of it
                raise
            if old is not None:
                with suppress(OSError):  # there is none, or it is somebody else's
                    _path(old).unlink()  # who has it goes on with it
        return name


def _joined(name: str, member: str, now_ns: int) -> bool:
    """Whether the clock is there, can be believed, and has the member."""
    try:
        descriptor = _opened(name)
    except OSError:
        return False  # the host was started since
    try:
        count, *words = struct.unpack_from(f"={1 + 2 * _MEMBERS}Q", os.pread(descriptor, _SIZE, 0))
        keys, times = words[:count], words[_MEMBERS : _MEMBERS + count]
        if max(times, default=0) - now_ns > _LONGEST_AHEAD_NS:
            return False
        if _key(member) not in keys:
            if count >= _MEMBERS:
                return False
            os.pwrite(descriptor, struct.pack("=Q", _key(member)), 8 * (_KEYS + count))
            os.pwrite(descriptor, struct.pack("=Q", count + 1), 0)
        return True
    finally:
        os.close(descriptor)


def _opened(name: str) -> int:
    """The page. Raises OSError where there is none; whatever else has its name is none."""
    descriptor = os.open(_path(name), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_size == _SIZE:
        return descriptor
    os.close(descriptor)
    raise OSError(errno.ENOENT, "no page of ours", str(_path(name)))


def _noted(note: Path) -> str | None:
    try:
        text = note.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
    return text if _NAME.fullmatch(text) else None


def _note_down(note: Path, name: str) -> None:
    new = note.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, f"{name}\n".encode())
    finally:
        os.close(descriptor)
    new.replace(note)


def _path(name: str) -> Path:
    return _MEMORY / f"everywhen-{name}"


def _key(member: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(member), digest_size=8).digest())
