# SPDX-License-Identifier: AGPL-3.0-or-later
"""Points out of records: each holds what was written, and one that fails loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.block.patched import Patches
from everywhen.formats.point import ClockStep, RecoveryPoint, Tree
from everywhen.formats.segment import ZERO, Group, decode_group, encode_group
from everywhen.repository.disk import PointDisk
from everywhen.repository.repository import Repository
from everywhen.repository.writer import PointWriter, write_point
from everywhen.services.protect import sealing
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.replay import Replay
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World
from tests.records import COMPLETE, OPENED, clock_set, group, write

SIZE = 4 * BLOCK_SIZE
ORIGIN = Origin("a" * 32, 1, "b" * 32, {})
FIRST = (
    group(0, *OPENED, *COMPLETE, write(0, 3 * BLOCK_SIZE, b"x" * BLOCK_SIZE), write(1, 70_000, b"second")),
    decode_group(encode_group(6, 0, [(ZERO, 0, 3 * BLOCK_SIZE, BLOCK_SIZE, 0)], [], 1)),
)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    world, store = World(tmp_path), MemoryStore()
    with world.open(store, world.create(store, encrypted=False)) as opened:
        yield opened


def first(repository: Repository, writer: PointWriter) -> Sealer:
    disks = [SealedDisk("vda", SIZE, Tree(SIZE, None)), SealedDisk("vdb", SIZE, Tree(SIZE, None))]
    return Sealer(repository, writer, disks, Replay([Patches(), Patches()], 0, following=False))


def sealed(repository: Repository, parent: RecoveryPoint | None, *groups: Group) -> RecoveryPoint:
    with write_point(repository, "test", first_copy=True) as writer:
        if parent is None or parent.journal is None:
            sealer = first(repository, writer)
        else:
            sealer = Sealer.after(repository, writer, parent, parent.journal)
        for one in groups:
            sealer.feed(one)
        return sealer.commit(parent, ORIGIN, 0.5)


def contents(repository: Repository, point: RecoveryPoint) -> dict[str, bytes]:
    return {name: PointDisk(repository.fetcher, disk.tree).read(0, disk.tree.size) for name, disk in point.disks.items()}


def test_a_point_holds_what_was_written(repository: Repository) -> None:
    point = sealed(repository, None, *FIRST)
    assert contents(repository, point) == {"vda": bytes(SIZE), "vdb": (bytes(70_000) + b"second").ljust(SIZE, b"\0")}
    assert (point.reached, point.number, point.epoch) == ("crash", 1, 1)
    assert point.journal is not None
    assert (point.journal.sequence, point.journal.disks) == (7, ("vda", "vdb"))


def test_the_next_point_takes_up_where_the_last_one_was_made(repository: Repository) -> None:
    point = sealed(repository, None, *FIRST)
    later = sealed(repository, point, *FIRST, group(7, write(0, 5, b"later")))
    assert contents(repository, later)["vda"] == (bytes(5) + b"later").ljust(SIZE, b"\0")
    assert later.disks["vda"].bytes_read == BLOCK_SIZE, "nothing else is looked at again"
    assert later.parent is not None
    assert (later.parent.point, later.number) == (point.point, 2)


def test_many_changes_are_taken_in_by_parts(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_MEMORY", 2 * BLOCK_SIZE)
    groups = [group(4 + number, write(0, number * 30_000, bytes([1 + number]) * 30_000)) for number in range(8)]
    point = sealed(repository, None, group(0, *OPENED, *COMPLETE), *groups)
    expected = b"".join(bytes([1 + number]) * 30_000 for number in range(8)).ljust(SIZE, b"\0")
    assert contents(repository, point)["vda"] == expected
    assert point.disks["vda"].bytes_read > 4 * BLOCK_SIZE, "it was taken in more than once"


def test_whoever_waits_hears_that_it_goes_on(repository: Repository) -> None:
    """Systemd ends a service that says nothing for 10 minutes, and a spool that grew for hours takes longer."""
    heard = list[int]()
    with write_point(repository, "test", first_copy=True) as writer:
        sealer = first(repository, writer)
        sealer.alive = lambda: heard.append(sealer.replay.sequence)
        for one in FIRST:
            sealer.feed(one)
        assert heard == [0, 6]
        sealer.commit(None, ORIGIN, 0.5)
    assert set(heard[2:]) == {7}, "while changes are taken in, too"


def test_points_say_when_the_clock_was_set(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_CLOCK_STEPS", 3)
    point = sealed(repository, None, *FIRST)
    found = []
    for number in range(4):
        point = sealed(repository, point, group(7 + number, clock_set(40 + number, 3)))
        assert point.journal is not None
        found.append(point.journal.clock_steps)
    steps = [ClockStep(1000 * (7 + number), 40 + number, 3) for number in range(4)]
    assert found == [tuple(steps[:1]), tuple(steps[:2]), tuple(steps[:3]), tuple(steps[1:])]
    assert repository.points.get(point.point) == point


def test_another_stream_has_its_own_steps(repository: Repository) -> None:
    before = sealed(repository, None, *FIRST, group(7, clock_set(40, 3)))
    with write_point(repository, "test", first_copy=False) as writer:
        sealer = first(repository, writer)
        for one in FIRST:
            sealer.feed(one)
        point = sealer.commit(before, Origin("a" * 32, 1, "c" * 32, {}), 0.5)
    assert before.journal is not None
    assert point.journal is not None
    assert (len(before.journal.clock_steps), point.journal.clock_steps) == (1, ())
