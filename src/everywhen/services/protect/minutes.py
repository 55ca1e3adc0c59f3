# SPDX-License-Identifier: AGPL-3.0-or-later
"""Counting a journal's records by disk and minute, on their way into a recovery point (design 4.10.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.segment import MARK, Group
from everywhen.repository.ledger import Vm
from everywhen.repository.minutes import PER_DAY, DayOfMinutes, kept_minutes
from everywhen.repository.repository import Repository
from everywhen.services.ages import DAY, MINUTE

_BLOCK_BITS, _DISK_BITS = 32, 8
_TOGETHER = 1 << 20
"""So many marks of touched blocks are held before equal ones are thrown away: 8 MiB."""


class MinuteCounts:
    """Writes, bytes and different blocks by disk (as the journal numbers them) and minute. For one thread."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int], tuple[int, int]] = {}
        self._base: int | None = None
        self._touched: list[npt.NDArray[np.int64]] = []
        self._held = 0

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
        self._base = int(minutes[0]) if self._base is None else self._base
        places, at, writes = np.unique(np.stack([minutes, disks]), axis=1, return_inverse=True, return_counts=True)
        sizes = np.bincount(at.reshape(-1), weights=lengths)
        for minute, disk, count, size in zip(*places.tolist(), writes.tolist(), sizes.tolist(), strict=True):
            before = self._counts.get((disk, minute), (0, 0))
            self._counts[disk, minute] = (before[0] + count, before[1] + int(size))
        self._touch(minutes, disks, group.offsets[chosen].astype(np.int64), lengths)

    def _touch(self, *columns: npt.NDArray[np.int64]) -> None:
        """Remember which blocks were written: a number for each minute, disk and block."""
        minutes, disks, offsets, lengths = columns
        begins = offsets // BLOCK_SIZE
        counts = (offsets + lengths - 1) // BLOCK_SIZE - begins + 1
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        blocks = np.repeat(begins, counts) + steps
        places = (minutes - (self._base or 0)) << _DISK_BITS | disks
        self._touched.append(np.unique(np.repeat(places, counts) << _BLOCK_BITS | blocks & (1 << _BLOCK_BITS) - 1))
        self._held += len(self._touched[-1])
        if self._held > _TOGETHER:
            self._settle()

    def _settle(self) -> npt.NDArray[np.int64]:
        whole = np.unique(np.concatenate([np.empty(0, np.int64), *self._touched]))
        self._touched, self._held = [whole], 0
        return whole

    def days(self, names: Sequence[str]) -> dict[int, DayOfMinutes]:
        """What was counted, by day since 1970; `names` of the disks by number."""
        places, blocks = np.unique(self._settle() >> _BLOCK_BITS, return_counts=True)
        different = {
            (place & (1 << _DISK_BITS) - 1, (place >> _DISK_BITS) + (self._base or 0)): count
            for place, count in zip(places.tolist(), blocks.tolist(), strict=True)
        }
        found: dict[int, DayOfMinutes] = {}
        for (disk, minute), (writes, size) in self._counts.items():
            day = found.setdefault(minute // PER_DAY, DayOfMinutes())
            day.add(names[disk], minute % PER_DAY, (writes, size, different[disk, minute], 0))
        return found


@dataclass(frozen=True, slots=True)
class Activity:
    """What was written to a VM within some time, as far as it was captured; and how long nothing was."""

    writes: int
    size: int
    blocks: int
    gap_ns: int


def activity(repository: Repository, vm: Vm, from_ns: int, to_ns: int) -> Activity:
    """Of whole minutes. Raises StorageError."""
    sums, gaps = [0, 0, 0], set[tuple[int, int]]()
    for number, day in kept_minutes(repository.documents, vm.vm, from_ns // DAY):
        for rows in day.disks.values():
            for minute, row in rows.items():
                if from_ns <= (number * PER_DAY + minute) * MINUTE <= to_ns:
                    sums = [total + one for total, one in zip(sums, row, strict=False)]
        gaps.update(day.gaps)
    missing = sum(max(0, min(end, to_ns) - max(begin, from_ns)) for begin, end in gaps)
    return Activity(sums[0], sums[1], sums[2], missing)
