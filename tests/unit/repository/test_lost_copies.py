# SPDX-License-Identifier: AGPL-3.0-or-later
"""Copies that are no good: deltas whose base is gone, first copies that were lost, records that are damaged (4.9.3, 4.9.6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everywhen.formats.ids import ChunkName, PackId
from everywhen.formats.pack import KIND_DATA
from everywhen.formats.point import RecoveryPoint, Tombstone
from everywhen.repository.errors import Damaged
from everywhen.repository.gc import gc, live
from everywhen.repository.gc.marks import Marks
from everywhen.repository.keys.keys import Unlocked
from everywhen.repository.ledger import Ledger, Undone
from everywhen.repository.packs import PackBuilder, store_pack
from everywhen.repository.repository import Repository
from everywhen.storage.faulty import flip_bit
from everywhen.storage.memory import MemoryStore
from tests.laboratory import SparseDisk, World, block, names_of, shrink_packs, touched, truth_of


class Place:
    """A repository with a point of one block, in a pack that is mostly dead, since it was stored with a dropped point."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.store = MemoryStore()
        self.unlocked: Unlocked = self.world.create(self.store, encrypted=True)
        with self.open() as repository:
            many = SparseDisk(1 << 20, {number: block(number) for number in range(8)})
            dropped = self.world.back_up(repository, {"vda": many})
            one = SparseDisk(1 << 20, {3: block(3)})
            self.point: RecoveryPoint = self.world.back_up(repository, {"vda": one}, parent=dropped)
            self.world.drop(repository, dropped)
        self.world.clock.advance(3600)

    def open(self) -> Repository:
        return self.world.open(self.store, self.unlocked)

    def name(self, repository: Repository) -> ChunkName:
        return repository.codec.name(block(3))

    def put_orphan(self, repository: Repository) -> PackId:
        """A pack with the block as a delta against something that is nowhere, and ballast that is as live as the block."""
        codec = repository.codec
        base = touched(block(3), "before")
        builder = PackBuilder(repository.ciphers, repository.id, KIND_DATA, self.point.point, self.world.random.randbytes)
        builder.add(codec.encode_delta(self.name(repository), block(3), [(codec.name(base), base)], 1))
        index = store_pack(self.store, builder)
        repository.learn(builder.pack, index)
        return builder.pack


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    shrink_packs(monkeypatch, 1 << 20)
    return Place(tmp_path)


def spare_orphans(orphan: PackId, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the orphan's pack not be worth rewriting, as one delta among much that is live would be."""
    choose = gc._Run._choose
    monkeypatch.setattr(gc._Run, "_choose", lambda *them: [use for use in choose(*them) if use.pack != orphan])


def test_gc_does_not_take_an_orphaned_delta_for_a_copy(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with place.open() as repository:
        repository.refresh()
        spare_orphans(place.put_orphan(repository), monkeypatch)
        assert place.world.collect(repository).bytes_copied > 0
    with place.open() as repository:
        place.world.audit(repository, {place.point.point})


def test_without_setting_them_aside_the_only_good_copy_would_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_note_stale", lambda *_: False)
    with place.open() as repository:
        repository.refresh()
        spare_orphans(place.put_orphan(repository), monkeypatch)
        place.world.collect(repository)
    with place.open() as repository:
        repository.refresh()
        with pytest.raises(Damaged):
            truth_of(repository, place.point)


def test_readers_and_writers_pass_an_orphaned_delta_over(place: Place) -> None:
    with place.open() as repository:
        repository.refresh()
        (good,) = {copy.pack for copy in repository.index.all_copies(place.name(repository))}
        place.put_orphan(repository)
        repository.index.exclude([good])
        assert repository.index.all_copies(place.name(repository))[0].is_delta
        assert truth_of(repository, place.point) == place.world.truths[place.point.point]
        assert repository.fetcher.full_forms(names_of(place.name(repository))) == [[]]
        new = place.world.back_up(repository, {"vda": SparseDisk(1 << 20, {9: block(3)})})
    with place.open() as repository:
        place.world.audit(repository, {place.point.point, new.point})


@pytest.mark.parametrize("prefix", ["points/", "packs/", "holds/", "drops/"])
def test_what_lost_its_first_copy_is_found_by_its_twin(place: Place, prefix: str) -> None:
    for found in list(place.store.list("twins/" + prefix)):
        place.store.delete(found.name.removeprefix("twins/"))
    with place.open() as repository:
        place.world.audit(repository, {place.point.point})
        place.world.collect(repository)
        place.world.audit(repository, {place.point.point})


@pytest.mark.parametrize("lost", ["", "drops/", "undone/"])
def test_what_was_taken_back_stays_back_whatever_first_copy_is_lost(place: Place, lost: str) -> None:
    with place.open() as repository:
        ledger = Ledger(repository.documents)
        [drop] = ledger.drops()
        ledger.put_undone(Undone("0" * 16, drop.drop, drop.points, place.world.clock(), "tester"))
    for found in list(place.store.list(lost)) if lost else []:
        place.store.delete(found.name)
    with place.open() as repository:
        assert place.world.collect(repository).points_deleted == 0


def test_what_cannot_be_copied_stays_and_the_rest_is_saved(place: Place) -> None:
    with place.open() as repository:
        repository.refresh()
        other = SparseDisk(1 << 20, {3: block(3), 5: block(5)})
        second = place.world.back_up(repository, {"vda": other})
        copy = repository.index.lookup_one(place.name(repository))
        assert copy is not None
        name = next(found.name for found in place.store.list("packs/") if found.name.endswith(copy.pack.hex()))
        whole = place.store.get(name)
        place.store.put(name, [whole[: copy.offset + 40], flip_bit(0)(whole[copy.offset + 40 :])])
        collected = place.world.collect(repository)
        assert len(collected.damaged) == 1
        assert collected.bytes_copied > 0
        place.store.put(name, [whole])
    with place.open() as repository:
        # Repaired by hand, everything is there.
        place.world.audit(repository, {place.point.point, second.point})
        collected = place.world.collect(repository)
        assert not collected.damaged
        place.world.audit(repository, {place.point.point, second.point})
    assert not list(place.store.list("condemned/"))


def test_a_tombstone_is_not_hidden_by_the_cache_of_points(place: Place) -> None:
    with place.open() as repository:
        assert place.point in repository.points.list()[0]
        with place.open() as other:
            stone = Tombstone(place.point.point, 1, "the moment was dropped")
            other.points.bury(stone, replace=True)
        points, stones, _ = repository.points.list()
        assert place.point not in points
        assert stone in stones


def test_gc_deletes_nothing_when_more_is_undecodable_than_it_looked_at(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What marking tells of undecodable chunks is a sample: beyond it may be one whose only good copy would go."""
    real = live.mark_live

    def marked(*arguments: Any) -> Marks:
        marks = real(*arguments)
        marks.broken.count += 1
        return marks

    before = {found.name for found in place.store.list("packs/")}
    monkeypatch.setattr(gc, "mark_live", marked)
    with place.open() as repository, pytest.raises(Damaged, match="cannot be decoded"):
        place.world.collect(repository)
    assert {found.name for found in place.store.list("packs/")} == before
