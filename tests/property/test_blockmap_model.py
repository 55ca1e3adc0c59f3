# SPDX-License-Identifier: AGPL-3.0-or-later
"""Block maps against a dict: any history of sizes and leaves gives the entries of the dict, and one tree for one content."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.ids import ChunkName
from everywhen.formats.node import FANOUT, Names
from everywhen.formats.point import Tree
from everywhen.repository.block_differences import BlockDifferences
from everywhen.repository.blockmap import BlockMap, BlockMapBuilder, blocks_of, names_needed

Model = dict[int, bytes]

EDGES = [0, 1, 255, 256, 257, 511, 65535, 65536, 65537, 300_000, 256**3, 256**3 + 1, 20_000_000]
"""Numbers of blocks around which the tree gains a node or a level."""

sizes = st.one_of(st.sampled_from(EDGES), st.integers(0, 70_000)).flatmap(
    lambda blocks: st.sampled_from([blocks * BLOCK_SIZE, max(0, blocks * BLOCK_SIZE - 1), blocks * BLOCK_SIZE + 1])
)
fills = st.lists(st.tuples(st.integers(0, FANOUT - 1), st.integers(0, 3)), max_size=4)
"""Slots of a leaf and what they get: 0 is absent."""
steps = st.lists(st.tuples(sizes, st.lists(st.tuples(st.floats(0, 1), fills), max_size=4)), min_size=1, max_size=5)


class Nodes:
    """Where nodes are stored."""

    def __init__(self) -> None:
        self.contents: dict[bytes, bytes] = {}

    def put(self, contents: list[bytes], before: list[ChunkName | None]) -> list[ChunkName]:
        assert len(contents) == len(before)
        names = [ChunkName(hashlib.blake2b(content, digest_size=32).digest()) for content in contents]
        self.contents.update(zip(names, contents, strict=True))
        return names

    def read_many(self, names: Names) -> list[bytes]:
        return [self.contents[row.tobytes()] for row in names]

    def build(self, base: Tree | None, size: int, leaves: dict[int, Names]) -> Tree:
        builder = BlockMapBuilder(BlockMap(self.read_many, base) if base else None, size, self.put)
        for index, names in leaves.items():
            builder.put_leaf(index, names)
        return builder.finish()

    def entries(self, tree: Tree) -> Model:
        found: Model = {}
        for index, names in BlockMap(self.read_many, tree).leaves():
            for slot in np.flatnonzero(names.any(axis=1)).tolist():
                found[index * FANOUT + slot] = names[slot].tobytes()
        return found


def name_of(kind: int) -> bytes:
    return bytes([kind]) * 32


def leaf_of(model: Model, index: int) -> Names:
    names = np.zeros((FANOUT, 32), np.uint8)
    for slot in range(FANOUT):
        if (name := model.get(index * FANOUT + slot)) is not None:
            names[slot] = np.frombuffer(name, np.uint8)
    return names


@settings(max_examples=120)
@given(steps)
def test_any_history_is_the_model_and_canonical(history: list[tuple[int, list[tuple[float, list[tuple[int, int]]]]]]) -> None:
    nodes, tree = Nodes(), None
    model: Model = {}
    states: list[tuple[Tree, Model]] = []
    for size, changes in history:
        blocks = blocks_of(size)
        model = {block: name for block, name in model.items() if block < blocks}
        leaves: dict[int, Names] = {}
        for place, filled in changes if blocks else []:
            index = min(int(place * blocks), blocks - 1) // FANOUT
            for slot, kind in filled:
                if index * FANOUT + slot < blocks:
                    model.pop(index * FANOUT + slot, None)
                    if kind:
                        model[index * FANOUT + slot] = name_of(kind)
            leaves[index] = leaf_of(model, index)
            # What a caller leaves beyond the end must not get into the tree.
            leaves[index][max(0, blocks - index * FANOUT) :] = 9
        tree = nodes.build(tree, size, leaves)
        assert nodes.entries(tree) == model
        fresh = {block // FANOUT for block in model}
        assert nodes.build(None, size, {index: leaf_of(model, index) for index in fresh}) == tree
        block_map = BlockMap(nodes.read_many, tree)
        for block in list(model)[:5]:
            leaf = block_map.leaf(block // FANOUT)
            assert leaf is not None
            assert leaf[block % FANOUT].tobytes() == model[block]
        assert block_map.leaf(-(-blocks // FANOUT)) is None
        needed = {row.tobytes() for names in names_needed(nodes.read_many, tree, set()) for row in names if row.any()}
        assert needed >= set(model.values())
        states.append((tree, dict(model)))
    differ_as_their_models(nodes, states)


def differ_as_their_models(nodes: Nodes, states: list[tuple[Tree, Model]]) -> None:
    """The newest state against all of them, over the whole disk and over some blocks."""
    here, mine = states[-1]
    some = np.array(sorted({*list(mine)[::2], 1, 255, 300_000}), np.int64)
    for within in (None, some):
        found = BlockDifferences(nodes.read_many).between(here, [tree for tree, _ in states], within)
        for (_, its), one in zip(states, found, strict=True):
            blocks = sorted(block for block in mine.keys() | its.keys() if mine.get(block) != its.get(block))
            assert one.blocks.tolist() == [block for block in blocks if within is None or block in within]
            for block, here_name, there_name in zip(one.blocks.tolist(), one.here, one.there, strict=True):
                assert (here_name.tobytes(), there_name.tobytes()) == tuple(one.get(block, bytes(32)) for one in (mine, its))


def test_a_change_rewrites_only_its_path() -> None:
    nodes = Nodes()
    size = 20_000_000 * BLOCK_SIZE
    model = {block: name_of(1 + block % 3) for block in range(0, 20_000_000, 400_000)}
    tree = nodes.build(None, size, {index: leaf_of(model, index) for index in {block // FANOUT for block in model}})
    before = set(nodes.contents)
    model[7_000_000] = name_of(9)
    nodes.build(tree, size, {7_000_000 // FANOUT: leaf_of(model, 7_000_000 // FANOUT)})
    # A leaf and the three inner nodes above it, of 256⁴ blocks.
    assert len(set(nodes.contents) - before) == 4


def test_resized_from_and_to_every_edge() -> None:
    nodes = Nodes()
    for before in EDGES:
        model = {block: name_of(1) for block in (0, before // 2, before - 1) if 0 <= block < before}
        tree = nodes.build(None, before * BLOCK_SIZE, {index: leaf_of(model, index) for index in {b // FANOUT for b in model}})
        for after in EDGES:
            left = {block: name for block, name in model.items() if block < after}
            assert nodes.entries(nodes.build(tree, after * BLOCK_SIZE, {})) == left, (before, after)
            if after:
                left[after - 1] = name_of(2)
                edge = (after - 1) // FANOUT
                assert nodes.entries(nodes.build(tree, after * BLOCK_SIZE, {edge: leaf_of(left, edge)})) == left, (
                    before,
                    after,
                )
