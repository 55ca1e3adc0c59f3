# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which part of a VHDX log counts: wrapped rings, torn ends, older lives, tails."""

from __future__ import annotations

import struct

import pytest

from everywhen.formats.errors import Corrupt
from everywhen.formats.images.crc32c import crc32c
from everywhen.formats.images.vhdx_log import SECTOR, read_log

GUID = bytes(range(16))
RING = 16 * SECTOR


def entry(sequence: int, tail: int, writes: list[tuple[int, bytes | int]], guid: bytes = GUID) -> bytes:
    """A log entry: 4 KiB of content for a file offset, or a number of zero bytes."""
    descriptors, sectors = b"", b""
    for offset, what in writes:
        if isinstance(what, int):
            descriptors += struct.pack("<4sIQQQ", b"zero", 0, what, offset, sequence)
        else:
            descriptors += struct.pack("<4s4s8sQQ", b"desc", what[-4:], what[:8], offset, sequence)
            sectors += struct.pack("<4sI4084sI", b"data", sequence >> 32, what[8:-4], sequence & 0xFFFFFFFF)
    first = -(-(64 + len(descriptors)) // SECTOR) * SECTOR
    length = first + len(sectors)
    head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, length, tail, sequence, len(writes), 0, guid, 3 << 20, 5 << 20)
    raw = bytearray((head + descriptors).ljust(first, b"\0") + sectors)
    raw[4:8] = struct.pack("<I", crc32c(bytes(raw)))
    return bytes(raw)


def ring_of(*placed: tuple[int, bytes]) -> bytes:
    """A ring with entries at their places; what runs over the end goes on at the beginning."""
    ring = bytearray(RING)
    for at, raw in placed:
        for i in range(0, len(raw), SECTOR):
            where = (at + i) % RING
            ring[where : where + SECTOR] = raw[i : i + SECTOR]
    return bytes(ring)


def page(fill: int) -> bytes:
    return bytes([fill]) * 8 + b"middle".ljust(4084, bytes([fill + 1])) + bytes([fill + 2]) * 4


def test_one_entry() -> None:
    log = read_log(ring_of((SECTOR, entry(7, SECTOR, [(1 << 20, page(1)), (2 << 20, 8192)]))), GUID)
    assert [(patch.offset, patch.length, patch.data) for patch in log.patches] == [
        (1 << 20, SECTOR, page(1)),
        (2 << 20, 8192, None),
    ]
    assert (log.flushed_size, log.last_size) == (3 << 20, 5 << 20)


def test_entries_in_order_across_the_end_of_the_ring() -> None:
    start = RING - 3 * SECTOR
    first, second = entry(10, start, [(0, page(1))]), entry(11, start, [(0, page(2)), (4096, page(3))])
    log = read_log(ring_of((start, first), (start + len(first), second)), GUID)
    assert [patch.data for patch in log.patches] == [page(1), page(2), page(3)]


def test_a_torn_last_entry_does_not_count() -> None:
    first = entry(10, 0, [(0, page(1))])
    second = bytearray(entry(11, 0, [(0, page(2))]))
    second[SECTOR + 100] ^= 1
    log = read_log(ring_of((0, first), (len(first), bytes(second))), GUID)
    assert [patch.data for patch in log.patches] == [page(1)]


def test_entries_before_the_tail_are_done() -> None:
    first = entry(10, 0, [(0, page(1))])
    second = entry(11, len(first), [(0, page(2))])
    log = read_log(ring_of((0, first), (len(first), second)), GUID)
    assert [patch.data for patch in log.patches] == [page(2)]


def test_the_sequence_with_the_highest_number_counts() -> None:
    old = entry(90, 0, [(0, page(1))])
    new = entry(200, 5 * SECTOR, [(0, page(2))])
    other_life = entry(300, 10 * SECTOR, [(0, page(3))], guid=bytes(16))
    log = read_log(ring_of((0, old), (5 * SECTOR, new), (10 * SECTOR, other_life)), GUID)
    assert [patch.data for patch in log.patches] == [page(2)]


def test_an_older_entry_right_behind_is_not_the_next_one() -> None:
    new, old = entry(10, 0, [(0, page(1))]), entry(5, 0, [(0, page(2))])
    log = read_log(ring_of((0, new), (len(new), old)), GUID)
    assert [patch.data for patch in log.patches] == [page(1)]


def test_more_descriptors_than_the_first_sector_holds() -> None:
    writes: list[tuple[int, bytes | int]] = [(i * SECTOR, SECTOR) for i in range(150)]
    log = read_log(ring_of((0, entry(5, 0, [*writes, (SECTOR * 999, page(9))]))), GUID)
    assert len(log.patches) == 151
    assert log.patches[-1].data == page(9)


@pytest.mark.parametrize(
    "ring",
    [
        bytes(RING),
        b"",
        ring_of((0, entry(5, 0, [(0, page(1))], guid=bytes(16)))),
        ring_of((0, entry(5, SECTOR * 8, [(0, page(1))]))),  # its tail is not there
    ],
)
def test_nothing_valid(ring: bytes) -> None:
    with pytest.raises(Corrupt, match="no valid entries"):
        read_log(ring, GUID)


def test_a_data_sector_of_another_entry() -> None:
    raw = bytearray(entry(5, 0, [(0, page(1))]))
    raw[SECTOR + 4092 :] = struct.pack("<I", 4)
    raw[4:8] = bytes(4)
    raw[4:8] = struct.pack("<I", crc32c(bytes(raw)))
    with pytest.raises(Corrupt, match="does not belong"):
        read_log(ring_of((0, bytes(raw))), GUID)
