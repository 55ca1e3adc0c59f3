# SPDX-License-Identifier: AGPL-3.0-or-later
"""The records of an XFS's log that are to be replayed, checked (layouts and sources: formats/filesystems/xfs_log.py).

Where the log ends nothing says: its blocks have the number of the turn in which they were written, so the end is before the
first with an older number. Up to eight records are written at once and in any order, so of those near the end only the ones
before the first that is missing count, as in the kernel (`xlog_find_head`, `xlog_verify_head`). The last record says where the
log begins. All between must be whole: the kernel mounts nothing else, and nothing else is replayed here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from everywhen.formats.filesystems import xfs_log
from everywhen.formats.filesystems.xfs import XfsSuperblock
from everywhen.formats.filesystems.xfs_log import BLOCK, RecordHeader
from everywhen.formats.images.crc32c import crc32c, joined, registers
from everywhen.guest.errors import GuestDamaged, GuestLimit, GuestUnsupported
from everywhen.guest.reading import piece
from everywhen.guest.tree import Readable

_AT_ONCE: Final = 2048
"""Blocks read and summed together; a record has 521 at most."""
_IN_FLIGHT: Final = 8
_UNSURE: Final = _IN_FLIGHT * (xfs_log.MOST_BYTES // BLOCK + xfs_log.MOST_HEADERS)
"""Blocks before the end that may be missing."""
_MOST_REPLAYED: Final = 384 << 20
"""Bytes of the log between its begin and end: some 20 s, a third of the time that a question may take."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record, its checksum right; `block` is where it begins."""

    header: RecordHeader
    block: int
    stored: bytes

    def operations(self) -> Iterator[tuple[int, int, bytes]]:
        """Transaction, flags and region of each operation. Raises FormatError."""
        split = self.header.headers * BLOCK
        content = xfs_log.unstamped(self.stored[:split], self.stored[split:])
        return xfs_log.operations(content, self.header.operations)

    @property
    def is_unmount(self) -> bool:
        """Whether it says that the file system was unmounted."""
        return self.header.operations == 1 and any(flags & xfs_log.Flag.UNMOUNT for _, flags, _ in self.operations())


class XfsLog:
    """The log of a file system; its blocks are numbered from 0. Raises GuestError."""

    def __init__(self, volume: Readable, superblock: XfsSuperblock) -> None:
        self._volume = volume
        self._superblock = superblock
        self._start = superblock.block_place(superblock.log)
        self._count = superblock.log_blocks * superblock.block_size // BLOCK
        if self._count <= xfs_log.MOST_HEADERS:
            raise GuestDamaged("its log has no room for a record")

    def to_replay(self) -> Iterator[Record] | None:
        """The records that are to be replayed, in their order; None if it was unmounted.

        Raises GuestDamaged here, or with the first record that is not whole.
        """
        last = self._last()
        if last is None or last.is_unmount:
            return None
        if not last.header.little:
            raise GuestUnsupported("its log was written by a processor with another order of bytes")
        cycle, begin = divmod(last.header.tail, 1 << 32)
        end = last.block + last.header.blocks
        length = (last.header.cycle - cycle) * self._count + end - begin
        if not 0 < length <= self._count or begin >= self._count:
            raise GuestDamaged("the last record of its log says that the log begins where it cannot")
        if length * BLOCK > _MOST_REPLAYED:
            raise GuestLimit(f"{length * BLOCK >> 20} MiB of its log are to be replayed, more than is done here")
        return self._all(begin, cycle, length)

    def _all(self, begin: int, cycle: int, length: int) -> Iterator[Record]:
        done = 0
        for record in self._records(begin, cycle, length):
            done += record.header.blocks
            yield record
        if done != length:
            raise GuestDamaged(f"the record at block {(begin + done) % self._count} of its log is damaged")

    def _last(self) -> Record | None:
        """The last record before the first that is missing, None if nothing was ever logged."""
        newest = self._cycle(0)
        end = self._end(newest)
        back = min(_UNSURE + xfs_log.MOST_BYTES // BLOCK, self._count - 1)
        begin, cycle = (end - back, newest) if end >= back else (end - back + self._count, newest - 1)
        first = next(self._headers(begin, cycle, back), None)
        if first is None:
            if not newest:
                return None
            raise GuestDamaged("the end of its log is not to be found")
        last = None
        block, cycle = first
        for record in self._records(block, cycle, self._count):
            last = record
        if last is None:
            raise GuestDamaged("the end of its log is not to be found")
        turns, block = divmod(last.block + last.header.blocks, self._count)
        cycle = last.header.cycle + turns
        missing = (newest - cycle) * self._count + end - block
        if missing > _UNSURE or (missing > 0 and len(list(self._headers(block, cycle, missing))) > _IN_FLIGHT):
            raise GuestDamaged(f"the record at block {block} of its log is damaged")
        return last

    def _end(self, newest: int) -> int:
        """Near the end: a block of the newest turn is before this one, and one of an older turn is here, or the log's end."""
        low, high = 0, self._count
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._cycle(middle) == newest else (low, middle)
        return high

    def _headers(self, begin: int, cycle: int, blocks: int) -> Iterator[tuple[int, int]]:
        """Block and cycle of each header of a record in so many blocks."""
        data = self._read(begin, blocks)
        for index in range(blocks):
            turns, block = divmod(begin + index, self._count)
            header = xfs_log.decode_record(data[index * BLOCK : (index + 1) * BLOCK])
            if header and header.number == cycle + turns << 32 | block:
                yield block, cycle + turns

    def _records(self, block: int, cycle: int, left: int) -> Iterator[Record]:
        """Whole records from a block on, one behind the other, in `left` blocks; ends with the first that is not whole."""
        while left > 0:
            size = min(left, _AT_ONCE)
            data = self._read(block, size)
            sums = registers(data, BLOCK)
            at = 0
            while at < size:
                record = self._record(data, at, (block, cycle), sums)
                if record is None:
                    break
                yield record
                at += record.header.blocks
                turns, block = divmod(block + record.header.blocks, self._count)
                cycle += turns
            if not at:
                return
            left -= at

    def _record(self, data: bytes, at: int, where: tuple[int, int], sums: list[int]) -> Record | None:
        """The record that begins so many blocks into `data`, None if it is not whole there."""
        block, cycle = where
        header = xfs_log.decode_record(data[at * BLOCK : (at + 1) * BLOCK])
        if header is None or header.cycle != cycle or header.number != cycle << 32 | block:
            return None
        end = at + header.blocks
        if end * BLOCK > len(data) or header.uuid != self._superblock.uuid:
            return None
        content = (at + header.headers) * BLOCK
        for index in range(at + 1, end):
            turn = cycle + (block + index - at >= self._count)
            if data[index * BLOCK : index * BLOCK + 4] != turn.to_bytes(4, "big"):
                return None
        if header.checksum or (self._superblock.version == 5 and header.operations != 1):  # mkfs sums nothing
            whole = header.length // BLOCK
            rest = data[content + whole * BLOCK : content + header.length]
            for summed in xfs_log.summed_headers(data[at * BLOCK : content], header.length):
                register = joined(crc32c(summed) ^ 0xFFFFFFFF, sums[at + header.headers :][:whole], BLOCK)
                if crc32c(rest, register) == header.checksum:
                    break
            else:
                return None
        return Record(header, block, data[at * BLOCK : content + header.length])

    def _cycle(self, block: int) -> int:
        first, second = struct.unpack(">II", self._read(block, 1)[:8])
        return int(second if first == xfs_log.MAGIC else first)

    def _read(self, block: int, count: int) -> bytes:
        """Blocks of the ring."""
        before = min(count, self._count - block)
        data = piece(self._volume, self._start + block * BLOCK, before * BLOCK, "the log")
        return data if before == count else data + self._read(0, count - before)
