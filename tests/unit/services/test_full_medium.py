# SPDX-License-Identifier: AGPL-3.0-or-later
"""On a full medium people can still decide: the reserve makes room for holds, policies, delays and key slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from everywhen.repository.keys import keys
from everywhen.repository.ledger import Ledger, Vm
from everywhen.repository.repository import Repository
from everywhen.repository.space import RESERVE
from everywhen.services.catalog import read_catalog
from everywhen.services.keep import holding, pruning
from everywhen.services.keep.policies import BUILT_IN, set_default, set_delay, set_policy
from everywhen.storage.base import Buffer, OutOfSpace
from everywhen.storage.memory import MemoryStore
from tests.laboratory import HOUR, SparseDisk, World, block


class Full(MemoryStore):
    """As long as the reserve is there, takes `room` more objects and then nothing."""

    room = 10**9

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        if RESERVE in self.snapshot():
            if not self.room:
                raise OutOfSpace(name, "full")
            self.room -= 1
        super().put(name, parts, if_absent=if_absent)


def _hold(repository: Repository, world: World) -> None:
    point = next(iter(read_catalog(repository).points))
    holding.hold(repository, point, "court", 0)
    assert [one.point for one in Ledger(repository.documents).holds()] == [point.point]


def _undo(repository: Repository, world: World) -> None:
    catalog = read_catalog(repository)
    assert pruning.undo(repository, catalog, []) == ([catalog.dropped_points[0].point], [])


def _policy(repository: Repository, world: World) -> None:
    [vm] = Ledger(repository.documents).vms()
    set_policy(repository, vm, BUILT_IN)
    assert Ledger(repository.documents).vms()[0].policy


def _default(repository: Repository, world: World) -> None:
    set_default(repository, BUILT_IN)
    assert repository.documents.get("settings/policy")["policy"]


def _delay(repository: Repository, world: World) -> None:
    [longer] = set_delay(repository, 1000 * HOUR)
    assert Ledger(repository.documents).drops()[0].effective_ns == longer.effective_ns


def _key(repository: Repository, world: World) -> None:
    keys.add_passphrase(repository.store, repository.unlocked, world.mint(), "second")
    assert keys.unlock(repository.store, repository.unlocked.superblock, "second")


def _change(repository: Repository, world: World) -> None:
    keys.change_passphrase(repository.store, repository.unlocked, world.mint(), "second")
    assert keys.unlock(repository.store, repository.unlocked.superblock, "second")


@pytest.mark.parametrize("fits", [0, 1])
@pytest.mark.parametrize("deed", [_hold, _undo, _policy, _default, _delay, _key, _change])
def test_the_reserve_is_there_for_decisions(tmp_path: Path, deed: Callable[[Repository, World], None], fits: int) -> None:
    """`fits`: how many objects have room before; with one, the second copy has none."""
    world, store = World(tmp_path), Full()
    unlocked = world.create(store, encrypted=True)
    with world.open(store, unlocked) as repository:
        disk = SparseDisk(1 << 20, {1: block(1)})
        first = world.back_up(repository, {"vda": disk})
        world.back_up(repository, {"vda": disk}, parent=first)
        Ledger(repository.documents).put_vm(Vm("0" * 32, "web1", "web1", "", "", world.clock()))
        world.drop(repository, first, delay_s=72 * 3600)
        store.put(RESERVE, [])
        store.room = fits
        deed(repository, world)
        assert RESERVE not in store.snapshot()
