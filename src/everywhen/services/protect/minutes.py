# SPDX-License-Identifier: AGPL-3.0-or-later
"""Counting a journal's records by disk and minute, on their way into a recovery point (design 4.10.6).

What is counted, and what its names mean: `repository/minutes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.pack import TAG_SIZE
from everywhen.formats.segment import FRAME_SIZE, MARK, WRITE, ZERO, Group
from everywhen.repository.minutes import PER_DAY, DayOfMinutes, Row
from everywhen.services.ages import MINUTE

_BLOCK_BITS, _DISK_BITS = 32, 8
_OFFSET_BITS = 55
_TOGETHER = 1 << 20
"""So many marks of touched blocks, or ranges, are held before equal ones are thrown away: 8 or 16 MiB."""

_Numbers = npt.NDArray[np.int64]


class MinuteCounts:
    """Figures by disk (as the journal numbers them) and minute; and how many different bytes there were. For one thread."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, int], npt.NDArray[np.float64]] = {}
        """By disk and minute: writes, bytes, and bytes of zeroes, compressed, and of the journal. Whole numbers up to 2^53 are
        exact in it; only shares of a group are no whole ones."""
        self._base: int | None = None
        self._touched: list[_Numbers] = []
        self._held = 0
        self._ranges = _Ranges()

    def add(self, group: Group, since: int, until: int) -> None:
        """Count the group's records from sequence number `since` to before `until`."""
        first, last = max(since - group.sequence, 0), min(until - group.sequence, len(group))
        if first >= last:
            return
        chosen = np.flatnonzero((group.kinds[first:last] != MARK) & (group.lengths[first:last] > 0)) + first
        if not len(chosen):
            return
        minutes = (group.time_ns + group.times[chosen].astype(np.int64)) // MINUTE
        disks, lengths = group.disks[chosen].astype(np.int64), group.lengths[chosen].astype(np.int64)
        offsets, kinds = group.offsets[chosen].astype(np.int64), group.kinds[chosen]
        self._base = base = int(minutes[0]) if self._base is None else self._base
        places = (minutes - base) << _DISK_BITS | disks
        self._count(group, places, lengths, kinds)
        self._touch(places, offsets, lengths)
        wrote = kinds == WRITE
        self._ranges.add(disks[wrote], offsets[wrote], lengths[wrote])

    def _count(self, group: Group, places: _Numbers, lengths: _Numbers, kinds: npt.NDArray[np.uint8]) -> None:
        packed = len(group.packed_data)
        compressed = np.where(kinds == WRITE, lengths, 0) * (packed / max(group.data_size, 1))
        beside = (FRAME_SIZE + group.size - packed + TAG_SIZE) / len(group)
        columns = (np.ones(len(places)), lengths, np.where(kinds == ZERO, lengths, 0), compressed, compressed + beside)
        found, at = np.unique(places, return_inverse=True)
        sums = np.stack([np.bincount(at, weights=column) for column in columns], axis=1)
        for place, row in zip(found.tolist(), sums, strict=True):
            key = self._place(place)
            self._sums[key] = self._sums[key] + row if key in self._sums else row

    def _place(self, place: int) -> tuple[int, int]:
        """The disk and the minute."""
        return place & (1 << _DISK_BITS) - 1, (place >> _DISK_BITS) + (self._base or 0)

    def _touch(self, places: _Numbers, offsets: _Numbers, lengths: _Numbers) -> None:
        """Remember which blocks were written: a number for each minute, disk and block."""
        begins = offsets // BLOCK_SIZE
        counts = (offsets + lengths - 1) // BLOCK_SIZE - begins + 1
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        blocks = np.repeat(begins, counts) + steps
        self._touched.append(np.unique(np.repeat(places, counts) << _BLOCK_BITS | blocks & (1 << _BLOCK_BITS) - 1))
        self._held += len(self._touched[-1])
        if self._held > _TOGETHER:
            self._settle()

    def _settle(self) -> _Numbers:
        whole = np.unique(np.concatenate([np.empty(0, np.int64), *self._touched]))
        self._touched, self._held = [whole], 0
        return whole

    @property
    def different(self) -> int:
        """Bytes that were written to, each counted once; what was written as zeroes is left out."""
        return self._ranges.size

    def days(self, names: Sequence[str]) -> dict[int, DayOfMinutes]:
        """What was counted, by day since 1970; `names` of the disks by number."""
        places, blocks = np.unique(self._settle() >> _BLOCK_BITS, return_counts=True)
        different = dict(zip(map(self._place, places.tolist()), blocks.tolist(), strict=True))
        found: dict[int, DayOfMinutes] = {}
        for (disk, minute), sums in self._sums.items():
            day = found.setdefault(minute // PER_DAY, DayOfMinutes())
            writes, size, zeroes, compressed, journal = map(round, sums.tolist())
            row = Row(writes, size, different[disk, minute], 0, zeroes, compressed, journal)
            day.add(names[disk], minute % PER_DAY, row)
        return found


class _Ranges:
    """Parts of disks, each byte once however often it is added."""

    def __init__(self) -> None:
        self._begins: list[_Numbers] = []
        self._ends: list[_Numbers] = []
        self._held = 0

    def add(self, disks: _Numbers, offsets: _Numbers, lengths: _Numbers) -> None:
        """All disks lie behind one another on one line."""
        begins = disks << _OFFSET_BITS | offsets & (1 << _OFFSET_BITS) - 1
        self._begins.append(begins)
        self._ends.append(begins + lengths)
        self._held += len(begins)
        if self._held > _TOGETHER:
            self._merge()

    def _merge(self) -> None:
        begins, ends = np.concatenate(self._begins), np.concatenate(self._ends)
        order = np.argsort(begins, kind="stable")
        begins, reach = begins[order], np.maximum.accumulate(ends[order])
        # A range begins where everything before has ended; it ends where the one before the next begin does.
        first = np.flatnonzero(np.concatenate([np.ones(min(len(begins), 1), bool), begins[1:] > reach[:-1]]))
        last = np.concatenate([first[1:], [len(begins)]])[: len(first)] - 1
        self._begins, self._ends = [begins[first]], [reach[last]]
        self._held = len(first)

    @property
    def size(self) -> int:
        """Bytes of them."""
        if not self._begins:
            return 0
        self._merge()
        return int((self._ends[0] - self._begins[0]).sum())
