# SPDX-License-Identifier: AGPL-3.0-or-later
"""The line of a VM's history against a model that knows, nanosecond by nanosecond, what was captured."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from everywhen.formats.ids import PointId
from everywhen.formats.point import ClockStep, Disk, Gap, JournalPosition, ParentLink, RecoveryPoint, Tree
from everywhen.repository.journal_spans import kept_spans
from everywhen.services.timeline import Missing, Reach, Timeline, cells, timeline


def point(number: int, time_ns: int, journal: JournalPosition | None) -> RecoveryPoint:
    parent = ParentLink(PointId(f"p-{number - 1:012}"), bytes(32)) if number > 1 else None
    return RecoveryPoint(
        PointId(f"p-{number:012}"), "a" * 32, time_ns, number, 1, parent, "crash", "crash", "", {}, journal=journal
    )


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[RecoveryPoint], list[tuple[int, int]], list[tuple[int, int]], int]:
    """All points that were made; stretches that were captured; gaps between them; until when the last one is known."""
    now, number, sequence = 100, 0, 0
    points: list[RecoveryPoint] = []
    captured: list[tuple[int, int]] = []
    gaps: list[tuple[int, int]] = []
    for stream in range(draw(st.integers(1, 4))):
        gap = None
        if captured:
            before, now = now, now + draw(st.integers(1, 40))
            gap = Gap(before, f"cause {stream}")
            gaps.append((before, now))
            for at in sorted(draw(st.lists(st.integers(points[-1].time_ns, now), max_size=2))):
                number += 1  # a backup, made of the capture's last point; the next one's first is made of it
                points.append(point(number, at, None))
        began = now
        for step in range(draw(st.integers(1, 4))):
            if step:
                now += draw(st.integers(1, 30))
            number, sequence = number + 1, sequence + 1
            points.append(point(number, now, JournalPosition(f"{stream:032}", sequence, ("vda",), began, gap)))
        now += draw(st.integers(0, 20))
        captured.append((began, now))
    return points, captured, gaps, now


def covered(line: Timeline) -> set[int]:
    return {at for one in line.coverage for at in range(one.from_ns, one.to_ns + 1)}


@given(histories())
def test_what_was_captured_and_what_was_not(
    history: tuple[list[RecoveryPoint], list[tuple[int, int]], list[tuple[int, int]], int],
) -> None:
    points, captured, gaps, until = history
    line = timeline(points[::-1], Reach(covered_ns=until))
    assert covered(line) == {at for begin, end in captured if end > begin for at in range(begin, end + 1)}
    assert [(gap.from_ns, gap.to_ns) for gap in line.gaps] == gaps
    assert [gap.why for gap in line.gaps] == [f"cause {number}" for number in range(1, len(captured))]
    assert line.newest_ns == until
    lost = timeline(points, Reach(covered_ns=until, lost="the spool is full"))
    assert (lost.gaps[-1].from_ns, lost.gaps[-1].to_ns, lost.gaps[-1].why) == (until, None, "the spool is full")


@given(histories(), st.data())
def test_points_that_are_dropped_take_their_moments_with_them_and_no_gap(
    history: tuple[list[RecoveryPoint], list[tuple[int, int]], list[tuple[int, int]], int], data: st.DataObject
) -> None:
    points, captured, gaps, until = history
    kept = [point for point in points if data.draw(st.booleans())]
    line = timeline(kept, Reach(covered_ns=until if kept and kept[-1] is points[-1] else None))
    everything = {at for begin, end in captured for at in range(begin, end + 1)}
    assert covered(line) <= everything, "nothing is claimed that was not captured"
    for before, after in pairwise(points):
        inner = range(before.time_ns + 1, after.time_ns)
        if (before not in kept or after not in kept) and inner:
            assert covered(line).isdisjoint(inner), "what a dropped point carried cannot be opened"
    streams = {point.journal.stream for point in kept if point.journal}
    oldest = kept[0].time_ns if kept else 0
    expected = [gap for stream, gap in enumerate(gaps, 1) if f"{stream:032}" in streams and gap[1] > oldest]
    assert [(gap.from_ns, gap.to_ns) for gap in line.gaps] == expected


@given(histories(), st.integers(0, 300), st.integers(1, 300), st.integers(1, 50))
def test_a_picture_hides_no_gap_and_no_point(
    history: tuple[list[RecoveryPoint], list[tuple[int, int]], list[tuple[int, int]], int], begin: int, length: int, count: int
) -> None:
    points, captured, gaps, until = history
    end = begin + length
    line = timeline(points, Reach(covered_ns=until)).within(begin, end)
    drawn = cells(line, begin, end, count)
    assert len(drawn) == count
    assert [one for cell in drawn for one in cell.points] == [one for one in points if begin <= one.time_ns <= end]
    step = Fraction(length, count)
    for number, cell in enumerate(drawn):
        low, high = begin + number * step, begin + (number + 1) * step
        # What touches a border may be drawn on either side of it.
        if any(first < high and last > low for first, last in gaps):
            assert cell.gap, "a gap, however short, is seen"
        if not any(first <= high and last >= low for first, last in gaps):
            assert not cell.gap
        if any(first < high and last > low for first, last in captured if first < last):
            assert cell.covered
        if not any(first <= high and last >= low for first, last in captured):
            assert not cell.covered


def test_what_backups_of_images_make_are_points_alone() -> None:
    line = timeline([point(1, 10, None), point(2, 20, None)], Reach())
    assert (line.coverage, line.gaps, line.newest_ns) == ([], [], 20)
    assert timeline([], Reach()).newest_ns is None


def test_changes_are_spread_over_the_time_in_which_they_were_made() -> None:
    first = point(1, 0, None)
    second = replace(point(2, 100, None), disks={"vda": Disk(Tree(1, None), "raw", 0, 1000, 0)})
    line = timeline([first, second], Reach())
    assert [round(cell.size) for cell in cells(line, 0, 200, 8)] == [250, 250, 250, 250, 0, 0, 0, 0]


def test_a_backup_beside_a_capture_is_no_gap() -> None:
    first, last = (point(number, at, JournalPosition("a" * 32, at, ("vda",), 10)) for number, at in ((1, 10), (2, 20)))
    image = Disk(Tree(1, None), "raw", 0, 1000, 0)
    beside = replace(point(2, 15, None), point=PointId("p-bbbbbbbbbbbb"), disks={"vda": image})
    last = replace(last, disks={"vda": image})
    line = timeline([first, beside, last], Reach(covered_ns=30))
    assert (covered(line), line.gaps, line.beside) == (set(range(10, 31)), [], [])
    assert [(change.from_ns, change.to_ns) for change in line.changes] == [(10, 20)], "the same changes are counted once"
    idle = timeline([first, beside], Reach(covered_ns=30))
    assert covered(idle) == set(range(10, 31)), "the capture goes on, also when the newest point is not of it"


def test_a_backup_in_a_gap_hides_nothing_that_was_captured_before_it() -> None:
    def of(number: int, at: int, stream: str, gap: Gap | None = None) -> RecoveryPoint:
        return point(number, at, JournalPosition(stream * 32, at, ("vda",), 300 if stream == "b" else 100, gap))

    gap = Gap(250, "the spool is full")
    before, backup, after = [of(1, 100, "a"), of(2, 200, "a")], point(3, 270, None), of(4, 300, "b", gap)
    line = timeline([*before, backup, after], Reach())
    assert (covered(line), line.gaps) == (set(range(100, 251)), [Missing(250, 300, "the spool is full")])
    # One that was dropped captured after 200: when the older one ended nobody knows any more.
    later = replace(of(4, 300, "b", gap), parent=ParentLink(PointId("p-dropped"), bytes(32)))
    assert covered(timeline([*before, backup, later], Reach())) == set(range(100, 201))


def test_two_captures_are_two_branches() -> None:
    """The older one has made a point after the later one's first moment."""

    def of(name: str, number: int, at: int, stream: str, epoch: int, gap: Gap | None = None) -> RecoveryPoint:
        position = JournalPosition(stream * 32, at, ("vda",), 10 if stream == "a" else 25, gap)
        return replace(point(number, at, position), point=PointId(name), epoch=epoch)

    old = [of("p-1", 1, 10, "a", 1), of("p-2", 2, 20, "a", 1)]
    late = of("p-3", 3, 30, "a", 1)
    new = [of("q-1", 2, 25, "b", 2, Gap(10, "not running")), of("q-2", 3, 35, "b", 2, Gap(10, "not running"))]
    line = timeline([*old, late, *new], Reach())
    assert ([one.point for one in line.points], line.beside) == (["p-1", "p-2", "q-1", "q-2"], [late])
    assert covered(line) == set(range(10, 36)), "until the later one's first moment every write of the older one can be opened"
    assert line.gaps == []
    assert line.newest_ns == 35
    without = timeline([*old, *new], Reach())
    assert covered(without) == {*range(10, 21), *range(25, 36)}
    assert [(gap.from_ns, gap.to_ns) for gap in without.gaps] == [(20, 25)]
    alone = timeline([*old, late, new[0]], Reach())
    assert covered(alone) == set(range(10, 26)), "nothing of the older one's is in the history from then on"
    assert timeline([*old, late, *new], Reach()).within(0, 26).beside == []


@st.composite
def two_captures(draw: st.DrawFn) -> tuple[list[RecoveryPoint], dict[str, int]]:
    """An older capture and a later one of one VM, and backups beside them; until when each one captured, by stream."""
    begins = {"a": 10, "b": draw(st.integers(20, 60))}
    ends = {"a": draw(st.integers(12, 90)), "b": begins["b"] + draw(st.integers(1, 40))}
    times = {name: [begins[name], *draw(st.sets(st.integers(begins[name] + 1, ends[name]), max_size=4))] for name in "ab"}
    backups = draw(st.sets(st.integers(11, 99), max_size=3))
    made: list[RecoveryPoint] = []
    newest: dict[str, RecoveryPoint] = {}
    for at, name in sorted([(at, one) for one in "ab" for at in times[one]] + [(at, "") for at in backups]):
        # A capture follows its own newest point; who begins, and a backup, whichever it has read, which may be an older one.
        parent = newest.get(name) or (draw(st.sampled_from(made)) if made else None)
        gap = Gap(parent.time_ns, "not running") if parent and parent.journal and name == "b" else None
        if name and newest.get(name):
            gap = newest[name].journal.gap  # type: ignore[union-attr]
        position = JournalPosition(name * 32, at, ("vda",), begins[name], gap) if name else None
        one = replace(
            point(parent.number + 1 if parent else 1, at, position),
            point=PointId(f"p-{len(made)}"),
            epoch=2 if name == "b" else parent.epoch if parent else 1,
            parent=ParentLink(parent.point, bytes(32)) if parent else None,
        )
        made.append(one)
        if name:
            newest[name] = one
    return made, {name * 32: end for name, end in ends.items()}


@given(two_captures(), st.data())
def test_of_two_captures_nothing_is_claimed_that_no_time_leads_to(
    history: tuple[list[RecoveryPoint], dict[str, int]], data: st.DataObject
) -> None:
    points, ends = history
    kept = [one for one in points if data.draw(st.booleans())]
    newest = max((one for one in kept if one.journal), key=lambda one: (one.epoch, one.number), default=None)
    reach = ends[newest.journal.stream] if newest and newest.journal else None
    line = timeline(kept, Reach(covered_ns=reach))
    assert {one.point for one in (*line.points, *line.beside)} == {one.point for one in kept}
    assert all(one.journal and one.journal.stream == "a" * 32 for one in line.beside)
    spans = {span.point.point: span for span in kept_spans(kept)}
    assert newest is None or newest.point in spans, "what a capture wrote since its newest point is never taken away"
    for at in covered(line):
        carrier = [one for one in line.points if one.journal and one.time_ns <= at][-1]
        assert carrier.journal is not None
        assert carrier.point in spans or at == carrier.time_ns
        assert at <= ends[carrier.journal.stream] or at == carrier.time_ns
    for gap in line.gaps:
        assert covered(line).isdisjoint(range(gap.from_ns + 1, gap.to_ns or 0)), "no gap where something can be opened"


def test_the_clocks_steps_are_those_of_all_points_that_are_kept() -> None:
    steps = [ClockStep(at, at + 37, at) for at in (15, 30, 45)]
    kept = [(20, steps[:1]), (40, steps[:2]), (60, steps)]
    points = [
        point(number, at, JournalPosition("a" * 32, at, ("vda",), 10, clock_steps=tuple(of_point)))
        for number, (at, of_point) in enumerate(kept, 1)
    ]
    assert timeline(points, Reach()).clock_steps == steps
    assert timeline([points[0]], Reach()).clock_steps == steps[:1]
    assert timeline(points, Reach()).within(15, 44).clock_steps == steps[:2]
    assert timeline(points, Reach()).within(16, 29).clock_steps == []
