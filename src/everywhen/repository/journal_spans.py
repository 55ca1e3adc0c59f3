# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which parts of journals are kept: between two neighbouring points as long as both stay, after a VM's newest, and after the
last one before a gap as long as the point behind the gap stays.

So points decide everything: when retention thins them out, the journal between those that remain goes with those that went,
and comes back with them (I-11). Neighbours are known by their numbers: a point's is its parent's and one. Two have the same
one where both were made of the same parent: by a backup of a VM under capture, or by two hosts. Then numbers of one branch may
have run ahead of another's, so what follows the newest point of the newest capture is kept whatever numbers there are. Or one
stream has both: the store took a point and its answer was lost, so the capture made the next one of the same parent, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from everywhen.formats.point import RecoveryPoint


@dataclass(frozen=True, slots=True)
class JournalSpan:
    """Records from number `begin` on of a stream, which follow `point`, up to the stream's next point `until` (None: all there
    are)."""

    point: RecoveryPoint
    stream: str
    begin: int
    until: RecoveryPoint | None

    @property
    def end(self) -> int | None:
        """The number after the last of them; None: there is no end."""
        return self.until.journal.sequence if self.until and self.until.journal else None

    def meets(self, first: int, end: int | None) -> bool:
        """Whether records `first` to before `end` (None: no end) have one of these among them."""
        return (self.end is None or first < self.end) and (end is None or self.begin < end)


def kept_spans(points: Iterable[RecoveryPoint]) -> list[JournalSpan]:
    """What is kept of the journals when these points are all that stay; of any number of VMs, in any order."""
    by_vm: dict[str, list[RecoveryPoint]] = {}
    for point in points:
        by_vm.setdefault(point.vm, []).append(point)
    return [span for of_vm in by_vm.values() for span in _spans_of(of_vm)]


def _spans_of(points: list[RecoveryPoint]) -> list[JournalSpan]:
    """Of one VM, by number."""
    numbers = {point.number for point in points}
    highest = max(numbers)
    newest = max((point for point in points if point.journal), key=lambda point: (point.epoch, point.number), default=None)
    spans: list[JournalSpan] = []
    following: dict[str, RecoveryPoint] = {}
    """By stream: its first point among those that were looked at."""
    for point in sorted(points, key=lambda point: (point.number, point.time_ns), reverse=True):
        if point.journal is None:
            continue
        until = following.get(point.journal.stream)
        following[point.journal.stream] = point
        if until is not None:
            kept = until.number <= point.number + 1
        else:  # after the last point of a stream comes its end, which goes with the point behind the gap
            kept = point.number + 1 in numbers or point.number == highest or point is newest
        if kept:
            spans.append(JournalSpan(point, point.journal.stream, point.journal.sequence, until))
    return spans[::-1]
