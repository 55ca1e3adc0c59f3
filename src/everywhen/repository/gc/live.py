# SPDX-License-Identifier: AGPL-3.0-or-later
"""What live points need, for gc and for verify: marking that passes deltas over which cannot be decoded.

A chunk that has another copy than a delta is needed by that copy only, so gc may delete the delta's base; the delta is left
behind, in a pack that was not worth rewriting. Marking does not see that: it may prefer such a delta, for its pack is not
condemned, or older. Then gc would delete the only good copy, and verify report a chunk as lost that can be read. So those
deltas are passed over, and the copies chosen once more.

They are passed over by one marking only. What is missing now may be there when one looks again: gc moves bases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from everywhen.formats.ids import PackId
from everywhen.formats.node import Names
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.blockmap import names_needed
from everywhen.repository.fetch import ChunkFetcher
from everywhen.repository.gc.marking import Marker
from everywhen.repository.gc.marks import Marks
from everywhen.repository.gc.records import is_decodable
from everywhen.repository.index.index import ChunkIndex
from everywhen.repository.repository import Repository


class Stock(Protocol):
    """Where chunks are, and how they are read: a repository by its caches, or a survey of it."""

    @property
    def index(self) -> ChunkIndex:
        """Which copies there are."""

    @property
    def fetcher(self) -> ChunkFetcher:
        """Reads by that index."""


def mark_live(
    repository: Repository,
    stock: Stock,
    points: Sequence[RecoveryPoint],
    marker: Marker,
    step: Callable[[int, int], None],
) -> Marks:
    """The copies that `points` need, by a fresh `marker` on the index of `stock`; `step` is told how many points are done.

    What is broken is so whichever copy one takes, as far as there are not more of it than `Findings.names` has room for.
    Raises Damaged or FormatError when a block map cannot be read, StorageError.
    """
    seen: set[bytes] = set()
    for done, point in enumerate(points, 1):
        step(done, len(points))
        for tree in point.trees():
            for names in names_needed(stock.fetcher.read_many, tree, seen):
                marker.add(names)
    stale: dict[PackId, set[int]] = {}
    while True:
        marks = marker.finish(stale)
        if not _note_stale(repository, stock.index, marks, stale):
            return marks


def decodable(repository: Repository, index: ChunkIndex, names: Names) -> NDArray[np.bool_]:
    """Of which of the names (n, 32) there is a copy that can be decoded: `ChunkIndex.decodable`, which looks at the best
    copy only, and where that is none, a look at all of them. Slow for what is really lost.
    """
    found = index.decodable(names)
    for row in np.flatnonzero(~found).tolist():
        found[row] = any(is_decodable(repository, index, copy) for copy in index.all_copies(names[row].tobytes()))
    return found


def _note_stale(repository: Repository, index: ChunkIndex, marks: Marks, stale: dict[PackId, set[int]]) -> bool:
    """Add to `stale` the undecodable copies of chunks that have a better one; whether there were any."""
    news = False
    for name in (row.tobytes() for row in marks.broken.names):
        copies = [copy for copy in index.all_copies(name) if copy.offset not in stale.get(copy.pack, ())]
        bad = [copy for copy in copies if not is_decodable(repository, index, copy)]
        if bad and len(bad) < len(copies):
            for copy in bad:
                stale.setdefault(copy.pack, set()).add(copy.offset)
            news = True
    return news
