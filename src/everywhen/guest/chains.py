# SPDX-License-Identifier: AGPL-3.0-or-later
"""Chains of clusters in the table of a FAT or exFAT, followed as far as somebody reads."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass

from everywhen.guest.errors import GuestDamaged
from everywhen.guest.reading import piece
from everywhen.guest.tree import Readable, Run, Span

_MERGED = 1 << 26
"""A run is not longer, so that the first comes soon."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """The clusters of a volume and the table of what follows which. Sizes and places in bytes; the first cluster is 2."""

    volume: Readable
    bits: int
    """Of an entry of the table; of 32 only those in `mask` count (FAT32: 28)."""
    mask: int
    table: int
    heap: int
    size: int
    count: int

    def place(self, cluster: int) -> int:
        """Where a cluster is on the volume."""
        if not 2 <= cluster < self.count + 2:
            raise GuestDamaged(f"cluster {cluster} of {self.count}")
        return self.heap + (cluster - 2) * self.size

    def after(self, cluster: int) -> int | None:
        """The cluster behind this one, None at the end of its chain. Raises GuestDamaged where the table has neither."""
        if self.bits == 12:
            raw = piece(self.volume, self.table + cluster + cluster // 2, 2, "the table of clusters")
            value = int.from_bytes(raw, "little") >> (4 if cluster & 1 else 0)
        else:
            width = self.bits // 8
            value = int.from_bytes(piece(self.volume, self.table + cluster * width, width, "the table of clusters"), "little")
        value &= self.mask
        if value >= self.mask - 7:
            return None
        if not 2 <= value < self.count + 2:
            raise GuestDamaged(f"its chain of clusters breaks: behind {cluster} the table has {value:#x}")
        return value


class Chain:
    """The runs of one chain; keeps those it has seen. Ends with GuestDamaged where the table makes no sense or goes round."""

    def __init__(self, clusters: Clusters, first: int) -> None:
        self._clusters = clusters
        self._next: int | None = first
        self._runs: list[Run] = []
        self._seen = 0
        self._starts: list[int] = []
        self._ends: dict[int, int] = {}
        """The clusters of the runs: first and, by it, the one behind the last."""
        self._broken: GuestDamaged | None = None

    def __call__(self, offset: int) -> Iterator[Run]:
        for run in self._runs:
            if run.end > offset:
                yield run
        while self._next is not None:
            run = self._follow(self._next)
            self._runs.append(run)
            if run.end > offset:
                yield run
        if self._broken:
            raise self._broken

    def _follow(self, first: int) -> Run:
        """The run that begins with a cluster: all that follow each other on the volume too."""
        size, start = self._clusters.size, self._seen * self._clusters.size
        place, count = self._clusters.place(first), 1
        following = self._after(first)
        while following == first + count and count * size < _MERGED and following not in self._ends:
            count += 1
            following = self._after(first + count - 1)
        self._seen += count
        insort(self._starts, first)
        self._ends[first] = first + count
        if following is not None and self._was_there(following):
            self._broken = GuestDamaged("its chain of clusters goes round")
            following = None
        self._next = following
        return Run(start, count * size, zero=False, stored=Span(place, count * size))

    def _was_there(self, cluster: int) -> bool:
        at = bisect_right(self._starts, cluster) - 1
        return at >= 0 and cluster < self._ends[self._starts[at]]

    def _after(self, cluster: int) -> int | None:
        """The next one; damage is kept for who reads that far."""
        try:
            return self._clusters.after(cluster)
        except GuestDamaged as error:
            self._broken = error
            return None
