# SPDX-License-Identifier: AGPL-3.0-or-later
"""The reserve and the thresholds, on a medium whose size is set by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from everywhen.repository import space
from everywhen.repository.errors import LowOnSpace
from everywhen.repository.ledger import Drop, Ledger
from everywhen.storage.base import Buffer, ObjectNotFound, OutOfSpace, Space
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World


class Medium(MemoryStore):
    """A store of `total` bytes of which `taken` are others'; preallocated objects count with their size."""

    def __init__(self, total: int, taken: int = 0) -> None:
        super().__init__()
        self.total = total
        self.taken = taken
        self.allocated: dict[str, int] = {}

    def space(self) -> Space:
        used = self.taken + sum(self.allocated.values()) + sum(found.size for found in self.list())
        return Space(self.total, max(0, self.total - used))

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        size = sum(memoryview(part).nbytes for part in parts)
        if size > self.space().free:
            raise OutOfSpace(name, "full")
        super().put(name, parts, if_absent=if_absent)

    def preallocate(self, name: str, size: int) -> None:
        if size > self.space().free:
            raise OutOfSpace(name, "full")
        self.allocated[name] = size
        super().put(name, [])

    def delete(self, name: str) -> None:
        self.allocated.pop(name, None)
        super().delete(name)


GB = 1 << 30


def test_sizes_of_the_reserve() -> None:
    assert space.reserve_size(Medium(100 * GB)) == 2 * GB
    assert space.reserve_size(Medium(GB)) == 256 << 20
    assert space.reserve_size(MemoryStore()) == 0


def test_made_given_up_and_made_again() -> None:
    store = Medium(100 * GB)
    assert space.want_reserve(store)
    assert store.space().free == 98 * GB
    store.taken = 98 * GB
    space.release_reserve(store)
    assert store.space().free == 2 * GB
    store.taken += GB
    assert not space.make_reserve(store)
    assert space.RESERVE not in store.allocated
    store.taken = 0
    assert space.make_reserve(store)
    assert store.allocated[space.RESERVE] == 2 * GB
    assert space.make_reserve(store)
    assert store.space().free == 98 * GB


def test_nobody_makes_a_reserve_that_is_not_wanted() -> None:
    store = Medium(100 * GB)
    assert space.make_reserve(store)
    assert store.space().free == 100 * GB


@pytest.mark.parametrize("reserve", [True, False])
def test_thresholds(reserve: bool) -> None:
    store = Medium(100 * GB)
    if reserve:
        space.want_reserve(store)
    own = 2 * GB if reserve else 0
    for free, first, following in (
        (5 * GB, True, True),
        (5 * GB - 1, False, True),
        (2 * GB, False, True),
        (2 * GB - 1, False, False),
    ):
        store.taken = 100 * GB - own - free
        for first_copy, allowed in ((True, first), (False, following)):
            if allowed:
                space.demand_room(store, first_copy=first_copy)
            else:
                with pytest.raises(LowOnSpace, match="Nothing stored is lost"):
                    space.demand_room(store, first_copy=first_copy)
    space.demand_room(MemoryStore(), first_copy=True)


def test_what_the_reserve_lent_is_not_for_backups() -> None:
    store = Medium(100 * GB)
    space.want_reserve(store)
    store.taken = 98 * GB
    space.release_reserve(store)
    assert store.space().free == 2 * GB
    with pytest.raises(LowOnSpace):
        space.demand_room(store, first_copy=False)


def test_a_full_disk_can_be_pruned(tmp_path: Path) -> None:
    world, store = World(tmp_path), Medium(100 * GB)
    unlocked = world.create(store, encrypted=False)
    space.want_reserve(store)
    with world.open(store, unlocked) as repository:
        store.taken = store.space().free
        assert store.space().free == 0
        ledger = Ledger(repository.documents)
        ledger.put_drop(Drop("d" * 16, ["p-000000000000"], 1, 2, "test", "tester"))
        assert [drop.drop for drop in ledger.drops()] == ["d" * 16]
        with pytest.raises(ObjectNotFound):
            store.size(space.RESERVE)


def test_a_dry_run_of_gc_makes_no_reserve(tmp_path: Path) -> None:
    store, world = Medium(100 * GB), World(tmp_path)
    with world.open(store, world.create(store, encrypted=False)) as repository:
        space.want_reserve(store)
        world.collect(repository, dry_run=True)
        assert space.RESERVE in store.allocated
        space.release_reserve(store)
        world.collect(repository, dry_run=True)
        assert space.RESERVE not in store.allocated
        world.collect(repository)
        assert space.RESERVE in store.allocated
        # What a dry run lends itself for its lock on a full medium, it gives back.
        store.taken = store.space().free
        world.collect(repository, dry_run=True)
        assert space.RESERVE in store.allocated
