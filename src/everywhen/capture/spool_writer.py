# SPDX-License-Identifier: AGPL-3.0-or-later
"""The spool's writing end: records in order, grouped, compressed, sealed, appended, made durable (docs/capture.md).

`take` is called by the sink's loop and returns at once; a thread of its own does the rest. A group is closed when it has
1 MiB or 250 ms have passed; `fdatasync` follows before its oldest record is a second old. When the thread cannot keep up, the
spool is full or the disk fails, the state says so, nothing more is taken, and the sink lets go of its taps: a guest never waits
for the spool, but for a moment where it writes faster than the host's disk (`behind`; I-6). Where the spool is the only place
that has a write, who wrote it waits (`await_written`, `await_durable`).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Protocol

from everywhen.capture.counters import (
    CLOSED,
    DURABLE,
    FINE,
    NO_ROOM,
    ROLL,
    ROLLED,
    SPOOL_FAILED,
    SPOOL_FULL,
    SPOOL_SLOW,
    STATE,
    TAKEN,
    TAKEN_BYTES,
    WORK_BYTES,
    WRITTEN_BYTES,
    Counters,
)
from everywhen.capture.shared_clock import SharedClock
from everywhen.capture.spool_room import room
from everywhen.capture.wall_clock import WatchedClock
from everywhen.formats.fields import canonical_json
from everywhen.formats.segment import (
    CLOCK_SET,
    HEADER_SIZE,
    MARK,
    SegmentHeader,
    encode_frame,
    encode_group,
    group_aad,
    group_nonce,
)

_GROUP_BYTES = 1 << 20
"""With 4 MiB a write of 16 KiB cost twice as much (50 µs, not 26): each group's memory came from the kernel anew."""
_LEVEL = -1
"""zstd's. Real files: 35 µs of the processor for 16 KiB, with level 1 42 µs and 6 % less bytes; half zeroes: 7 µs instead of 16
for as many bytes. A journal is kept for hours or days, and its records are packed anew when they are sealed."""
_GROUP_SECONDS = 0.25
_SYNC_SECONDS = 0.5
"""Age of the oldest record that is not durable at which it is time. It is looked at once in 250 ms, and syncing takes a while:
so a record was durable after 0.8 s at most, and after 1.3 s when a whole second was counted from when it was written."""
_FILE_BYTES = 64 << 20
_WAITING_BYTES = 256 << 20
"""Bytes of memory for what is taken and not yet written, at which the spool counts as too slow."""
_RECORD_BYTES = 256
"""About what a record that waits takes in memory beside its data (189 were measured, and lists have room to grow). Zeroes have
none: a guest that writes them while the host's disk hangs would fill the memory, and nothing would count as too slow."""
_GROUP_RECORDS = 65_536
_LONGEST_NS = 0xFFFFFFFF
"""Between the first and the last record of a group: 32 bits in the format."""


Record = tuple[int, int, int, int, bytes]
"""Kind, disk, offset, length, and the data that was written; b"" for zeroes."""


class GroupCipher(Protocol):
    """Seals the groups of one file."""

    def seal(self, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class SpoolPlace:
    """Where the files go, how much room there is (bytes), and how a file is begun: header fields in, header and cipher out."""

    folder: Path
    limit: int
    begin: Callable[[int, int, int], tuple[SegmentHeader, GroupCipher]]
    """(number, first sequence, time in ns) → header and cipher of a new file."""


class SpoolWriter:
    """Owns the newest file of one epoch. `take` from one thread."""

    def __init__(
        self, place: SpoolPlace, counters: Counters, clock: SharedClock | None = None, wall: WatchedClock | None = None
    ) -> None:
        """`clock`: where other VMs' writes must be stamped in one order with these; `wall`: the host's."""
        self._place = place
        self._clock = clock
        self._wall = wall or WatchedClock()
        self._kept = False
        """Whether what is known of the wall clock is in its file."""
        self._counters = counters
        self._next = 0
        self._taken_bytes = self._work_bytes = 0
        self._written = 0
        self._open = _Group(0)
        self._closed: list[_Group] = []
        """Groups that are full and wait: a slow disk must not make one that is too large to be read again."""
        self._last_ns = 0
        self._waiting = 0
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._progress = threading.Condition()
        """Told when records were written, or synced, or never will be."""
        self._sync_wanted = 0
        """The number after the newest record that somebody waits for to be durable."""
        self._ending = self._ended = False
        self._number = 0
        self._spooled = 0
        """Bytes that the spool has at most: files may have been removed since."""
        self._file: _SpoolFile | None = None
        self._unsynced_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="spool")
        self._thread.start()

    def take(self, records: Sequence[Record]) -> int | None:
        """Take records that came together; the first one's number, or None when nothing is taken any more."""
        with self._lock:
            if self._counters.get(STATE) != FINE or self._ending:
                return None
            if self._waiting > _WAITING_BYTES:
                self._counters.put(STATE, SPOOL_SLOW)
                return None
            return self._append(records, self._look_at_clock())

    def _look_at_clock(self) -> int:
        """What time it is; where the clock was set, the journal says so before what comes next."""
        now, step = self._wall.look()
        if step is not None:
            self._kept = False
            text = canonical_json({"mark": CLOCK_SET, **step._asdict()})
            self._append([(MARK, 0, 0, len(text), text)], now)
        return now

    def _append(self, records: Sequence[Record], wall_ns: int) -> int:
        # Recorded time never runs backwards, whatever the clock does.
        now = max(wall_ns, self._last_ns)
        if self._clock is not None:
            now = self._clock.stamp(now)
        self._last_ns = now
        if self._open.records and now - self._open.time_ns > _LONGEST_NS:
            self._close_group()  # the thread hangs in a slow disk, or the clock was set
        group = self._open
        if not group.records:
            group.time_ns, group.began = now, monotonic()
        after, size = now - group.time_ns, 0
        for kind, disk, offset, length, data in records:
            group.records.append((kind, disk, offset, length, after))
            if data:
                group.parts.append(data)
                size += len(data)
            else:
                # Zeroes hold no data, but what is made of them does: some 300 bytes for each block.
                self._work_bytes += length // 256
        group.bytes += size
        self._waiting += size + len(records) * _RECORD_BYTES
        number = self._next
        self._next += len(records)
        self._taken_bytes += size
        self._work_bytes += size
        self._counters.put(TAKEN, self._next)
        self._counters.put(TAKEN_BYTES, self._taken_bytes)
        self._counters.put(WORK_BYTES, self._work_bytes)
        if group.bytes >= _GROUP_BYTES or len(group.records) >= _GROUP_RECORDS:
            self._close_group()
            self._work.set()
        return number

    @property
    def behind(self) -> bool:
        """Whether more than half of the memory is taken: who goes on to write faster loses capture within a second or two."""
        return self._waiting > _WAITING_BYTES // 2

    def await_written(self, number: int) -> None:
        """Wait until all records before `number`, which were taken, are written: they outlive this process. Raises OSError."""
        self._work.set()
        self._await(lambda: self._written >= number)

    def await_durable(self, number: int) -> None:
        """Wait until they are on the disk. Raises OSError."""
        with self._progress:
            self._sync_wanted = max(self._sync_wanted, number)
        self._work.set()
        self._await(lambda: self._counters.get(DURABLE) >= number)

    def _await(self, done: Callable[[], bool]) -> None:
        with self._progress:
            self._progress.wait_for(lambda: done() or self._over)
        if not done():
            full = self._counters.get(STATE) in (SPOOL_FULL, NO_ROOM)
            raise OSError(errno.ENOSPC if full else errno.EIO, "the spool takes no more", str(self._place.folder))

    @property
    def _over(self) -> bool:
        """Whether what waits is never written: then nothing after it is, either."""
        return self._counters.get(STATE) != FINE or self._ended

    def _tell(self) -> None:
        with self._progress:
            self._progress.notify_all()

    def _close_group(self) -> None:
        self._closed.append(self._open)
        self._open = _Group(self._next)

    def close(self) -> None:
        """Write and sync what was taken, and end the thread."""
        with self._lock:
            self._ending = True
        self._work.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._ending:
                self._work.wait(_GROUP_SECONDS)
                self._work.clear()
                # Looked at before: what was taken before it was asked for is in the segment that is closed.
                asked = self._counters.get(ROLL)
                self._watch_clock()
                self._write_groups()
                self._tell()
                self._sync(0 if self._sync_wanted > self._counters.get(DURABLE) else _SYNC_SECONDS)
                self._tell()
                if asked != self._counters.get(ROLLED):
                    self._close_file()
                    self._counters.put(ROLLED, asked)
            self._write_groups()
            self._close_file()
            self._keep_clock()
        except OSError:
            self._counters.put(STATE, SPOOL_FAILED)
        except BaseException:
            self._counters.put(STATE, SPOOL_FAILED)
            raise
        finally:
            if self._file is not None:
                os.close(self._file.descriptor)
                self._file = None
            self._ended = True
            self._tell()

    def _watch_clock(self) -> None:
        """Also where nothing is written."""
        with self._lock:
            if self._counters.get(STATE) == FINE and not self._ending:
                self._look_at_clock()
        self._keep_clock()

    def _keep_clock(self) -> None:
        """Leave word of it for the next one. Here and not when it is looked at, where a guest's write may wait for the disk."""
        with self._lock:
            kept, self._kept = self._kept, True
        if not kept:
            self._wall.keep()

    def _write_groups(self) -> None:
        with self._lock:
            if self._open.records:
                self._close_group()
            groups, self._closed = self._closed, []
        for group in groups:
            # After a group that found no room nothing may follow: there would be a hole in the sequence.
            if self._counters.get(STATE) not in (SPOOL_FULL, NO_ROOM):
                self._write_group(group)

    def _write_group(self, group: _Group) -> None:
        plain = encode_group(group.first, group.time_ns, group.records, group.parts, _LEVEL)
        file = self._file
        if file is None or file.size + len(plain) > _FILE_BYTES:
            file = self._begin_file(group.first, group.time_ns)
        sealed = file.cipher.seal(group_nonce(file.groups), plain, group_aad(file.header, file.groups))
        frame = encode_frame(file.groups, len(sealed))
        size = len(frame) + len(sealed)
        if self._spooled + size > self._place.limit:
            # Whoever consumes the spool removes files: look again before giving up.
            self._spooled = _size(self._place.folder)
            if self._spooled + size > self._place.limit:
                self._counters.put(STATE, SPOOL_FULL)
                return
        if room(self._place.folder) < size:  # a microsecond, for at most 1 MiB
            self._counters.put(STATE, NO_ROOM)
            return
        _write_all(file.descriptor, frame, sealed)
        file.groups += 1
        file.size += size
        self._spooled += size
        self._counters.put(WRITTEN_BYTES, self._counters.get(WRITTEN_BYTES) + size)
        self._written = group.first + len(group.records)
        self._unsynced_since = self._unsynced_since or group.began
        with self._lock:
            self._waiting -= group.bytes + len(group.records) * _RECORD_BYTES

    def _begin_file(self, first: int, time_ns: int) -> _SpoolFile:
        self._close_file()
        header, cipher = self._place.begin(self._number, first, time_ns)
        path = self._place.folder / f"{header.epoch:016x}-{self._number:016x}.segment"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = _SpoolFile(descriptor, header, cipher)
        _write_all(descriptor, header.encode())
        folder = os.open(self._place.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._number += 1
        return self._file

    def _close_file(self) -> None:
        """Make the open file durable and begin no other before there is something to write."""
        if self._file is not None:
            self._sync(0)
            os.close(self._file.descriptor)
            self._file = None
            self._counters.put(CLOSED, self._number)

    def _sync(self, after: float) -> None:
        """Make durable what was written, when the oldest of it was taken `after` seconds ago."""
        if self._file is None or self._unsynced_since is None or monotonic() - self._unsynced_since < after:
            return
        os.fdatasync(self._file.descriptor)
        self._unsynced_since = None
        self._counters.put(DURABLE, self._written)


@dataclass(slots=True)
class _Group:
    """Records that will be written together: (kind, disk, offset, length, ns after `time_ns`), and their data.

    `began`: when the first one was taken, by the clock that never runs backwards.
    """

    first: int
    time_ns: int = 0
    began: float = 0.0
    records: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    bytes: int = 0


@dataclass(slots=True)
class _SpoolFile:
    """The file that is written: how many groups and bytes it has."""

    descriptor: int
    header: SegmentHeader
    cipher: GroupCipher
    groups: int = 0
    size: int = HEADER_SIZE


def _size(folder: Path) -> int:
    """Bytes of a spool's files, while others remove some."""
    size = 0
    for path in folder.glob("*.segment"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def _write_all(descriptor: int, *parts: bytes) -> None:
    views = [memoryview(part) for part in parts]
    while views:
        done = os.writev(descriptor, views)
        while views and done >= len(views[0]):
            done -= len(views.pop(0))
        if views:
            views[0] = views[0][done:]
