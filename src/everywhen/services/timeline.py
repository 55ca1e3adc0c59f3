# SPDX-License-Identifier: AGPL-3.0-or-later
"""A VM's history as a line: stretches of which every write can be opened, recovery points, and gaps with their causes.

Pure: from points alone, with what only the newest one needs from elsewhere, which is how far its journal reaches by now.
Between two neighbouring points of one stream every write is kept (`repository/journal_spans.py`); what lies between two
streams was not captured, and each point of the later one says since when and why (`JournalPosition.gap`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from everywhen.formats.ids import PointId
from everywhen.formats.point import ClockStep, RecoveryPoint
from everywhen.repository.branches import history
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
    """All in the order of time. `points`: of the history; `beside`: of other branches (`repository/branches.py`);
    `clock_steps`: when the host's clock was set, as far as points that are kept say so."""

    points: list[RecoveryPoint]
    coverage: list[Coverage]
    gaps: list[Missing]
    changes: list[Change]
    beside: list[RecoveryPoint] = field(default_factory=list)
    clock_steps: list[ClockStep] = field(default_factory=list)

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
            [point for point in self.beside if from_ns <= point.time_ns <= to_ns],
            [step for step in self.clock_steps if from_ns <= step.at_ns <= to_ns],
        )


def timeline(points: Sequence[RecoveryPoint], reach: Reach) -> Timeline:
    """The history of one VM from its points, in any order."""
    ordered = sorted(points, key=lambda point: (point.time_ns, point.number))
    line = history(ordered)
    spans = {span.point.point: span for span in kept_spans(ordered)}
    backups = {point.point: point for point in line if point.journal is None}
    ends: list[Coverage] = []
    captured: RecoveryPoint | None = None
    for point in reversed(line):
        span = spans.get(point.point)
        end = _end(span, captured, backups, reach) if span else None
        if end is not None and end > point.time_ns:
            ends.append(Coverage(point.time_ns, end))
        captured = point if point.journal else captured
    covered: list[Coverage] = []
    for one in reversed(ends):
        _add(covered, one)
    kept = {point.point for point in line}
    beside = [point for point in ordered if point.point not in kept]
    steps = sorted({step for point in line if point.journal for step in point.journal.clock_steps})
    return Timeline(line, covered, _gaps(line, covered, reach), _changes(line), beside, steps)


def newest_captured(line: Sequence[RecoveryPoint]) -> RecoveryPoint | None:
    """The newest point that a capture made: its journal may reach further than the line does."""
    return next((point for point in reversed(line) if point.journal), None)


def _end(
    span: JournalSpan, captured: RecoveryPoint | None, backups: Mapping[PointId, RecoveryPoint], reach: Reach
) -> int | None:
    """How far the journal leads that is kept after the span's point; None: not at all. `captured`: the next point in the
    history that was."""
    position = captured.journal if captured else None
    if span.until is not None:
        # Where that one lies beside, the history goes on with another capture's first moment.
        other = position is not None and position.stream != span.stream
        return min(position.began_ns or span.until.time_ns, span.until.time_ns) if position and other else span.until.time_ns
    if captured is None or position is None:
        return reach.covered_ns
    # Only of what it was made from does it say when that ended: a capture in between may be gone with all its points.
    before = captured.parent
    while before is not None and before.point in backups:
        before = backups[before.point].parent
    if position.gap is None or before is None or before.point != span.point.point:
        return None
    return min(position.gap.from_ns, captured.time_ns)


def _add(covered: list[Coverage], new: Coverage) -> None:
    if covered and covered[-1].to_ns >= new.from_ns:
        before = covered.pop()
        new = Coverage(before.from_ns, max(before.to_ns, new.to_ns))
    covered.append(new)


def _gaps(line: Sequence[RecoveryPoint], covered: Sequence[Coverage], reach: Reach) -> list[Missing]:
    """What each stream says of the time before it, as far as no other capture knew more; and what goes on now."""
    found: dict[str, Missing] = {}
    for point in line:
        position = point.journal
        if position is not None and position.gap is not None and position.gap.from_ns < position.began_ns:
            found.setdefault(position.stream, Missing(position.gap.from_ns, position.began_ns, position.gap.why))
    oldest = line[0].time_ns if line else 0
    gaps = [part for gap in found.values() if gap.to_ns is not None and gap.to_ns > oldest for part in _without(gap, covered)]
    if reach.lost is not None and line:
        since = max(line[-1].time_ns, covered[-1].to_ns if covered else 0)
        gaps.append(Missing(since, None, reach.lost))
    return sorted(gaps, key=lambda gap: gap.from_ns)


def _without(gap: Missing, covered: Sequence[Coverage]) -> list[Missing]:
    """What is left of a gap that ended where there was coverage."""
    if gap.to_ns is None:
        return [gap]
    since, parts = gap.from_ns, []
    for one in covered:
        if one.to_ns > since and one.from_ns < gap.to_ns:
            parts.append(Missing(since, one.from_ns, gap.why))
            since = one.to_ns
    parts.append(Missing(since, gap.to_ns, gap.why))
    return [part for part in parts if part.to_ns is not None and part.from_ns < part.to_ns]


def _changes(line: Sequence[RecoveryPoint]) -> list[Change]:
    """What each point says that it changed; a first copy changes nothing, and what a dropped one changed is not known.

    Of two that were made of the same parent, a capture's and a backup's beside it, only one counts: they say the same.
    """
    times = {point.point: point.time_ns for point in line}
    after: dict[PointId, RecoveryPoint] = {}
    for point in line:
        if point.parent is not None and point.parent.point in times:
            other = after.get(point.parent.point)
            if other is None or (point.journal and not other.journal):
                after[point.parent.point] = point
    return [
        Change(times[parent], point.time_ns, sum(disk.bytes_changed for disk in point.disks.values()))
        for parent, point in after.items()
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
