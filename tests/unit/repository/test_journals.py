# SPDX-License-Identifier: AGPL-3.0-or-later
"""Journals in a repository: read in order, kept as long as the points on both sides stay, judged by verify."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from everywhen.block.patched import Patches
from everywhen.formats.ids import PointId
from everywhen.formats.point import RecoveryPoint, Tree
from everywhen.formats.segment import Group
from everywhen.repository.errors import Damaged
from everywhen.repository.journal import Journal, streams
from everywhen.repository.journal_spans import kept_spans
from everywhen.repository.repository import Repository
from everywhen.repository.verify.findings import Finding
from everywhen.repository.verify.verify import Watching, judging
from everywhen.repository.writer import write_point
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.replay import Replay
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World
from tests.records import COMPLETE, OPENED, group, put_segment, write

STREAM, OTHER = "ab" * 16, "cd" * 16
SIZE = 1 << 20


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(params=[True, False], ids=["encrypted", "not encrypted"])
def repository(world: World, request: pytest.FixtureRequest) -> Iterator[Repository]:
    store = MemoryStore()
    with world.open(store, world.create(store, encrypted=request.param)) as opened:
        yield opened


def wrote(first: int, count: int) -> Group:
    """A group of writes, one after another over the same bytes."""
    return group(first, *(write(0, 0, bytes([1 + number % 250])) for number in range(first, first + count)))


def sealed(repository: Repository, parent: RecoveryPoint | None, stream: str, *groups: Group) -> RecoveryPoint:
    """The point after these groups of a stream; the stream's first when `parent` is of another one."""
    with write_point(repository, "test", first_copy=False) as writer:
        if parent and parent.journal and parent.journal.stream == stream:
            sealer = Sealer.after(repository, writer, parent, parent.journal)
        else:
            disks = [SealedDisk("vda", SIZE, Tree(SIZE, None)), SealedDisk("vdb", SIZE, Tree(SIZE, None))]
            sealer = Sealer(repository, writer, disks, Replay([Patches(), Patches()], 0, following=False))
        for one in groups:
            sealer.feed(one)
        return sealer.commit(parent, Origin("f" * 32, 1, stream, {}), 0.1)


@pytest.fixture
def line(repository: Repository) -> list[RecoveryPoint]:
    """Points after records 4, 10, 20 and 30 of one stream, whose segments have 0-9, 10-19, 20-29 and 30-39."""
    groups = [group(0, *OPENED, *COMPLETE), wrote(4, 6), wrote(10, 10), wrote(20, 10), wrote(30, 10)]
    points: list[RecoveryPoint] = []
    for last in (1, 2, 3, 4):
        points.append(sealed(repository, points[-1] if points else None, STREAM, *groups[:last]))
    put_segment(repository, STREAM, 0, groups[0], groups[1])
    for number in (1, 2, 3):
        put_segment(repository, STREAM, number, groups[number + 1])
    return points


def numbers(repository: Repository) -> list[int]:
    return sorted(streams(repository).get(STREAM, {}))


def findings(repository: Repository, *, read_data: bool) -> list[Finding]:
    with judging(repository, Watching(lambda _a, _b: None, lambda _a, _b, _c: None), read_data=read_data) as judgement:
        return judgement.verdict.findings


def test_groups_from_a_record_on(repository: Repository, line: list[RecoveryPoint]) -> None:
    journal = Journal(repository, STREAM)
    assert [one.sequence for one in journal.groups(0)] == [0, 4, 10, 20, 30]
    assert [one.sequence for one in journal.groups(19)] == [10, 20, 30]
    assert [one.sequence for one in journal.groups(20)] == [20, 30]
    assert [one.sequence for one in journal.groups(40)] == []
    assert line[2].journal is not None
    assert line[2].journal.sequence == 20


@pytest.mark.parametrize(
    ("stay", "spans"),
    [
        ((0, 1, 2, 3), [(4, 10), (10, 20), (20, 30), (30, None)]),
        ((0, 2, 3), [(20, 30), (30, None)]),
        ((0, 1, 3), [(4, 10), (30, None)]),
        ((0, 1, 2), [(4, 10), (10, 20), (20, None)]),
        ((1,), [(10, None)]),
        ((), []),
    ],
)
def test_what_lies_between_neighbours_is_kept(
    line: list[RecoveryPoint], stay: tuple[int, ...], spans: list[tuple[int, int | None]]
) -> None:
    assert [(span.begin, span.end) for span in kept_spans([line[number] for number in stay])] == spans


def test_the_end_of_a_stream_stays_as_long_as_what_came_after_the_gap(
    repository: Repository, line: list[RecoveryPoint]
) -> None:
    after = sealed(repository, line[3], OTHER, group(0, *OPENED, *COMPLETE, write(0, 5, b"x")))
    later = sealed(repository, after, OTHER, group(5, write(0, 6, b"y")))
    assert (STREAM, 30, None) in [(span.stream, span.begin, span.end) for span in kept_spans([*line, after, later])]
    assert [(span.stream, span.begin) for span in kept_spans([line[3], later])] == [(OTHER, 6)]


def dropped(world: World, repository: Repository, *points: RecoveryPoint) -> int:
    """Points dropped for good; how many segments went with them."""
    world.drop(repository, *points)
    world.clock.advance(1000)
    return world.collect(repository).segments_deleted


def test_gc_deletes_what_no_moment_reaches_and_nothing_else(
    world: World, repository: Repository, line: list[RecoveryPoint]
) -> None:
    put_segment(repository, OTHER, 0, wrote(0, 5))  # of a VM that is gone
    assert world.collect(repository, dry_run=True).segments_deleted == 1
    assert world.collect(repository).segments_deleted == 1
    assert numbers(repository) == [0, 1, 2, 3]
    assert (dropped(world, repository, line[1]), numbers(repository)) == (2, [2, 3])
    assert dropped(world, repository, line[3]) == 0, "the newest point that stays is followed by all there is"
    assert dropped(world, repository, line[0], line[2]) == 2
    assert streams(repository) == {}


def test_what_is_dropped_but_can_be_taken_back_stays(world: World, repository: Repository, line: list[RecoveryPoint]) -> None:
    world.drop(repository, *line[:2], delay_s=3600)
    world.collect(repository)
    assert numbers(repository) == [0, 1, 2, 3]


def test_whole_journals_are_no_finding(repository: Repository, line: list[RecoveryPoint]) -> None:
    assert line
    assert findings(repository, read_data=False) == findings(repository, read_data=True) == []
    repository.store.delete(f"journals/{STREAM}/{3:016x}")
    assert findings(repository, read_data=True) == [], "the end may be on its way"


@pytest.mark.parametrize("read_data", [False, True])
def test_a_missing_segment(repository: Repository, line: list[RecoveryPoint], *, read_data: bool) -> None:
    repository.store.delete(f"journals/{STREAM}/{1:016x}")
    (found,) = findings(repository, read_data=read_data)
    assert (found.object, "records 10 to 19" in found.why) == (f"journals/{STREAM}/{2:016x}", True)
    assert [loss.points[0][0] for loss in found.losses] == [line[1].point]
    with pytest.raises(Damaged, match="10 to 19 are missing"):
        list(Journal(repository, STREAM).groups(4))


@pytest.mark.parametrize(("at", "read_data"), [(20, False), (100, True), (300, True), (-1, True)])
def test_a_flipped_bit(repository: Repository, line: list[RecoveryPoint], at: int, *, read_data: bool) -> None:
    name = f"journals/{STREAM}/{2:016x}"
    data = bytearray(repository.store.get(name))
    data[at] ^= 4
    repository.store.put(name, [bytes(data)])
    (found,) = findings(repository, read_data=read_data)
    assert found.object == name
    assert line[2].point in [loss.points[0][0] for loss in found.losses]
    with pytest.raises(Damaged, match=name):
        list(Journal(repository, STREAM).groups(20))


def test_another_segment_in_its_place(repository: Repository, line: list[RecoveryPoint]) -> None:
    assert line
    repository.store.put(f"journals/{STREAM}/{2:016x}", [repository.store.get(f"journals/{STREAM}/{1:016x}")])
    with pytest.raises(Damaged, match="another segment"):
        list(Journal(repository, STREAM).groups(20))


def test_numbers_may_repeat_on_branches_of_other_vms(line: list[RecoveryPoint]) -> None:
    other = [replace(point, vm="e" * 32) for point in line[:2]]
    assert len(kept_spans([*line, *other])) == 6


def test_a_backup_of_a_vm_under_capture_takes_no_number_away(line: list[RecoveryPoint]) -> None:
    """It has the same parent as the capture's next point, and so the same number."""
    beside = replace(line[2], point=PointId("p-00000000000b"), journal=None)
    for points in ([*line, beside], [beside, *line]):
        assert sorted(kept_spans(points), key=lambda span: span.begin) == kept_spans(line)


def test_what_is_no_segment_is_none(repository: Repository, line: list[RecoveryPoint]) -> None:
    there = numbers(repository)
    for name in ("notes.txt", "not-hexadecimal-"):
        repository.store.put(f"journals/{STREAM}/{name}", [b"x"])
    assert Journal(repository, STREAM).numbers() == list(streams(repository)[STREAM]) == there
