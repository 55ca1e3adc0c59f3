# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which blocks a backup looks at, against brute force; and that the block map it makes is that of the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everywhen.block.device import BLOCK_SIZE, Extent
from everywhen.formats.ids import ChunkName
from everywhen.formats.node import FANOUT, Names
from everywhen.formats.point import Tree
from everywhen.repository import intake
from everywhen.repository.blockmap import BlockMap, blocks_of
from everywhen.repository.ingest import Batch, Taken
from everywhen.repository.intake import Ranges, take_disk, with_edges

BLOCKS = 3 * FANOUT

ranges = st.lists(st.tuples(st.integers(0, BLOCKS), st.integers(1, 40)), max_size=6).map(
    lambda pairs: merged([(first, first + count) for first, count in pairs])
)


def merged(pairs: Ranges) -> Ranges:
    blocks = sorted({block for first, end in pairs for block in range(first, end)})
    found: Ranges = []
    for block in blocks:
        if found and found[-1][1] == block:
            found[-1] = (found[-1][0], block + 1)
        else:
            found.append((block, block + 1))
    return found


def members(given_ranges: Ranges) -> set[int]:
    return {block for first, end in given_ranges for block in range(first, end)}


@given(ranges, st.integers(0, BLOCKS), st.integers(0, 300))
def test_mask(given_ranges: Ranges, first: int, count: int) -> None:
    mask = intake._mask(given_ranges, first, count)
    assert [first + int(slot) for slot in np.flatnonzero(mask)] == sorted(
        members(given_ranges) & set(range(first, first + count))
    )


@dataclass(frozen=True)
class Base:
    """As much of a block map as the choice needs."""

    size: int
    used: frozenset[int] = frozenset()

    def nodes(self, _level: int) -> Iterator[tuple[int, ChunkName]]:
        return iter([(index, ChunkName(b"")) for index in sorted(self.used)])


sizes = st.integers(0, BLOCKS * BLOCK_SIZE)


@given(ranges, sizes, sizes)
def test_edges(changed: Ranges, size: int, before: int) -> None:
    found = with_edges(changed, before, size)
    assert found is not None
    wanted = {block for block in members(changed) if block < blocks_of(size)}
    if before != size:
        # From the block that holds the smaller end on: it may be cut, or padded with what is not zero any more.
        wanted |= {block for block in range(blocks_of(size)) if (block + 1) * BLOCK_SIZE > min(before, size)}
    assert members(found) == wanted
    assert found == merged(found)


@given(ranges, st.one_of(st.none(), ranges), st.one_of(st.none(), st.frozensets(st.integers(0, 5))), sizes)
def test_leaves(data: Ranges, looked_at: Ranges | None, used: frozenset[int] | None, size: int) -> None:
    blocks = blocks_of(size)
    data = merged([(first, min(end, blocks)) for first, end in data if first < blocks])
    base = None if used is None else Base(size, used)
    found = intake._leaves(data, looked_at, base, size)  # type: ignore[arg-type]
    wanted = {block // FANOUT for block in members(data)}
    wanted |= {index for index in used or () if index * FANOUT < blocks}
    if looked_at is not None:
        wanted &= {block // FANOUT for block in members(looked_at)}
    assert found == sorted(wanted)


class Sink:
    """Names blocks and keeps nodes, stores nothing."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, bytes] = {}
        self.blocks = 0

    def take(self, batch: Batch) -> Taken:
        self.blocks += len(batch.contents)
        names = np.stack([np.frombuffer(name_of(bytes(content)), np.uint8) for content in batch.contents])
        changed = (names != batch.before).any(axis=1)
        return Taken(names, int(changed.sum()) * BLOCK_SIZE, 0)

    def put_nodes(self, contents: list[bytes], before: list[ChunkName | None]) -> list[ChunkName]:
        assert len(contents) == len(before)
        names = [ChunkName(hashlib.blake2b(content, digest_size=32).digest()) for content in contents]
        self.nodes.update(zip(names, contents, strict=True))
        return names

    def read_many(self, names: Names) -> list[bytes]:
        return [self.nodes[row.tobytes()] for row in names]

    def map(self, tree: Tree | None) -> BlockMap | None:
        return BlockMap(self.read_many, tree) if tree else None

    def entries(self, tree: Tree) -> dict[int, bytes]:
        found = BlockMap(self.read_many, tree)
        return {
            index * FANOUT + slot: names[slot].tobytes()
            for index, names in found.leaves()
            for slot in np.flatnonzero(names.any(axis=1)).tolist()
        }


def name_of(content: bytes) -> bytes:
    padded = content.ljust(BLOCK_SIZE, b"\0")
    return hashlib.blake2b(padded, digest_size=32).digest() if any(padded) else bytes(32)


@dataclass
class Disk:
    """Blocks of one repeated byte; what is not named is a hole, and 0 is zeroes that are there."""

    size: int
    blocks: dict[int, int]

    def read(self, offset: int, length: int) -> bytes:
        first, end = offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)
        content = b"".join(bytes([self.blocks.get(block, 0)]) * BLOCK_SIZE for block in range(first, end))
        return content[offset - first * BLOCK_SIZE :][:length]

    def extents(self) -> Iterator[Extent]:
        for block in range(blocks_of(self.size)):
            start = block * BLOCK_SIZE
            yield Extent(start, min(BLOCK_SIZE, self.size - start), zero=block not in self.blocks)

    def close(self) -> None:
        """Nothing is held."""


contents = st.dictionaries(st.integers(0, BLOCKS - 1), st.integers(0, 3), max_size=12)
disks = st.tuples(st.integers(0, BLOCKS), st.sampled_from([0, 1, 700]), contents)


@settings(max_examples=60)
@given(st.lists(disks, min_size=1, max_size=4), st.booleans())
def test_the_map_is_that_of_the_disk(states: list[tuple[int, int, dict[int, int]]], listed: bool) -> None:
    sink, tree, before = Sink(), None, Disk(0, {})
    for blocks, odd, content in states:
        size = max(0, blocks * BLOCK_SIZE - odd)
        disk = Disk(size, {block: fill for block, fill in content.items() if block < blocks_of(size)})
        changed = None
        if listed and tree is not None:
            both = disk.blocks.keys() | before.blocks.keys()
            changed = merged([(b, b + 1) for b in both if disk.blocks.get(b, 0) != before.blocks.get(b, 0)])
        told = 0

        def progress(count: int) -> None:
            nonlocal told
            told += count

        taken = take_disk(sink, disk, sink.map(tree), changed, progress)  # type: ignore[arg-type]
        wanted = {}
        for block in disk.blocks:
            name = name_of(disk.read(block * BLOCK_SIZE, min(BLOCK_SIZE, size - block * BLOCK_SIZE)))
            if any(name):
                wanted[block] = name
        assert sink.entries(taken.tree) == wanted
        assert told == taken.bytes_read
        tree, before = taken.tree, disk


@settings(max_examples=60)
@given(disks, disks, st.booleans(), st.lists(st.booleans(), max_size=30))
def test_a_disk_by_pieces(
    one: tuple[int, int, dict[int, int]], other: tuple[int, int, dict[int, int]], listed: bool, stops: list[bool]
) -> None:
    """Another state of a disk, taken in with interruptions: the same map, and no block is taken twice."""
    sink, states = Sink(), []
    for blocks, odd, content in (one, other):
        size = max(0, blocks * BLOCK_SIZE - odd)
        states.append(Disk(size, {block: fill for block, fill in content.items() if block < blocks_of(size)}))
    before, disk = states
    tree = take_disk(sink, before, None, None, lambda _: None).tree  # type: ignore[arg-type]
    both = disk.blocks.keys() | before.blocks.keys()
    differing = merged([(b, b + 1) for b in both if disk.blocks.get(b, 0) != before.blocks.get(b, 0)])
    wanted = take_disk(sink, disk, sink.map(tree), differing if listed else None, lambda _: None)  # type: ignore[arg-type]
    left: Ranges | None = differing if listed else None
    asked, read, pieces = iter(stops), 0, 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(intake, "_BATCH", 2)
        while True:
            base = sink.map(tree)
            piece = take_disk(sink, disk, base, left, lambda _: None, lambda: next(asked, False))  # type: ignore[arg-type]
            tree, left = piece.tree, piece.left
            read, pieces = read + piece.bytes_read, pieces + 1
            if not left:
                break
    assert (tree, read) == (wanted.tree, wanted.bytes_read)
    assert pieces <= 1 + sum(stops)


def test_what_is_not_listed_is_not_read() -> None:
    disk = Disk(BLOCKS * BLOCK_SIZE, dict.fromkeys(range(BLOCKS), 1))
    sink = Sink()
    tree = take_disk(sink, disk, None, None, lambda _: None).tree  # type: ignore[arg-type]
    sink.blocks = 0
    taken = take_disk(sink, disk, sink.map(tree), [(5, 6), (700, 702)], lambda _: None)  # type: ignore[arg-type]
    assert (sink.blocks, taken.bytes_read, taken.bytes_changed, taken.tree) == (3, 3 * BLOCK_SIZE, 0, tree)
