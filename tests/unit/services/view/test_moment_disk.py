# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk of a moment: every byte as it was, whoever reads it and in which order; blocks are fetched once, and ahead."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.block.patched import Patches
from everywhen.formats.node import Names
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.blockmap import BlockMap
from everywhen.repository.errors import Damaged
from everywhen.repository.fetch import ChunkFetcher
from everywhen.repository.repository import Repository
from everywhen.services.view.blocks import Blocks
from everywhen.services.view.disk import MomentDisk
from everywhen.storage.memory import MemoryStore
from tests.hypervisor import eventually
from tests.laboratory import SparseDisk, World, block

SIZE = 700 * BLOCK_SIZE + 12_345
"""More than two leaves of the block map, and not a whole number of blocks."""


class Counted:
    """A fetcher that notes which blocks it was asked for, and can be made to wait or fail."""

    def __init__(self, fetcher: ChunkFetcher) -> None:
        self._fetcher = fetcher
        self.nodes: set[bytes] = set()
        """Of the block map."""
        self.asked: list[bytes] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fail = False
        self.lost: set[bytes] = set()
        self.far = False

    def read_many(self, names: Names) -> list[bytes]:
        asked = [row.tobytes() for row in names]
        self.asked += [name for name in asked if name not in self.nodes]
        assert self.gate.wait(30)
        if (self.fail and not self.nodes.issuperset(asked)) or not self.lost.isdisjoint(asked):
            raise Damaged("no readable copy")
        return self._fetcher.read_many(names)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def source() -> SparseDisk:
    blocks = {number: block(number) for number in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 200, 255, 256, 300, 699)}
    return SparseDisk(SIZE, blocks | {700: block("last", 12_345)})


@pytest.fixture
def repository(world: World) -> Iterator[Repository]:
    store = MemoryStore()
    unlocked = world.create(store, encrypted=False)
    with world.open(store, unlocked) as opened:
        opened.refresh()
        yield opened


@pytest.fixture
def point(world: World, repository: Repository, source: SparseDisk) -> RecoveryPoint:
    return world.back_up(repository, {"vda": source})


@pytest.fixture
def counted(repository: Repository, point: RecoveryPoint) -> Counted:
    found = Counted(repository.fetcher)
    nodes = BlockMap(repository.fetcher.read_many, point.disks["vda"].tree)
    found.nodes = {name for level in (0, 1) for _, name in nodes.nodes(level)}
    return found


@pytest.fixture
def blocks(counted: Counted) -> Iterator[Blocks]:
    found = Blocks(counted)  # type: ignore[arg-type]
    yield found
    counted.gate.set()
    found.close()


@pytest.fixture
def disk(repository: Repository, blocks: Blocks, point: RecoveryPoint) -> MomentDisk:
    return MomentDisk(repository.used_ranges, blocks, point.disks["vda"].tree)


def test_any_range_reads_as_it_was(disk: MomentDisk, source: SparseDisk) -> None:
    chance = random.Random(1)
    for _ in range(300):
        offset = chance.randrange(SIZE)
        length = min(chance.choice([1, 512, 4096, 70_000, 1 << 20]), SIZE - offset)
        assert disk.read(offset, length) == source.read(offset, length)
    assert disk.read(0, SIZE) == source.read(0, SIZE)
    assert disk.read(SIZE, 0) == b""


def test_records_lie_over_the_point(repository: Repository, blocks: Blocks, point: RecoveryPoint, source: SparseDisk) -> None:
    patches = Patches()
    expected = bytearray(source.read(0, SIZE))
    chance = random.Random(2)
    for _ in range(40):
        offset, length = chance.randrange(SIZE - 200_000), chance.choice([512, 4096, 65536, 150_000])
        if chance.random() < 0.3:
            patches.zero(offset, length)
            expected[offset : offset + length] = bytes(length)
        else:
            data = chance.randbytes(length)
            patches.write(offset, data)
            expected[offset : offset + length] = data
    disk = MomentDisk(repository.used_ranges, blocks, point.disks["vda"].tree, patches)
    for _ in range(300):
        offset = chance.randrange(SIZE)
        length = min(chance.choice([1, 4096, 70_000, 1 << 20]), SIZE - offset)
        assert disk.read(offset, length) == expected[offset : offset + length]
    told_zero = bytearray(b"\1" * SIZE)
    for extent in disk.extents():
        told_zero[extent.start : extent.end] = bytes([not extent.zero]) * extent.length
    assert all(not any(expected[at : at + 4096]) for at in range(0, SIZE, 4096) if not told_zero[at])
    allocated = disk.allocated()
    assert allocated.count == sum(told_zero)
    assert all(all(told_zero[start:end]) for start, end in zip(allocated.starts, allocated.ends, strict=True))


def test_extents_name_what_is_zero(disk: MomentDisk, source: SparseDisk) -> None:
    assert list(disk.extents()) == list(_joined(source))
    assert list(disk.status(3 * BLOCK_SIZE + 1, 20 * BLOCK_SIZE)) == [(7 * BLOCK_SIZE - 1, False), (13 * BLOCK_SIZE + 1, True)]


def test_who_asks_how_a_range_begins_has_no_more_looked_at(disk: MomentDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    run = disk._run

    def watched(block: int, end: int) -> tuple[int, bool]:
        looked.append(block)
        return run(block, end)

    monkeypatch.setattr(disk, "_run", watched)
    assert next(disk.status(0, SIZE)) == (10 * BLOCK_SIZE, False)
    assert looked == [0, 10]


def test_what_is_not_there_is_refused(disk: MomentDisk) -> None:
    for offset, length in ((-1, 2), (SIZE, 1), (0, SIZE + 1), (5, -1)):
        with pytest.raises(ValueError, match="outside"):
            disk.read(offset, length)


def test_a_block_is_fetched_once_for_all_who_wait(disk: MomentDisk, source: SparseDisk, counted: Counted) -> None:
    disk.read(299 * BLOCK_SIZE, 1)  # its map is at hand
    counted.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(disk.read, 300 * BLOCK_SIZE + at, 4096) for at in range(0, 32768, 4096)]
        eventually(lambda: len(counted.asked) >= 1, "a fetch")
        counted.gate.set()
        for at, read in zip(range(0, 32768, 4096), reads, strict=True):
            assert read.result(30) == source.read(300 * BLOCK_SIZE + at, 4096)
    assert len(counted.asked) == 1


def test_who_waited_for_a_fetch_that_failed_tries_again(disk: MomentDisk, source: SparseDisk, counted: Counted) -> None:
    disk.read(299 * BLOCK_SIZE, 1)
    counted.gate.clear()
    counted.fail = True
    with ThreadPoolExecutor(2) as pool:
        reads = [pool.submit(disk.read, 300 * BLOCK_SIZE, 4096) for _ in range(2)]
        eventually(lambda: len(counted.asked) >= 1, "a fetch")
        counted.gate.set()
        for read in reads:
            with pytest.raises(Damaged):
                read.result(30)
    counted.fail = False
    assert disk.read(300 * BLOCK_SIZE, 4096) == source.read(300 * BLOCK_SIZE, 4096)


def test_who_reads_in_order_finds_the_next_blocks_at_hand(disk: MomentDisk, source: SparseDisk, counted: Counted) -> None:
    assert disk.read_cached(0, 4096) is None
    disk.read(0, BLOCK_SIZE)
    disk.read(BLOCK_SIZE, BLOCK_SIZE)
    eventually(lambda: len(counted.asked) >= 6, "blocks fetched ahead")
    assert disk.read(2 * BLOCK_SIZE, BLOCK_SIZE) == source.read(2 * BLOCK_SIZE, BLOCK_SIZE)
    assert disk.read_cached(3 * BLOCK_SIZE, 8192) == source.read(3 * BLOCK_SIZE, 8192)
    assert len(counted.asked) == len(set(counted.asked))


def test_blocks_of_the_same_content_are_fetched_ahead_once(world: World, repository: Repository) -> None:
    source = SparseDisk(40 * BLOCK_SIZE, {number: block("same" if number > 3 else number) for number in range(40)})
    point = world.back_up(repository, {"vda": source})
    counted = Counted(repository.fetcher)
    blocks = Blocks(counted)  # type: ignore[arg-type]
    disk = MomentDisk(repository.used_ranges, blocks, point.disks["vda"].tree)
    with ThreadPoolExecutor(1) as reader:
        try:
            for number in range(40):
                reading = reader.submit(disk.read, number * BLOCK_SIZE, BLOCK_SIZE)
                assert reading.result(30) == source.read(number * BLOCK_SIZE, BLOCK_SIZE)
        finally:
            blocks.close()
    assert len(counted.asked) == len(set(counted.asked))


def test_who_jumps_has_nothing_fetched_ahead(disk: MomentDisk, counted: Counted) -> None:
    for number in (8, 2, 5, 0):
        disk.read(number * BLOCK_SIZE, 4096)
    assert len(counted.asked) == 4


def test_who_must_not_wait_does_not_wait_for_the_block_map(disk: MomentDisk, source: SparseDisk, counted: Counted) -> None:
    counted.gate.clear()
    assert disk.read_cached(300 * BLOCK_SIZE, 4096) is None
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(disk.read, 300 * BLOCK_SIZE, 4096)  # this one waits for a node
        assert disk.read_cached(0, 4096) is None
        counted.gate.set()
        assert slow.result(30) == source.read(300 * BLOCK_SIZE, 4096)
    assert disk.read_cached(300 * BLOCK_SIZE, 4096) == source.read(300 * BLOCK_SIZE, 4096)


def test_what_is_lost_farther_on_fails_nobody_who_reads_before_it(
    repository: Repository, counted: Counted, disk: MomentDisk, source: SparseDisk, point: RecoveryPoint
) -> None:
    leaves = BlockMap(repository.fetcher.read_many, point.disks["vda"].tree)
    counted.lost = {leaves.node_name(0, 1) or b""}
    for number in range(250, 256):
        assert disk.read(number * BLOCK_SIZE, BLOCK_SIZE) == source.read(number * BLOCK_SIZE, BLOCK_SIZE)
    with pytest.raises(Damaged):
        disk.read(256 * BLOCK_SIZE, 1)


def test_a_disk_goes_with_its_last_user(repository: Repository, blocks: Blocks, point: RecoveryPoint) -> None:
    """At once: what lies over it may be tens of MB and an open file."""
    disk = MomentDisk(repository.used_ranges, blocks, point.disks["vda"].tree)
    disk.read(0, 4096)
    gone = weakref.ref(disk)
    del disk
    assert gone() is None


def test_memory_is_bounded(repository: Repository, counted: Counted, point: RecoveryPoint, source: SparseDisk) -> None:
    small = Blocks(counted, limit=3 * BLOCK_SIZE)  # type: ignore[arg-type]
    disk = MomentDisk(repository.used_ranges, small, point.disks["vda"].tree)
    assert disk.read(0, SIZE) == source.read(0, SIZE)
    assert sum(disk.read_cached(number * BLOCK_SIZE, 1) is not None for number in source.blocks) == 3
    small.close()


def _joined(source: SparseDisk) -> Iterator[object]:
    """The source's extents, neighbours of one kind made one."""
    last = None
    for extent in source.extents():
        if last is not None and last.zero == extent.zero:
            last = type(extent)(last.start, last.length + extent.length, zero=extent.zero)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last
