# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which bytes of a disk are used: as its blocks are, at its edges too, and of another state only what differs is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.block.patched import Patches
from everywhen.formats.node import FANOUT, Names
from everywhen.formats.point import Tree
from everywhen.repository import used_ranges
from everywhen.repository.used_ranges import UsedRanges
from everywhen.storage.memory import MemoryStore
from tests.laboratory import SparseDisk, World, block

BLOCKS = 3 * FANOUT + 7
SIZE = BLOCKS * BLOCK_SIZE - 1000
USED = [0, 1, 5, FANOUT - 1, FANOUT, BLOCKS - 1]
"""At both ends of a leaf, over two of them, and the last one, which is not whole; nothing in the third."""


@pytest.fixture
def states(tmp_path: Path) -> tuple[list[Tree], list[int], UsedRanges]:
    """A disk, and the same with one more block; how many nodes were read so far, in each reading."""
    world, store = World(tmp_path), MemoryStore()
    repository = world.open(store, world.create(store, encrypted=True))
    disk = SparseDisk(SIZE, {number: block(number)[: SIZE - number * BLOCK_SIZE] for number in USED})
    later = disk.copy()
    later.blocks[7] = block(7)
    trees = [world.back_up(repository, {"vda": one}).disks["vda"].tree for one in (disk, later)]
    read: list[int] = []

    def counting(names: Names) -> list[bytes]:
        read.append(len(names))
        return repository.fetcher.read_many(names)

    return trees, read, UsedRanges(counting)


def ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Stretches of blocks in bytes, by looking at each."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        start, end = number * BLOCK_SIZE, min((number + 1) * BLOCK_SIZE, SIZE)
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, end))
    return found


def told(used: UsedRanges, tree: Tree, patches: Patches | None = None) -> list[tuple[int, int]]:
    runs = used.of(tree, patches)
    return list(zip(runs.starts.tolist(), runs.ends.tolist(), strict=True))


def test_what_is_used(states: tuple[list[Tree], list[int], UsedRanges]) -> None:
    trees, _, used = states
    assert told(used, trees[0]) == ranges(USED)
    assert told(used, trees[1]) == ranges([*USED, 7])
    assert told(used, Tree(SIZE, None)) == []
    patches = Patches()
    patches.write(2 * FANOUT * BLOCK_SIZE, b"over what is nothing")
    patches.zero(BLOCK_SIZE, 3 * BLOCK_SIZE)
    patches.write(SIZE + BLOCK_SIZE, b"beyond the end")
    assert told(used, trees[0], patches) == ranges([*USED, 2, 3, 2 * FANOUT])


def test_of_another_state_only_what_differs_is_read(
    states: tuple[list[Tree], list[int], UsedRanges], monkeypatch: pytest.MonkeyPatch
) -> None:
    trees, read, used = states
    used.of(trees[0])
    assert sum(read) == 4, "the root and three leaves"
    used.of(trees[1])
    assert sum(read) == 6, "the root and the leaf that is another one"
    used.of(trees[0])
    assert sum(read) == 7
    monkeypatch.setattr(used_ranges, "_KEPT", 1)
    used.of(trees[1])
    assert told(used, trees[0]) == ranges(USED), "also where little is kept"
