# SPDX-License-Identifier: AGPL-3.0-or-later
"""`prune --undo` overtaken by others between any two of its changes: nothing that was taken back is dropped again [I-11]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from everywhen.formats.point import RecoveryPoint
from everywhen.repository.condemned import Condemnation, publish
from everywhen.repository.keys.keys import Unlocked
from everywhen.repository.ledger import Drop
from everywhen.repository.repository import Repository
from everywhen.services.catalog import read_catalog
from everywhen.services.keep import holding
from everywhen.services.keep.policies import set_delay
from everywhen.services.keep.pruning import TooLate, undo
from everywhen.storage.base import Buffer, ObjectStore
from everywhen.storage.forwarding import ForwardingStore
from everywhen.storage.memory import MemoryStore
from tests.laboratory import HOUR, SparseDisk, World, block


class Meddled(ForwardingStore):
    """Before its change number `at` (from 0), somebody else does something."""

    def __init__(self, inner: ObjectStore, at: int, deed: Callable[[], object]) -> None:
        super().__init__(inner)
        self._left, self._deed = at, deed

    def _meddle(self) -> None:
        self._left -= 1
        if self._left == -1:
            self._deed()

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        self._meddle()
        self.inner.put(name, parts, if_absent=if_absent)

    def delete(self, name: str) -> None:
        self._meddle()
        self.inner.delete(name)


class Place:
    """Three points, all in one drop."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.store = MemoryStore()
        self.unlocked: Unlocked = self.world.create(self.store, encrypted=False)
        self.points: list[RecoveryPoint] = []
        with self.open() as repository:
            for number in range(3):
                self.world.clock.advance(60)
                disk = SparseDisk(1 << 20, {number: block(number)})
                self.points.append(self.world.back_up(repository, {"vda": disk}))
            self.drop: Drop = self.world.drop(repository, *self.points, delay_s=72 * 3600)

    def open(self, store: ObjectStore | None = None) -> Repository:
        return self.world.open(store or self.store, self.unlocked)

    def undo(self, number: int, store: ObjectStore | None = None) -> None:
        with self.open(store) as repository:
            undo(repository, read_catalog(repository), [self.points[number].point])

    def dropped(self) -> set[str]:
        with self.open() as repository:
            return set(read_catalog(repository).dropped)

    def hold(self) -> None:
        with self.open() as repository:
            holding.hold(repository, self.points[1], "court", 0)

    def prolong(self) -> None:
        with self.open() as repository:
            set_delay(repository, 1000 * HOUR)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("other", [lambda place: place.undo(1), Place.hold])
def test_of_two_that_take_back_parts_of_one_drop_none_is_lost(place: Place, at: int, other: Callable[[Place], object]) -> None:
    done: list[bool] = []

    def meddle() -> None:
        other(place)
        done.append(True)

    place.undo(0, Meddled(place.store, at, meddle))
    if not done:
        other(place)
    assert place.dropped() == {place.points[2].point}


@pytest.mark.parametrize("at", range(4))
def test_a_longer_delay_does_not_drop_again_what_is_taken_back_at_the_same_time(place: Place, at: int) -> None:
    with place.open(Meddled(place.store, at, lambda: place.undo(0))) as repository:
        set_delay(repository, 1000 * HOUR)
    assert place.dropped() == {point.point for point in place.points[1:]}


def test_what_gc_condemned_is_not_taken_back(place: Place) -> None:
    late, *others = sorted(point.point for point in place.points)
    with place.open() as repository:
        publish(repository.documents, Condemnation("gc-1", frozenset(), frozenset({late}), place.world.clock()))
        with pytest.raises(TooLate, match=f"{late} cannot be taken back") as refused:
            undo(repository, read_catalog(repository), [])
        assert refused.value.safe == "Nothing was taken back."
        assert f"Name the others: everywhen prune --undo {' '.join(others)}" in refused.value.do
        assert undo(repository, read_catalog(repository), others) == (others, [])


@pytest.mark.parametrize("at", [0, 1])
def test_what_gc_condemns_at_the_same_moment_is_told(place: Place, at: int) -> None:
    def condemn() -> None:
        with place.open() as repository:
            points = frozenset({place.points[0].point})
            publish(repository.documents, Condemnation("gc-1", frozenset(), points, place.world.clock()))

    with pytest.raises(TooLate) as refused:
        place.undo(0, Meddled(place.store, at, condemn))
    assert "Nothing was taken back" not in refused.value.safe
