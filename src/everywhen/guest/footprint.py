# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which bytes of the disks an answer rests on: what was read for it, taken down where it is read.

As long as these bytes are the same, the answer is: who asks is always the same program. What only leads there, and says the
same whatever is written to files (the table of partitions, the superblock, which tables of inodes there are), is read in
passing and left out, because counters lie beside it that change with every write.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Ranges = list[tuple[int, int]]
"""(offset, length), ascending, not touching each other."""


class Footprint:
    """Bytes that were read, by disk."""

    def __init__(self) -> None:
        self._read: dict[str, set[tuple[int, int]]] = {}

    def add(self, disk: str, offset: int, length: int) -> None:
        """They were read."""
        self._read.setdefault(disk, set()).add((offset, length))

    def take(self, other: Footprint) -> None:
        """All that another one has."""
        for disk, read in other._read.items():
            self._read.setdefault(disk, set()).update(read)

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


def _joined(read: set[tuple[int, int]]) -> Ranges:
    joined: Ranges = []
    for offset, length in sorted(read):
        if joined and offset <= sum(joined[-1]):
            start, before = joined[-1]
            joined[-1] = start, max(before, offset + length - start)
        elif length:
            joined.append((offset, length))
    return joined
