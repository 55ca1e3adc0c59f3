# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reading chunks when something is wrong: the twin, another copy, a fresh index; Damaged only when nothing is left."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.errors import Damaged
from everywhen.repository.ingest import ChunkSink
from everywhen.repository.repository import Repository
from everywhen.repository.twins import twin_of
from everywhen.storage.memory import MemoryStore
from everywhen.storage.metered import MeteredStore
from tests.laboratory import SparseDisk, World, block, names_of, shrink_packs, touched, truth_of

DISK = SparseDisk(40 * BLOCK_SIZE, {at: block(at) for at in range(0, 40, 2)})


class Bench:
    """A repository with two points: full chunks, then deltas of some of them."""

    def __init__(self, folder: Path) -> None:
        self.world, self.store = World(folder), MemoryStore()
        self.unlocked = self.world.create(self.store, encrypted=True)
        with self.open() as repository:
            first = self.world.back_up(repository, {"vda": DISK})
            later = DISK.copy()
            later.blocks |= {at: touched(DISK.blocks[at], "later") for at in (4, 8)}
            second = self.world.back_up(repository, {"vda": later}, parent=first)
        self.points = [first, second]
        self.data = [name for name in self.names("packs/") if not self.has(twin_of(name))]
        self.meta = [name for name in self.names("packs/") if self.has(twin_of(name))]

    def open(self) -> Repository:
        return self.world.open(self.store, self.unlocked)

    def names(self, prefix: str) -> list[str]:
        return sorted(found.name for found in self.store.list(prefix))

    def has(self, name: str) -> bool:
        return name in self.names("twins/")

    def spoil(self, name: str, at: int | None = None) -> None:
        """Flip a byte in the middle of a record; all of the object is lost when `at` is None."""
        content = bytearray(self.store.get(name))
        if at is None:
            self.store.put(name, [b"gone"])
            return
        content[at] ^= 0xFF
        self.store.put(name, [bytes(content)])

    def whole(self, repository: Repository, point: RecoveryPoint) -> bool:
        return truth_of(repository, point) == self.world.truths[point.point]

    def copy_again(self) -> None:
        """Every data chunk once more, in a pack of its own, as gc or repair write it."""
        with self.open() as repository:
            repository.refresh()
            sink = ChunkSink(repository.writing(), "copies")
            codec = repository.codec
            for content in DISK.blocks.values():
                sink.put_copy(codec.encode_full(codec.name(content), content), twinned=False, fingerprints=[])
            sink.finish()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    shrink_packs(monkeypatch, 8 << 10)
    bench = Bench(tmp_path)
    assert bench.data
    assert bench.meta
    return bench


def test_twins_stand_in_for_block_maps(bench: Bench) -> None:
    with bench.open() as repository:
        repository.refresh()
        for name in bench.meta:
            bench.spoil(name)
        assert all(bench.whole(repository, point) for point in bench.points)
    for name in bench.meta:
        bench.store.delete(name)
    with bench.open() as repository:
        repository.refresh()
        assert all(bench.whole(repository, point) for point in bench.points)
    for name in bench.meta:
        bench.store.delete(twin_of(name))
    with bench.open() as repository:
        repository.refresh()
        with pytest.raises(Damaged, match="no readable copy of chunk"):
            bench.whole(repository, bench.points[0])


@pytest.mark.parametrize("how", ["deleted", "flipped", "gone"])
def test_another_copy_stands_in(how: str, bench: Bench) -> None:
    bench.copy_again()
    with bench.open() as repository:
        repository.refresh()
        for name in bench.data:
            if how == "deleted":
                bench.store.delete(name)
            else:
                bench.spoil(name, 1000 if how == "flipped" else None)
        assert bench.whole(repository, bench.points[0])


def test_a_pack_that_gc_moved_away_is_looked_up_again(bench: Bench) -> None:
    """The index of this reader is from before: the copies came later, and the originals are gone."""
    with bench.open() as reader:
        reader.refresh()
        bench.copy_again()
        for name in bench.data:
            bench.store.delete(name)
        assert bench.whole(reader, bench.points[0])


def test_nothing_left_is_said_and_the_rest_can_be_read(bench: Bench) -> None:
    lost = max(bench.data, key=bench.store.size)  # the others may hold deltas only
    bench.store.delete(lost)
    with bench.open() as repository:
        repository.refresh()
        codec = repository.codec
        readable = 0
        for content in DISK.blocks.values():
            name = codec.name(content)
            with contextlib.suppress(Damaged):
                assert repository.fetcher.read(name) == content
                readable += 1
                continue
            with pytest.raises(Damaged, match=name.hex()):
                repository.fetcher.read(name)
        assert 0 < readable < len(DISK.blocks)


def test_order_and_repetition(bench: Bench) -> None:
    with bench.open() as repository:
        repository.refresh()
        codec = repository.codec
        contents = [DISK.blocks[at] for at in (8, 2, 8, 30, 2)]
        names = names_of(*(codec.name(content) for content in contents))
        assert repository.fetcher.read_many(names) == contents


def test_a_base_is_always_full(bench: Bench) -> None:
    with bench.open() as repository:
        repository.refresh()
        codec = repository.codec
        new = touched(DISK.blocks[4], "later")
        ((base,),) = repository.fetcher.full_forms(names_of(codec.name(new)))
        assert base == (codec.name(DISK.blocks[4]), DISK.blocks[4])
        ((itself,),) = repository.fetcher.full_forms(names_of(codec.name(DISK.blocks[6])))
        assert itself == (codec.name(DISK.blocks[6]), DISK.blocks[6])
        assert repository.fetcher.full_forms(names_of(codec.name(b"never stored"))) == [[]]


def test_what_was_read_to_be_followed_is_not_read_again(bench: Bench) -> None:
    """A full chunk is remembered, and of a delta what its base is, which was read for it."""
    metered = MeteredStore(bench.store)
    with bench.world.open(metered, bench.unlocked) as repository:
        repository.refresh()
        codec = repository.codec
        delta, full = touched(DISK.blocks[4], "later"), DISK.blocks[6]
        names = names_of(codec.name(delta), codec.name(full))
        assert repository.fetcher.read_many_to_follow(names) == [delta, full]
        before = metered.operations["get_range"]
        forms = repository.fetcher.full_forms(names)
        assert metered.operations["get_range"] == before > 0
        assert forms == [[(codec.name(DISK.blocks[4]), DISK.blocks[4])], [(codec.name(full), full)]]
