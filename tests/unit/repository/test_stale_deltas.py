# SPDX-License-Identifier: AGPL-3.0-or-later
"""Deltas whose base gc deleted, beside a copy that can be decoded: verify and gc pass them over, and forget nothing (4.9.3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from everywhen.formats.ids import PackId, pack_object
from everywhen.formats.node import Names
from everywhen.formats.pack import KIND_DATA
from everywhen.formats.point import RecoveryPoint
from everywhen.repository import packs
from everywhen.repository.chunk import Encoded
from everywhen.repository.gc.live import decodable, mark_live
from everywhen.repository.gc.marking import Marker
from everywhen.repository.gc.marks import Marks
from everywhen.repository.packs import PackBuilder, store_pack
from everywhen.repository.repository import Repository
from everywhen.repository.verify.findings import Verdict
from everywhen.repository.verify.verify import judging
from everywhen.storage.memory import MemoryStore
from tests.laboratory import SparseDisk, World, block, touched
from tests.unit.repository.verify_lab import WATCHING

BASE = block(3)
CONTENT = touched(BASE, "after")


class Place:
    """A point with a block, and one after it with that block changed a little: a delta, in a pack of its own."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.store = MemoryStore()
        self.unlocked = self.world.create(self.store, encrypted=True)
        with self.open() as repository:
            first = self.world.back_up(repository, {"vda": SparseDisk(1 << 20, {3: BASE})})
            second = self.world.back_up(repository, {"vda": SparseDisk(1 << 20, {3: CONTENT})}, parent=first)
            self.points: list[RecoveryPoint] = [first, second]
            self.name = repository.codec.name(CONTENT)
            base = repository.index.lookup_one(repository.codec.name(BASE), full_only=True)
            [delta] = repository.index.all_copies(self.name)
            assert base is not None
            assert delta.is_delta
            self.base, self.delta = base.pack, delta.pack

    def open(self) -> Repository:
        return self.world.open(self.store, self.unlocked)

    def put(self, repository: Repository, chunk: Encoded) -> PackId:
        builder = PackBuilder(repository.ciphers, repository.id, KIND_DATA, self.points[0].point, self.world.random.randbytes)
        builder.add(chunk)
        repository.learn(builder.pack, store_pack(self.store, builder))
        return builder.pack

    def put_orphans(self) -> None:
        """Packs, each with the block as a delta against something that is nowhere; older than the one with the good delta.

        That is so when gc has moved the good one to a new pack.
        """
        name = pack_object(self.delta)
        good = self.store.get(name)
        self.store.delete(name)
        with self.open() as repository:
            codec = repository.codec
            for number in range(2):
                gone = touched(CONTENT, number)
                self.put(repository, codec.encode_delta(self.name, CONTENT, [(codec.name(gone), gone)], 1))
        self.store.put(name, [good])
        with self.open() as repository:
            repository.refresh()
            first, *_, last = repository.index.all_copies(self.name)
            assert (first.pack != self.delta, last.pack) == (True, self.delta)

    def verify(self, *, read_data: bool = False) -> Verdict:
        with self.open() as repository, judging(repository, WATCHING, read_data=read_data) as judgement:
            return judgement.verdict


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(packs, "PACK_SIZE", 1 << 20)
    return Place(tmp_path)


def marks_of(repository: Repository, points: list[RecoveryPoint], scratch: Path) -> Marks:
    with Marker(repository.index, str(scratch), 1 << 20, threshold=100) as marker:
        return mark_live(repository, repository, points, marker, lambda *_: None)


@pytest.mark.parametrize("read_data", [False, True])
def test_verify_reports_no_chunk_that_can_be_read(place: Place, *, read_data: bool) -> None:
    place.put_orphans()
    assert not place.verify(read_data=read_data).findings
    with place.open() as repository:
        place.world.audit(repository, {point.point for point in place.points})


@pytest.mark.parametrize("read_data", [False, True])
def test_what_is_really_broken_is_reported_and_nothing_else(place: Place, *, read_data: bool) -> None:
    place.put_orphans()
    with place.open() as repository:
        other = place.world.back_up(repository, {"vda": SparseDisk(1 << 20, {1: block("other"), 3: CONTENT})})
        lost = repository.index.lookup_one(repository.codec.name(block("other")))
        assert lost is not None
    place.store.delete(pack_object(lost.pack))
    losses = [loss for finding in place.verify(read_data=read_data).findings for loss in finding.losses]
    assert [(loss.ranges, [point for point, _ in loss.points]) for loss in losses] == [(((1 << 16, 2 << 16),), [other.point])]


def test_a_chunk_with_nothing_but_undecodable_deltas_is_lost(place: Place) -> None:
    place.put_orphans()
    place.store.delete(pack_object(place.delta))
    losses = [loss for finding in place.verify().findings for loss in finding.losses]
    assert {(loss.ranges, tuple(point for point, _ in loss.points)) for loss in losses} == {
        (((3 << 16, 4 << 16),), (place.points[1].point,))
    }


def test_nothing_is_forgotten_for_longer_than_one_marking(place: Place, tmp_path: Path) -> None:
    """The base may be on its way to another pack; then that delta is the good one, and the other copy may go."""
    with place.open() as repository:
        codec = repository.codec
        late = touched(CONTENT, "late")
        place.put(repository, codec.encode_delta(place.name, CONTENT, [(codec.name(late), late)], 1))
        repository.refresh()
        marks = marks_of(repository, place.points, tmp_path)
        assert (marks.missing.count, marks.broken.count) == (0, 0)
        place.put(repository, codec.encode_full(codec.name(late), late))
        repository.index.remove_packs([place.delta])
        marks = marks_of(repository, place.points, tmp_path)
        assert (marks.missing.count, marks.broken.count) == (0, 0)
        repository.index.remove_packs([place.base])
        assert marks_of(repository, place.points[1:], tmp_path).broken.count == 0
        assert marks_of(repository, place.points, tmp_path).missing.count == 1


def test_decodable_looks_at_all_copies(place: Place) -> None:
    place.put_orphans()
    with place.open() as repository:
        repository.refresh()
        names = names_of(repository, [CONTENT, BASE, b"nowhere"])
        assert decodable(repository, repository.index, names).tolist() == [True, True, False]
        repository.index.remove_packs([place.delta])
        assert decodable(repository, repository.index, names).tolist() == [False, True, False]
        assert len(repository.index.all_copies(place.name)) == 2


def names_of(repository: Repository, contents: list[bytes]) -> Names:
    joined = b"".join(repository.codec.name(content) for content in contents)
    return np.frombuffer(joined, np.uint8).reshape(len(contents), 32)
