# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs: a set of whole numbers (bytes, blocks, clusters) as sorted ranges that do not touch.

Which parts of a disk are allocated comes in as block numbers (a block map) or as byte extents (an image). Both become
runs, because runs are small in both cases that matter: a full disk of any size is one run, and a 1 TB disk with a
million scattered 64 KiB blocks is a million runs of 16 bytes each. All work on them is done by numpy on whole arrays:
a million block numbers become runs in about 10 ms, and runs of bytes become runs of clusters in about the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Runs:
    """Ranges `starts[i]` to `ends[i]` (exclusive), ascending, with a gap between each two."""

    starts: Int64s = field(repr=False)
    ends: Int64s = field(repr=False)

    @classmethod
    def of_ranges(cls, starts: Int64s, ends: Int64s) -> Runs:
        """The union of non-empty ranges in any order, overlapping or not. Raises ValueError for an impossible one."""
        if len(starts) == 0:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64))
        if bool((ends <= starts).any()) or int(starts.min()) < 0:
            raise ValueError("a range is empty, reversed or negative")
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], np.maximum.accumulate(ends[order])
        first = np.concatenate(([True], starts[1:] > ends[:-1]))
        last = np.concatenate((first[1:], [True]))
        return cls(starts[first], ends[last])

    @classmethod
    def of_extents(cls, extents: Iterable[tuple[int, int]]) -> Runs:
        """The union of `(start, length)` pairs in any order; empty ones are left out."""
        pairs = np.array([(start, start + length) for start, length in extents if length], np.int64).reshape(-1, 2)
        return cls.of_ranges(pairs[:, 0], pairs[:, 1])

    @classmethod
    def of_blocks(cls, numbers: Int64s, block_size: int, limit: int) -> Runs:
        """The bytes below `limit` in these blocks of `block_size` bytes; the numbers in any order."""
        starts = np.asarray(numbers, np.int64) * block_size
        if len(starts) and int(starts.max()) >= limit:
            raise ValueError(f"block {int(starts.max()) // block_size} begins at or after {limit}")
        return cls.of_ranges(starts, np.minimum(starts + block_size, limit))

    @classmethod
    def whole(cls, length: int) -> Runs:
        """Everything from 0 to `length`."""
        return cls.of_extents([(0, length)])

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def end(self) -> int:
        """One more than the largest number, 0 when there is none."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @cached_property
    def before(self) -> Int64s:
        """How many numbers lie before each run."""
        lengths = self.ends - self.starts
        return np.asarray(np.cumsum(lengths) - lengths, np.int64)

    @property
    def count(self) -> int:
        """How many numbers there are in all."""
        return int((self.ends - self.starts).sum())

    def units(self, size: int) -> Runs:
        """The units of `size` that these numbers touch: bytes become clusters."""
        return Runs.of_ranges(self.starts // size, -(-self.ends // size))

    def split(self, size: int) -> tuple[Int64s, Int64s]:
        """Starts and lengths of the pieces when each run is cut at the multiples of `size`."""
        first = self.starts // size
        pieces = (self.ends - 1) // size - first + 1
        run = np.repeat(np.arange(len(self)), pieces)
        unit = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        starts = np.maximum(self.starts[run], unit * size)
        return starts, np.minimum(self.ends[run], (unit + 1) * size) - starts

    def ordinals(self, numbers: Int64s) -> Int64s:
        """How many of our numbers are smaller, for each of `numbers` (all of them must be ours)."""
        run = np.searchsorted(self.starts, numbers, side="right") - 1
        return np.asarray(self.before[run] + numbers - self.starts[run], np.int64)

    def within(self, low: int, high: int) -> Int64s:
        """Our numbers from `low` to `high` (exclusive), ascending. O(log n + what is returned)."""
        first = int(np.searchsorted(self.ends, low, side="right"))
        last = int(np.searchsorted(self.starts, high, side="left"))
        if first >= last:
            return np.empty(0, np.int64)
        starts = np.maximum(self.starts[first:last], low)
        lengths = np.minimum(self.ends[first:last], high) - starts
        total = np.cumsum(lengths)
        return np.asarray(np.repeat(starts - total + lengths, lengths) + np.arange(int(total[-1])), np.int64)
