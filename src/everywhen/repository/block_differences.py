# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which blocks differ between states of a disk, found in their block maps alone: whatever is called alike is equal, and is
not descended into (design 4.3).

One state is compared with many at once, level by level: what all of them need of a level is read together. A thousand points
are three requests then, not ten thousand.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everywhen.formats.ids import CHUNK_NAME_SIZE, NO_CHUNK
from everywhen.formats.node import FANOUT, Names, decode_node, root_level
from everywhen.formats.point import Tree
from everywhen.repository.blockmap import BlockMap, ReadChunks, blocks_of

BlockNumbers = npt.NDArray[np.int64]
_TOGETHER = 512
"""Nodes read together: 4 MiB."""
_KEPT = 4096
"""Nodes that are kept, 32 MiB: states that follow each other share most of theirs."""


@dataclass(frozen=True, slots=True)
class Differing:
    """Blocks that differ, ascending (n,), and their chunks here and there, (n, 32), zeroes where there is none."""

    blocks: BlockNumbers
    here: Names
    there: Names


class BlockDifferences:
    """Compares block maps; keeps nodes between two questions. Not for several threads."""

    def __init__(self, read_many: ReadChunks) -> None:
        self._read_many = read_many
        self._nodes: OrderedDict[bytes, Names] = OrderedDict()

    def between(self, here: Tree, there: Sequence[Tree], within: BlockNumbers | None = None) -> list[Differing]:
        """What of each state `there` is not as it is `here`; only of the blocks `within` (ascending), where these are given.

        Raises Damaged, StorageError, FormatError.
        """
        level = _level(here)
        found: list[list[tuple[BlockNumbers, Names, Names]]] = [[] for _ in there]
        pairs = [
            (which, 0, bytes(here.root or NO_CHUNK), bytes(tree.root or NO_CHUNK))
            for which, tree in enumerate(there)
            if _level(tree) == level and tree.root != here.root and (within is None or len(within))
        ]
        for at in range(level, -1, -1):
            if not pairs:
                break
            wanted = None if within is None else _slots(within, at)
            below: list[tuple[int, int, bytes, bytes]] = []
            for first in range(0, len(pairs), _TOGETHER):
                some = pairs[first : first + _TOGETHER]
                nodes = self._loaded({name for *_, a, b in some for name in (a, b)}, at)
                for which, index, a, b in some:
                    mine, its = nodes[a], nodes[b]
                    if wanted is None:
                        slots = np.flatnonzero((mine != its).any(axis=1))
                    else:
                        slots = wanted[index]
                        slots = slots[(mine[slots] != its[slots]).any(axis=1)]
                    if not at:
                        found[which].append((slots + index * FANOUT, mine[slots], its[slots]))
                        continue
                    children = zip((slots + index * FANOUT).tolist(), mine[slots], its[slots], strict=True)
                    below += [(which, child, m.tobytes(), i.tobytes()) for child, m, i in children]
            pairs = below
        joined = [_joined(parts) for parts in found]
        for which, tree in enumerate(there):
            if _level(tree) != level:
                joined[which] = self._otherwise_deep(here, tree, within)
        return joined

    def _otherwise_deep(self, here: Tree, there: Tree, within: BlockNumbers | None) -> Differing:
        """For a disk that was resized so far that its map got another depth: leaf by leaf."""
        both = [dict(BlockMap(self._read_many, tree).nodes(0)) for tree in (here, there)]
        leaves = sorted(both[0].keys() | both[1].keys())
        if within is not None:
            leaves = sorted(set(leaves) & set((within // FANOUT).tolist()))
        parts = []
        for leaf in leaves:
            a, b = (bytes(names.get(leaf, NO_CHUNK)) for names in both)
            nodes = self._loaded({a, b}, 0)
            slots = np.flatnonzero((nodes[a] != nodes[b]).any(axis=1))
            parts.append((slots + leaf * FANOUT, nodes[a][slots], nodes[b][slots]))
        found = _joined(parts)
        if within is None:
            return found
        kept = np.isin(found.blocks, within)
        return Differing(found.blocks[kept], found.here[kept], found.there[kept])

    def _loaded(self, names: Iterable[bytes], level: int) -> dict[bytes, Names]:
        loaded: dict[bytes, Names] = {NO_CHUNK: np.zeros((FANOUT, CHUNK_NAME_SIZE), np.uint8)}
        missing = []
        for name in names:
            known = self._nodes.get(name)
            if known is not None:
                self._nodes.move_to_end(name)
                loaded[name] = known
            elif name != NO_CHUNK:
                missing.append(name)
        if missing:
            rows = np.frombuffer(b"".join(missing), np.uint8).reshape(-1, CHUNK_NAME_SIZE)
            for name, content in zip(missing, self._read_many(rows), strict=True):
                loaded[name] = self._nodes[name] = decode_node(content, level)
            while len(self._nodes) > _KEPT:
                self._nodes.popitem(last=False)
        return loaded


def _slots(within: BlockNumbers, level: int) -> dict[int, BlockNumbers]:
    """By node of a level, the slots below which these blocks are."""
    children = np.unique(within >> 8 * level)
    nodes, first = np.unique(children // FANOUT, return_index=True)
    return dict(zip(nodes.tolist(), np.split(children % FANOUT, first[1:]), strict=True))


def _level(tree: Tree) -> int:
    return root_level(blocks_of(tree.size))


def _joined(parts: list[tuple[BlockNumbers, Names, Names]]) -> Differing:
    empty = np.empty((0, CHUNK_NAME_SIZE), np.uint8)
    blocks = np.concatenate([np.empty(0, np.int64), *(part[0] for part in parts)])
    here, there = (np.concatenate([empty, *(part[side] for part in parts)]) for side in (1, 2))
    return Differing(blocks, here, there)
