# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which parts of journals are kept: between two neighbouring points as long as both stay, after a VM's newest, and after the
last one before a gap as long as the point behind the gap stays.

So points decide everything: when retention thins them out, the journal between those that remain goes with those that went,
and comes back with them (I-11). Neighbours are known by their numbers: a point's is its parent's and one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from everywhen.formats.point import RecoveryPoint


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
    by_vm: dict[str, dict[int, RecoveryPoint]] = {}
    for point in points:
        by_vm.setdefault(point.vm, {})[point.number] = point
    spans = []
    for numbered in by_vm.values():
        newest = max(numbered)
        for number, point in numbered.items():
            position, after = point.journal, numbered.get(number + 1)
            if position is None or (after is None and number != newest):
                continue
            same = after is not None and after.journal is not None and after.journal.stream == position.stream
            end = after.journal.sequence if same and after and after.journal else None
            spans.append(JournalSpan(point, position.stream, position.sequence, end))
    return spans
