# SPDX-License-Identifier: AGPL-3.0-or-later
"""The log of a VHDX image ([MS-VHDX], section 2.3): which writes to the file must be repeated before it is read.

The log is a ring of entries, each a multiple of 4 KiB and at a multiple of 4 KiB in the ring:

| offset | type | name           | meaning                                                              |
|--------|------|----------------|----------------------------------------------------------------------|
| 0      | 4s   | signature      | `loge`                                                               |
| 4      | u32  | checksum       | crc32c of the entry with these four bytes as zeroes                  |
| 8      | u32  | length         | of the entry in bytes                                                |
| 12     | u32  | tail           | where in the ring the oldest entry of this sequence begins           |
| 16     | u64  | sequence       | one more than the entry before                                       |
| 24     | u32  | descriptors    |                                                                      |
| 32     | 16s  | log_guid       | the header's, else the entry is of an older life                     |
| 48     | u64  | flushed_size   | the file is at least that long, else it was cut off                  |
| 56     | u64  | last_size      | the file is made at least that long                                  |

Descriptors of 32 bytes follow: `zero`, u32, u64 length, u64 file offset, u64 sequence; or `desc`, 4s trailing bytes,
8s leading bytes, u64 file offset, u64 sequence, which takes one 4 KiB sector of the entry's end, in order: `data`,
u32 high sequence, 4084 bytes, u32 low sequence. Leading, the 4084 bytes and trailing make the 4 KiB of the file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import Corrupt
from everywhen.formats.images.crc32c import crc32c

SECTOR: Final = 4096
_ENTRY: Final = struct.Struct("<4sIIIQII16sQQ")
_FIRST_DESCRIPTORS: Final = (SECTOR - _ENTRY.size) // 32


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes `offset` to `offset + length` of the file become `data`, or zeroes when it is None."""

    offset: int
    length: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class _Entry:
    at: int
    length: int
    tail: int
    sequence: int
    flushed_size: int
    last_size: int
    patches: tuple[Patch, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """What to do to the file, in order; it was at least `flushed_size` long and becomes at least `last_size`."""

    patches: tuple[Patch, ...]
    flushed_size: int
    last_size: int


def read_log(ring: bytes, log_guid: bytes) -> Replay:
    """The active sequence of a log. Raises Corrupt when there is none: the file can't be made whole then."""
    entries = {at: entry for at in range(0, len(ring), SECTOR) if (entry := _parse_entry(ring, at, log_guid))}
    active: list[_Entry] = []
    for start in entries:
        sequence = _sequence_from(entries, start, len(ring))
        if sequence and (not active or sequence[-1].sequence > active[-1].sequence):
            active = sequence
    if not active:
        raise Corrupt("the log of the VHDX must be replayed and has no valid entries")
    return Replay(
        patches=tuple(patch for entry in active for patch in entry.patches),
        flushed_size=active[-1].flushed_size,
        last_size=active[-1].last_size,
    )


def _sequence_from(entries: dict[int, _Entry], start: int, ring_size: int) -> list[_Entry]:
    """Consecutive entries from `start`, if the tail of the last of them is one of them; from that one on then."""
    run: list[_Entry] = []
    at, room = start, ring_size
    while (entry := entries.get(at)) and entry.length <= room:
        if run and entry.sequence != run[-1].sequence + 1:
            break
        run.append(entry)
        room -= entry.length
        at = (at + entry.length) % ring_size
    first = next((i for i, entry in enumerate(run) if entry.at == run[-1].tail), None)
    return [] if first is None else run[first:]


def _parse_entry(ring: bytes, at: int, log_guid: bytes) -> _Entry | None:
    """The entry at `at` of the ring, or None when nothing valid of this log begins there."""
    if ring[at : at + 4] != b"loge" or len(ring) - at < _ENTRY.size:
        return None
    _, checksum, length, tail, sequence, count, _, guid, flushed, last = _ENTRY.unpack_from(ring, at)
    if guid != log_guid or length % SECTOR or not SECTOR <= length <= len(ring) or not sequence:
        return None
    raw = ring[at : at + length]
    raw += ring[: length - len(raw)]
    if crc32c(raw[:4] + bytes(4) + raw[8:]) != checksum:
        return None
    if count > length // 32:
        raise Corrupt("a log entry of the VHDX has an impossible number of descriptors")
    return _Entry(at, length, tail, sequence, flushed, last, _parse_descriptors(raw, count, sequence))


def _parse_descriptors(raw: bytes, count: int, sequence: int) -> tuple[Patch, ...]:
    patches: list[Patch] = []
    beyond = max(0, count - _FIRST_DESCRIPTORS)
    data_at = SECTOR * (1 + -(-beyond * 32 // SECTOR))
    for i in range(count):
        kind, tail, head, offset, number = struct.unpack_from("<4s4s8sQQ", raw, _ENTRY.size + 32 * i)
        if number != sequence or offset % SECTOR or offset >= 1 << 62:
            raise Corrupt("a descriptor in the VHDX's log does not belong to its entry")
        if kind == b"zero":
            (length,) = struct.unpack("<Q", head)
            if length % SECTOR or length >= 1 << 62:
                raise Corrupt("a descriptor in the VHDX's log has an impossible length")
            patches.append(Patch(offset, length, None))
        elif kind == b"desc":
            sector = raw[data_at : data_at + SECTOR]
            data_at += SECTOR
            if len(sector) < SECTOR or sector[:4] != b"data":
                raise Corrupt("a data sector in the VHDX's log is missing")
            high, low = struct.unpack("<I", sector[4:8])[0], struct.unpack("<I", sector[4092:])[0]
            if high << 32 | low != sequence:
                raise Corrupt("a data sector in the VHDX's log does not belong to its entry")
            patches.append(Patch(offset, SECTOR, head + sector[8:4092] + tail))
        else:
            raise Corrupt("a descriptor in the VHDX's log is of a kind that is not known")
    return tuple(patches)
