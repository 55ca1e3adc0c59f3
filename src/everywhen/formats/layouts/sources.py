# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the computed bytes of an image file come from.

Tables are rendered when they are read, never held: the cluster tables of a full 1 TB qcow2 file are 128 MiB, but each
entry follows from the runs of allocated clusters, since layouts place allocated clusters one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from everywhen.formats.layouts.runs import Runs


class Source(Protocol):
    """Bytes by offset. Pure: the same offset always gives the same bytes; any number of threads may read."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes at `offset`."""


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes that are held, such as a header; zeroes after them."""

    content: bytes

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length].ljust(length, b"\0")


@dataclass(frozen=True, slots=True)
class Repeat:
    """One short pattern again and again, such as a refcount of 1."""

    pattern: bytes

    def read(self, offset: int, length: int) -> bytes:
        size = len(self.pattern)
        skipped = offset % size
        return (self.pattern * ((skipped + length) // size + 1))[skipped : skipped + length]


@dataclass(frozen=True, slots=True)
class Table:
    """Entry `n` is `base + step * k | flags` when `n` is the k-th number of `used`, else `empty`.

    `dtype` is numpy's name of an entry, as '>u8'. With `group`, one more entry follows each `group` entries (it is
    always `empty`), as the sector bitmap entries in the block allocation table of a VHDX file.
    """

    used: Runs
    dtype: str
    base: int
    step: int
    flags: int = 0
    empty: int = 0
    group: int = 0

    def read(self, offset: int, length: int) -> bytes:
        width = np.dtype(self.dtype).itemsize
        low, high = offset // width, -(-(offset + length) // width)
        entries = np.full(high - low, self.empty, self.dtype)
        numbers = self.used.within(self._number(low), self._number(high))
        if len(numbers):
            places = numbers + numbers // self.group if self.group else numbers
            values = self.base + self.step * self.used.ordinals(numbers)
            entries[places - low] = values.astype(np.uint64) | np.uint64(self.flags)
        return entries.tobytes()[offset - low * width :][:length]

    def _number(self, place: int) -> int:
        """How many numbers have their entry before `place`."""
        return place - place // (self.group + 1) if self.group else place
