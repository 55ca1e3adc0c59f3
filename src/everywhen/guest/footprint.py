# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which bytes of the disks an answer rests on: what was read for it, taken down where it is read.

As long as these bytes are the same, the answer is: who asks is always the same program. What only leads there, and says the
same whatever is written to files (the superblock, which tables of inodes there are), is read in passing and left out, because
counters lie beside it that change with every write. Which volumes there are, and why one cannot be opened, is not left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from everywhen.guest.tree import Readable

Ranges = list[tuple[int, int]]
"""(offset, length), ascending, not touching each other."""


class Footprint:
    """Bytes that were read, by disk. `coarse`: a whole log is among them, of which hardly anything counts."""

    def __init__(self) -> None:
        self._read: dict[str, set[tuple[int, int]]] = {}
        self.coarse = False

    def add(self, disk: str, offset: int, length: int) -> None:
        """They were read."""
        self._read.setdefault(disk, set()).add((offset, length))

    def take(self, other: Footprint) -> None:
        """All that another one has."""
        for disk, read in other._read.items():
            self._read.setdefault(disk, set()).update(read)
        self.coarse |= other.coarse

    def ranges(self) -> dict[str, Ranges]:
        """All of them, in order."""
        return {disk: _joined(read) for disk, read in self._read.items()}


_taken_down: ContextVar[Footprint | None] = ContextVar("_taken_down", default=None)


def note(disk: str, offset: int, length: int) -> None:
    """Somebody reads these bytes of a disk."""
    taken = _taken_down.get()
    if taken is not None:
        taken.add(disk, offset, length)


@contextmanager
def taking_down(footprint: Footprint | None) -> Iterator[None]:
    """What is read in the body goes to this footprint; None: it is read in passing."""
    token = _taken_down.set(footprint)
    try:
        yield
    finally:
        _taken_down.reset(token)


class LaidOver:
    """A volume with its log laid over it from memory. What is the same on the volume itself does not rest on the log: a change
    of it has been written to its place since. For the rest, all that was read of the log counts. For one thread at a time.
    """

    def __init__(self, volume: Readable, below: Readable, opening: Footprint) -> None:
        """`opening`: all that is read until `is_open`."""
        self._volume = volume
        self._below = below
        self._opening = opening
        self.is_open = False

    @property
    def size(self) -> int:
        return self._volume.size

    def read(self, offset: int, length: int) -> bytes:
        """As of the volume."""
        taken = _taken_down.get()
        if taken is None or not self.is_open:
            return self._volume.read(offset, length)
        with taking_down(None):
            shown = self._volume.read(offset, length)
        if self._below.read(offset, length) != shown:
            taken.take(self._opening)
            taken.coarse = True
        return shown


def _joined(read: set[tuple[int, int]]) -> Ranges:
    joined: Ranges = []
    for offset, length in sorted(read):
        if joined and offset <= sum(joined[-1]):
            start, before = joined[-1]
            joined[-1] = start, max(before, offset + length - start)
        elif length:
            joined.append((offset, length))
    return joined
