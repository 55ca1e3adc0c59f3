# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which points of a VM are its history, where two captures of it ran at once: two branches, never one (design 4.10.5).

From the first moment of a capture on the history is what that one captured. What an older one, which did not know of it yet,
made after that instant shows another branch: such points lie *beside*. They stay as long as others and are opened by their
ids, but no time leads to them. What a backup of images made is of no branch: it is in the history wherever it stands.

And which points were left when a VM was rolled back (docs/return.md). Time goes on then, also here: what a rollback left stays
in the history, where times lead to it. Its name, by the number of the rollback, leads to no more than what was there before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from everywhen.formats.point import RecoveryPoint


def rollbacks(points: Iterable[RecoveryPoint]) -> dict[int, RecoveryPoint]:
    """Of one VM's points, those with which it began again after it was rolled back, by the number of the branch it left."""
    return {point.rolled_back.branch: point for point in points if point.rolled_back is not None}


def next_branch(points: Iterable[RecoveryPoint]) -> int:
    """The number for the VM's next rollback, by all of its points, dropped ones too."""
    return max(rollbacks(points), default=0) + 1


def before_rollback(points: Iterable[RecoveryPoint], turn: RecoveryPoint) -> list[RecoveryPoint]:
    """Of one VM's points, in the same order, those of the branch that it left: all that show an instant before `turn`."""
    return [point for point in points if (point.time_ns, point.number) < (turn.time_ns, turn.number)]


def history(points: Sequence[RecoveryPoint]) -> list[RecoveryPoint]:
    """Of one VM's points, in the same order, those that do not lie beside."""
    first: dict[str, tuple[int, int]] = {}
    """By stream: its first moment, as far as it is known, and its epoch."""
    for point in points:
        if point.journal is not None:
            began = point.journal.began_ns or point.time_ns
            first[point.journal.stream] = min((began, point.epoch), first.get(point.journal.stream, (began, point.epoch)))
    begins = sorted(first.values())
    highest = list(accumulate((epoch for _, epoch in begins), max))

    def lies_beside(point: RecoveryPoint) -> bool:
        at = bisect_right(begins, point.time_ns, key=lambda begin: begin[0])
        return point.journal is not None and at > 0 and highest[at - 1] > point.epoch

    return [point for point in points if not lies_beside(point)]
