# SPDX-License-Identifier: AGPL-3.0-or-later
"""A VM's history as a line: stretches of which every write can be opened, recovery points, and gaps with their causes.

Pure: from points alone, with what only the newest one needs from elsewhere, which is how far its journal reaches by now.
Between two neighbouring points of one stream every write is kept (`repository/journal_spans.py`); what lies between two
streams was not captured, and each point of the later one says since when and why (`JournalPosition.gap`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from everywhen.formats.point import RecoveryPoint
from everywhen.repository.journal_spans import JournalSpan, kept_spans


@dataclass(frozen=True, slots=True)
class Coverage:
    """From `from_ns` to `to_ns` every write can be opened."""

    from_ns: int
    to_ns: int


@dataclass(frozen=True, slots=True)
class Missing:
    """After `from_ns` there is no moment until `to_ns` (None: until now, and it goes on); `why` in a few words."""

    from_ns: int
    to_ns: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes of blocks that were changed after `from_ns` and up to `to_ns`."""

    from_ns: int
    to_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class Reach:
    """How far the journal after the newest point reaches (None: not beyond it), and why nothing is captured any more (None:
    it is, or nobody here knows)."""

    covered_ns: int | None = None
    lost: str | None = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """All in the order of time. `points`: those that can be opened."""

    points: list[RecoveryPoint]
    coverage: list[Coverage]
    gaps: list[Missing]
    changes: list[Change]

    @property
    def newest_ns(self) -> int | None:
        """The newest moment."""
        times = [point.time_ns for point in self.points] + [one.to_ns for one in self.coverage]
        return max(times, default=None)

    def within(self, from_ns: int, to_ns: int) -> Timeline:
        """What of it lies between two instants, both included; stretches are cut there."""
        return Timeline(
            [point for point in self.points if from_ns <= point.time_ns <= to_ns],
            [
                Coverage(max(one.from_ns, from_ns), min(one.to_ns, to_ns))
                for one in self.coverage
                if one.from_ns <= to_ns and one.to_ns >= from_ns
            ],
            [one for one in self.gaps if one.from_ns < to_ns and (one.to_ns is None or one.to_ns > from_ns)],
            [one for one in self.changes if one.from_ns < to_ns and one.to_ns > from_ns],
        )


def timeline(points: Sequence[RecoveryPoint], reach: Reach) -> Timeline:
    """The history of one VM from its points, in any order."""
    line = sorted(points, key=lambda point: point.number)
    spans = {span.point.point: span for span in kept_spans(line)}
    covered: list[Coverage] = []
    for point, after in zip_longest(line, line[1:]):
        span = spans.get(point.point)
        end = _end(span, after, reach) if span else None
        if end is not None and end > point.time_ns:
            _add(covered, Coverage(point.time_ns, end))
    return Timeline(line, covered, _gaps(line, covered, reach), _changes(line))


def _end(span: JournalSpan, after: RecoveryPoint | None, reach: Reach) -> int | None:
    """How far the journal reaches that is kept after the span's point; None: not at all."""
    if after is None:
        return reach.covered_ns
    if span.end is not None:
        return after.time_ns
    gap = after.journal.gap if after.journal else None
    return min(gap.from_ns, after.time_ns) if gap else None


def _add(covered: list[Coverage], new: Coverage) -> None:
    if covered and covered[-1].to_ns >= new.from_ns:
        new = Coverage(covered.pop().from_ns, new.to_ns)
    covered.append(new)


def _gaps(line: Sequence[RecoveryPoint], covered: Sequence[Coverage], reach: Reach) -> list[Missing]:
    """What each stream says of the time before it; and what goes on now."""
    found: dict[str, Missing] = {}
    for point in line:
        position = point.journal
        if position is not None and position.gap is not None and position.gap.from_ns < position.began_ns:
            found.setdefault(position.stream, Missing(position.gap.from_ns, position.began_ns, position.gap.why))
    oldest = line[0].time_ns if line else 0
    gaps = [gap for gap in found.values() if gap.to_ns is not None and gap.to_ns > oldest]
    if reach.lost is not None and line:
        since = max(line[-1].time_ns, covered[-1].to_ns if covered else 0)
        gaps.append(Missing(since, None, reach.lost))
    return sorted(gaps, key=lambda gap: gap.from_ns)


def _changes(line: Sequence[RecoveryPoint]) -> list[Change]:
    """What each point says that it changed; a first copy changes nothing, and what a dropped one changed is not known."""
    return [
        Change(before.time_ns, point.time_ns, sum(disk.bytes_changed for disk in point.disks.values()))
        for before, point in pairwise(line)
        if point.parent is not None and point.parent.point == before.point
    ]


@dataclass(frozen=True, slots=True)
class Cell:
    """What is in one of the equal parts of a span of time: `gap` wins over `covered`, so that no gap is smoothed away."""

    covered: bool
    gap: bool
    goes_on: bool
    """The gap, until now."""
    points: tuple[RecoveryPoint, ...]
    size: float
    """Bytes of changed blocks."""


def cells(line: Timeline, from_ns: int, to_ns: int, count: int) -> list[Cell]:
    """`count` equal parts of the time from `from_ns` to `to_ns`, which is later. An instant belongs to one of them."""
    step = (to_ns - from_ns) / count

    def parts(begin: int, end: int) -> range:
        if end < from_ns or begin > to_ns:
            return range(0)
        first, last = (min(max(int((at - from_ns) / step), 0), count - 1) for at in (begin, end))
        return range(first, last + 1)

    covered, gaps, goes_on = (set[int]() for _ in range(3))
    points: list[list[RecoveryPoint]] = [[] for _ in range(count)]
    sizes = [0.0] * count
    for one in line.coverage:
        covered.update(parts(one.from_ns, one.to_ns))
    for gap in line.gaps:
        cut = parts(gap.from_ns, to_ns if gap.to_ns is None else gap.to_ns)
        (goes_on if gap.to_ns is None else gaps).update(cut)
    for point in line.points:
        for at in parts(point.time_ns, point.time_ns):
            points[at].append(point)
    for change in line.changes:
        where = parts(change.from_ns, change.to_ns)
        length = max(change.to_ns - change.from_ns, 1)
        for at in where:
            begin, end = from_ns + at * step, from_ns + (at + 1) * step
            share = max(0.0, min(end, change.to_ns) - max(begin, change.from_ns)) / length
            sizes[at] += change.size * share
    return [
        Cell(at in covered, at in gaps or at in goes_on, at in goes_on, tuple(points[at]), sizes[at]) for at in range(count)
    ]


def busiest(changes: Iterable[Change]) -> tuple[int, float] | None:
    """When most was changed, and how many bytes a second; None where nothing is known."""
    rates = [(change.size / max(change.to_ns - change.from_ns, 1) * 1e9, change.to_ns) for change in changes if change.size]
    return max(((at, rate) for rate, at in rates), key=lambda one: one[1], default=None)
