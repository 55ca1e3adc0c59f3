# SPDX-License-Identifier: AGPL-3.0-or-later
"""Stores that are full, that fail for a moment, or that lose answers, at every change of a backup and of gc (I-2, I-9).

Whatever fails, fails with an error of its own kind; what was acknowledged before stays whole; and the next try works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from everywhen.formats.ids import PointId
from everywhen.formats.point import RecoveryPoint
from everywhen.repository import space
from everywhen.repository.gc import gc
from everywhen.repository.keys.keys import Unlocked
from everywhen.repository.reading import opened_points
from everywhen.repository.repository import Repository
from everywhen.storage.base import AlreadyExists, Buffer, ObjectStore, OutOfSpace, StorageError, Unavailable
from everywhen.storage.faulty import Fault, FaultyStore
from everywhen.storage.forwarding import ForwardingStore
from everywhen.storage.memory import MemoryStore, StoredObject
from tests.interleaving import no_threads
from tests.laboratory import SparseDisk, World, block, shrink_packs, touched, truth_of


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_packs(monkeypatch, 16 << 10)
    no_threads(monkeypatch)


@dataclass(frozen=True, slots=True)
class Start:
    """A repository with two live points and a dropped one, whose packs are worth rewriting."""

    world: World
    unlocked: Unlocked
    objects: dict[str, StoredObject]
    live: list[RecoveryPoint]
    disk: SparseDisk

    @property
    def expected(self) -> set[PointId]:
        return {point.point for point in self.live}

    def store(self) -> MemoryStore:
        store = MemoryStore()
        store.restore(self.objects)
        return store

    def back_up(self, repository: Repository) -> RecoveryPoint:
        disk = self.disk.copy()
        disk.blocks |= {number: block(("more", number)) for number in range(20, 40)}
        return self.world.back_up(repository, {"vda": disk}, {"vm.xml": b"<vm/>"}, parent=self.live[-1])

    def sound(self, store: ObjectStore, *points: RecoveryPoint) -> None:
        """All that was acknowledged is whole, and gc and a backup work and leave it so."""
        expected = self.expected | {point.point for point in points}
        with self.world.open(store, self.unlocked) as repository:
            self.world.audit(repository, expected)
            self.world.clock.advance(3600)
            self.world.collect(repository)
            self.world.audit(repository, expected)
            expected.add(self.back_up(repository).point)
            self.world.clock.advance(2 * 24 * 3600)
        with self.world.open(store, self.unlocked) as repository:
            self.world.collect(repository)
            self.world.audit(repository, expected)
            assert not any(found.name.startswith(("condemned/", "lock/")) for found in store.list())


@pytest.fixture
def start(tmp_path: Path) -> Start:
    world = World(tmp_path)
    store = MemoryStore()
    unlocked = world.create(store, encrypted=True)
    with world.open(store, unlocked) as repository:
        disk = SparseDisk(5 << 20, {number: block(number) for number in range(20)})
        dropped = world.back_up(repository, {"vda": disk})
        disk = SparseDisk(5 << 20, {number: block(number) for number in range(0, 20, 4)})
        live = [world.back_up(repository, {"vda": disk}, parent=dropped)]
        disk.blocks[8] = touched(disk.blocks[8], 1)
        live.append(world.back_up(repository, {"vda": disk}, parent=live[0]))
        world.drop(repository, dropped)
    world.clock.advance(3600)
    return Start(world, unlocked, store.snapshot(), live, disk)


Work = Callable[[Start, Repository], object]


def backing_up(start: Start, repository: Repository) -> object:
    return start.back_up(repository)


def collecting(start: Start, repository: Repository) -> object:
    return start.world.collect(repository)


def reading(start: Start, repository: Repository) -> object:
    with opened_points(repository, "restore", start.live):
        return [truth_of(repository, point) for point in start.live]


def failing(start: Start, work: Work, fault: Callable[[int], Fault], least: int) -> set[type]:
    """Let each change in turn go wrong until none is left; the kinds of errors that came of it."""
    seen: set[type] = set()
    for number in range(1, 1000):
        store = FaultyStore(start.store())
        with start.world.open(store, start.unlocked) as repository:
            struck = fault(number)
            store.add(struck)
            done: list[RecoveryPoint] = []
            try:
                result = work(start, repository)
                done = [result] if isinstance(result, RecoveryPoint) else []
            except StorageError as error:
                seen.add(type(error))
            hit = struck._seen >= number
            store.heal()
        start.sound(store, *done)
        if not hit:
            assert number > least
            return seen
    raise AssertionError("it never ends")


@pytest.mark.parametrize(("work", "least"), [(backing_up, 6), (collecting, 3), (reading, 1)])
def test_full_from_any_put_on(start: Start, work: Work, least: int) -> None:
    kinds = failing(start, work, lambda number: Fault("put", number, error=OutOfSpace, lasting=True), least)
    assert kinds <= {OutOfSpace}
    if work is reading:
        assert not kinds  # nothing needs to be written to read


@pytest.mark.parametrize("kind", ["put", "delete"])
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize(("work", "least"), [(backing_up, 1), (collecting, 3)])
def test_unavailable_for_a_moment(start: Start, work: Work, least: int, kind: str, done: bool) -> None:
    kinds = failing(start, work, lambda number: Fault(kind, number, error=Unavailable, done=done), least)  # type: ignore[arg-type]
    assert kinds <= {Unavailable}


class Forgetful(ForwardingStore):
    """A store whose own client tries again when an answer is lost; so what it put first, it finds there."""

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        self.inner.put(name, parts, if_absent=if_absent)
        self.inner.put(name, parts, if_absent=if_absent)


def test_a_lost_answer_is_not_a_fence(start: Start) -> None:
    store = Forgetful(start.store())
    with pytest.raises(AlreadyExists):
        store.put("probe", [b""], if_absent=True)
    store.delete("probe")
    with start.world.open(store, start.unlocked) as repository:
        new = start.back_up(repository)
        start.world.drop(repository, start.live[0])
        start.world.clock.advance(3600)
        assert start.world.collect(repository).points_deleted == 2
        start.world.audit(repository, {start.live[1].point, new.point}, twins=True)


class Preallocating(MemoryStore):
    """A store with room for exactly so much, that can set room aside."""

    def preallocate(self, name: str, size: int) -> None:
        self.put(name, [bytes(size)])


@pytest.mark.parametrize("slack", [0, 1, 300, 700, 1500, 3000])
def test_gc_finishes_on_a_full_medium(start: Start, monkeypatch: pytest.MonkeyPatch, slack: int) -> None:
    """With 0 bytes free, or with a little, so that the reserve is needed at the first put or at a later one."""
    monkeypatch.setattr(space, "SMALLEST_RESERVE", 16 << 10)
    monkeypatch.setattr(gc, "_AT_ONCE", 4 << 10)
    store = start.store()
    used = sum(len(stored.content) for stored in start.objects.values())
    full = Preallocating(capacity=used + (16 << 10) + 5000)
    full.restore(store.snapshot())
    with start.world.open(full, start.unlocked) as repository:
        assert space.want_reserve(full)
        room = full.space()
        assert room
        full.put("filler", [bytes(room.free - slack)])
        with pytest.raises(OutOfSpace):
            full.put("more", [bytes(slack + 1)])
        collected = start.world.collect(repository)
        assert collected.points_deleted == 1
        assert collected.bytes_freed > 2 * collected.bytes_copied
        start.world.audit(repository, start.expected)
    assert not any(found.name.startswith(("condemned/", "lock/")) for found in full.list())
    assert space.RESERVE in {found.name for found in full.list("reserve/")}


def test_a_full_medium_can_be_read(start: Start) -> None:
    store = start.store()
    full = MemoryStore(capacity=sum(len(stored.content) for stored in start.objects.values()))
    full.restore(store.snapshot())
    with start.world.open(full, start.unlocked) as repository:
        assert reading(start, repository) == [start.world.truths[point.point] for point in start.live]
