# SPDX-License-Identifier: AGPL-3.0-or-later
"""What points need of what is stored, and what would come free without some of them. One walk, by marking as gc does it.

With deduplication no point has a size of its own: what comes free without it are the copies that nobody else needs,
bases of deltas included. So the same points are marked with and without it, and the difference is the answer. Figures are
bytes of stored records. That gc frees whole packs (dead by more than a third) and keeps map nodes twice makes up for the
few per cent by which these figures are called an estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.blockmap import names_needed
from everywhen.repository.gc.marking import Marker
from everywhen.repository.gc.marks import Marks
from everywhen.repository.repository import Repository

Report = Callable[[int, int], None]
"""Told how many points of how many were walked."""

_MEMORY = 64 << 20
"""Bytes for sorting names, shared by all markings of one call."""
_NEVER = 1 << 30


@dataclass(frozen=True, slots=True)
class Need:
    """What a set of points needs: bytes of stored records, different blocks and their content in bytes, missing chunks."""

    stored_bytes: int
    chunks: int
    missing: int

    @property
    def unique_bytes(self) -> int:
        """Content of the different blocks, each counted once; the last one of a disk counts whole."""
        return self.chunks * BLOCK_SIZE


class _Survey:
    """One marking in the making, and the map nodes that were walked for it."""

    def __init__(self, marker: Marker, seen: AbstractSet[bytes]) -> None:
        self.marker = marker
        self.seen = set(seen)

    def finish(self) -> Need:
        marks = self.marker.finish()
        return Need(_live_bytes(marks), marks.live_names - len(self.seen), marks.missing.count)


def _live_bytes(marks: Marks) -> int:
    return sum(use.live_bytes for use in marks.uses())


def needs(
    repository: Repository, points: Sequence[RecoveryPoint], without: Sequence[AbstractSet[str]], report: Report
) -> tuple[Need, list[Need]]:
    """What all `points` need, and for each set of point ids in `without` what the others need.

    The index must be fresh (`Repository.refresh`). Raises Damaged when a map node cannot be read, CacheDamaged, OSError.
    """
    leaving = frozenset[str]().union(*without)
    core = [point for point in points if point.point not in leaving]
    rest = [point for point in points if point.point in leaving]
    total = len(core) + sum(len(rest) - len(gone) for gone in without) + len(rest)
    done = 0

    def walk(targets: Sequence[Marker], seen: set[bytes], chosen: Iterable[RecoveryPoint]) -> None:
        nonlocal done
        for point in chosen:
            for tree in point.trees():
                for names in names_needed(repository.fetcher.read_many, tree, seen):
                    for marker in targets:
                        marker.add(names)
            done += 1
            report(min(done, total), total)

    with ExitStack() as open_markers:
        memory = _MEMORY // (len(without) + 1)
        scratch = str(repository.cache / "scratch")
        markers = [
            open_markers.enter_context(Marker(repository.index, scratch, memory, threshold=_NEVER))
            for _ in range(len(without) + 1)
        ]
        seen: set[bytes] = set()
        walk(markers, seen, core)
        found = []
        for marker, gone in zip(markers, [frozenset[str](), *without], strict=True):
            survey = _Survey(marker, seen)
            walk([marker], survey.seen, (point for point in rest if point.point not in gone))
            found.append(survey.finish())
    return found[0], found[1:]


def frees(
    repository: Repository, points: Sequence[RecoveryPoint], choices: Sequence[AbstractSet[str]], report: Report
) -> list[int]:
    """Bytes that come free when all points of a choice go and all others stay, for each choice by itself."""
    whole, others = needs(repository, points, choices, report)
    return [whole.stored_bytes - other.stored_bytes for other in others]
