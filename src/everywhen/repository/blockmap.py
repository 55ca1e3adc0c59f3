# SPDX-License-Identifier: AGPL-3.0-or-later
"""Block maps: which chunk each block of a disk has, as a persistent radix tree of content-addressed nodes (design 4.3).

A new point rewrites only the paths above changed blocks; everything else is shared by name. Layout: `formats/node.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from threading import Lock

import numpy as np

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.ids import CHUNK_NAME_SIZE, NO_CHUNK, ChunkName
from everywhen.formats.node import FANOUT, Names, decode_node, encode_node, root_level
from everywhen.formats.point import Tree

ReadChunks = Callable[[Names], list[bytes]]
"""Contents of chunks by their names, (n, 32); raises Damaged when one cannot be had."""

PutNodes = Callable[[list[bytes], list[ChunkName | None]], list[ChunkName]]
"""Stores contents of nodes, given the names of the nodes they follow (for deltas); gives their names."""

_NODE_CACHE = 256  # nodes: 2 MiB
TOGETHER = 64
"""Nodes read or stored together: one or two requests instead of 64, each 30 ms on a store far away."""


def blocks_of(size: int) -> int:
    """How many blocks a disk of `size` bytes has; the last one may be partial."""
    return -(-size // BLOCK_SIZE)


class BlockMap:
    """Reads one disk's block map lazily. Several threads may use it; none waits for what another one reads."""

    def __init__(self, read_many: ReadChunks, tree: Tree) -> None:
        self._read_many = read_many
        self.size = tree.size
        self.root = tree.root
        self.level = root_level(blocks_of(tree.size))
        self._cache: OrderedDict[ChunkName, Names] = OrderedDict()
        self._lock = Lock()
        """For the cache, never held while anything is read."""

    def beside(self, read_many: ReadChunks) -> BlockMap:
        """The same map for who reads its nodes in another way; both keep what either has read."""
        other = BlockMap(read_many, Tree(self.size, self.root))
        other._cache, other._lock = self._cache, self._lock
        return other

    def leaf(self, index: int) -> Names | None:
        """Names (256, 32) of blocks 256 × index and on, or None where all of them read as zeroes."""
        return self.node(0, index)

    def node(self, level: int, index: int) -> Names | None:
        """Entries (256, 32) of the node at that place, or None when it is absent."""
        name = self.node_name(level, index)
        return self._node(name, level) if name else None

    def node_name(self, level: int, index: int) -> ChunkName | None:
        """The name of the node at that place; None when absent or outside the tree."""
        if level > self.level or index >> (8 * (self.level - level)):
            return None
        name = self.root
        for above in range(self.level, level, -1):
            if name is None:
                return None
            slot = (index >> (8 * (above - 1 - level))) & 0xFF
            name = _chunk(self._node(name, above)[slot])
        return name

    def read_ahead(self, leaves: list[int]) -> None:
        """Read the paths to some leaves (by index, at most `TOGETHER`), all nodes of a level at once."""
        for level in range(self.level, -1, -1):
            names = {name for index in leaves if (name := self.node_name(level, index >> 8 * level))}
            self._load(np.frombuffer(b"".join(names), np.uint8).reshape(-1, CHUNK_NAME_SIZE), level)

    def leaves(self) -> Iterator[tuple[int, Names]]:
        """(index, names) of all leaves that are not absent, in order."""
        nodes = self.nodes(0)
        while group := list(islice(nodes, TOGETHER)):
            self._load(np.frombuffer(b"".join(name for _, name in group), np.uint8).reshape(-1, CHUNK_NAME_SIZE), 0)
            for index, name in group:
                yield index, self._node(name, 0)

    def nodes(self, level: int) -> Iterator[tuple[int, ChunkName]]:
        """(index, name) of all nodes of a level that are not absent, in order."""
        if self.root is not None and level <= self.level:
            yield from self._below(self.root, self.level, 0, level)

    def _below(self, name: ChunkName, at: int, index: int, level: int) -> Iterator[tuple[int, ChunkName]]:
        if at == level:
            yield index, name
            return
        names = self._node(name, at)
        used = np.flatnonzero(names.any(axis=1))
        for first in range(0, len(used), TOGETHER):
            slots = used[first : first + TOGETHER]
            if at - 1 > level:
                self._load(names[slots], at - 1)
            for slot in slots:
                yield from self._below(ChunkName(names[slot].tobytes()), at - 1, index * FANOUT + int(slot), level)

    def _load(self, names: Names, level: int) -> None:
        """Read nodes that will be needed soon: together they are a few requests."""
        missing = [row for row in range(len(names)) if names[row].tobytes() not in self._cache]
        for row, content in zip(missing, self._read_many(names[missing]) if missing else [], strict=True):
            self._keep(ChunkName(names[row].tobytes()), decode_node(content, level))

    def _node(self, name: ChunkName, level: int) -> Names:
        with self._lock:
            names = self._cache.get(name)
            if names is not None:
                self._cache.move_to_end(name)
                return names
        names = decode_node(self._read_many(np.frombuffer(name, np.uint8).reshape(1, CHUNK_NAME_SIZE))[0], level)
        self._keep(name, names)
        return names

    def _keep(self, name: ChunkName, names: Names) -> None:
        with self._lock:
            self._cache[name] = names
            if len(self._cache) > _NODE_CACHE:
                self._cache.popitem(last=False)


class BlockMapBuilder:
    """Makes the block map of a disk of `size` bytes out of another one (`base`, which may have another size).

    Leaves that are not given are the base's. Canonical (design 4.9.5): entries beyond the end are cleared here; that
    the last block's content is padded with zeroes is the caller's part.
    """

    def __init__(self, base: BlockMap | None, size: int, put: PutNodes) -> None:
        self._base = base
        self._blocks = blocks_of(size)
        self._size = size
        self._put = put
        self._names: dict[tuple[int, int], ChunkName | None] = {}
        """Nodes that differ from the base's, by (level, index)."""
        self._leaves: list[tuple[int, Names]] = []
        """Leaves that wait to be stored together."""

    def put_leaf(self, index: int, names: Names) -> None:
        """Replace leaf `index` by `names` (256, 32). Each leaf at most once, none beyond the end."""
        inside = self._blocks - index * FANOUT
        if inside < FANOUT:
            names = names.copy()
            names[max(0, inside) :] = 0
        self._leaves.append((index, names))
        if len(self._leaves) == TOGETHER:
            self._store(0, self._leaves)
            self._leaves = []

    def finish(self) -> Tree:
        """Store the inner nodes; gives the tree."""
        if not self._blocks:
            return Tree(self._size, None)
        resized = self._base is not None and blocks_of(self._base.size) != self._blocks
        edge = (self._blocks - 1) // FANOUT
        self._store(0, self._leaves)
        if resized and (0, edge) not in self._names and self._base and (names := self._base.leaf(edge)) is not None:
            self._leaves = []
            self.put_leaf(edge, names)
            self._store(0, self._leaves)
        top = root_level(self._blocks)
        for level in range(1, top + 1):
            changed = {index // FANOUT for at, index in self._names if at == level - 1}
            if resized:
                # The right edge may hold what is beyond the new end; above the base's root there is nothing yet.
                changed |= {0, (self._blocks - 1) // FANOUT ** (level + 1)}
            ordered = sorted(changed)
            for first in range(0, len(ordered), TOGETHER):
                self._store(level, [(index, self._inner(level, index)) for index in ordered[first : first + TOGETHER]])
        return Tree(self._size, self._name(top, 0))

    def _inner(self, level: int, index: int) -> Names:
        """The entries of an inner node: the base's, with changed children replaced and what is beyond the end cleared."""
        names = self._base.node(level, index) if self._base else None
        names = np.zeros((FANOUT, CHUNK_NAME_SIZE), np.uint8) if names is None else names.copy()
        first = index * FANOUT
        for slot in range(FANOUT):
            if (level - 1, first + slot) in self._names or (self._base and level == self._base.level + 1 and slot == 0):
                name = self._name(level - 1, first + slot)
                names[slot] = np.frombuffer(name, np.uint8) if name else 0
        inside = -(-self._blocks // FANOUT**level) - first
        names[max(0, inside) :] = 0
        return names

    def _name(self, level: int, index: int) -> ChunkName | None:
        if (level, index) in self._names:
            return self._names[level, index]
        return self._base.node_name(level, index) if self._base else None

    def _store(self, level: int, nodes: list[tuple[int, Names]]) -> None:
        """Store nodes of a level, (index, names); those without any names are absent."""
        self._names.update(((level, index), None) for index, _ in nodes)
        used = [(index, names) for index, names in nodes if names.any()]
        before = [self._base.node_name(level, index) if self._base else None for index, _ in used]
        stored = self._put([encode_node(level, names) for _, names in used], before) if used else []
        self._names.update(((level, index), name) for (index, _), name in zip(used, stored, strict=True))


def names_needed(read_many: ReadChunks, tree: Tree, seen: set[bytes]) -> Iterator[Names]:
    """All chunk names a tree needs, nodes included, in arrays (n, 32) with zeroes where absent.

    `seen` holds the nodes that were walked before, by this or another tree (points share most of theirs); they are
    passed over, and new ones are added. Children of one node are read together. Raises Damaged, FormatError.
    """
    if tree.root is None:
        return
    level = root_level(blocks_of(tree.size))
    stack = [(np.frombuffer(tree.root, np.uint8).reshape(1, CHUNK_NAME_SIZE), level)]
    while stack:
        names, level = stack.pop()
        new = [row for row in range(len(names)) if names[row].tobytes() not in seen]
        if not new:
            continue
        names = names[new]
        seen.update(row.tobytes() for row in names)
        yield names
        for content in read_many(names):
            entries = decode_node(content, level)
            if level == 0:
                yield entries
            else:
                stack.append((entries[entries.any(axis=1)], level - 1))


def _chunk(row: Names) -> ChunkName | None:
    name = row.tobytes()  # 0.2 us, where numpy takes 5 to see that something is not zero
    return None if name == NO_CHUNK else ChunkName(name)
