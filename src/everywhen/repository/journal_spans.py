# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which parts of journals are kept: between two neighbouring points as long as both stay, after a VM's newest, and after the
last one before a gap as long as the point behind the gap stays.

So points decide everything: when retention thins them out, the journal between those that remain goes with those that went,
and comes back with them (I-11). Neighbours are known by their numbers: a point's is its parent's and one. Two have the same
one where both were made of the same parent: by a backup of a VM under capture, or by two hosts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from everywhen.formats.point import JournalPosition, RecoveryPoint


@dataclass(frozen=True, slots=True)
class JournalSpan:
    """Records `begin` to before `end` (None: all there are) of a stream, which follow `point`."""

    point: RecoveryPoint
    stream: str
    begin: int
    end: int | None

    def meets(self, first: int, end: int | None) -> bool:
        """Whether records `first` to before `end` (None: no end) have one of these among them."""
        return (self.end is None or first < self.end) and (end is None or self.begin < end)


def kept_spans(points: Iterable[RecoveryPoint]) -> list[JournalSpan]:
    """What is kept of the journals when these points are all that stay; of any number of VMs, in any order."""
    by_vm: dict[str, dict[int, list[RecoveryPoint]]] = {}
    for point in points:
        by_vm.setdefault(point.vm, {}).setdefault(point.number, []).append(point)
    return [
        JournalSpan(point, point.journal.stream, point.journal.sequence, _end(point.journal, numbered.get(number + 1, [])))
        for numbered, newest in ((numbered, max(numbered)) for numbered in by_vm.values())
        for number, there in numbered.items()
        if number + 1 in numbered or number == newest
        for point in there
        if point.journal is not None
    ]


def _end(position: JournalPosition, after: list[RecoveryPoint]) -> int | None:
    """Where the next point of the stream is; None where the stream has none among those that come `after`."""
    return next((point.journal.sequence for point in after if point.journal and point.journal.stream == position.stream), None)
