# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which byte ranges of which disks in which moments cannot be read (rule 4.9.6).

Points share nearly all nodes of their block maps: what is lost below a node is found once and remembered by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.errors import FormatError
from everywhen.formats.ids import ChunkName
from everywhen.formats.node import FANOUT, Names, decode_node, root_level
from everywhen.formats.point import RecoveryPoint, Tree
from everywhen.repository.blockmap import blocks_of
from everywhen.repository.errors import Damaged
from everywhen.repository.verify.findings import Loss, Range, merged

Readable = Callable[[Names], np.ndarray[tuple[int], np.dtype[np.bool_]]]
"""Of which of the names (n, 32) there is a usable copy."""


@dataclass(frozen=True, slots=True)
class LostBlocks:
    """Blocks `first` to `end` - 1 of the range of a node, lost with the chunk or node `name`."""

    first: int
    end: int
    name: bytes
    is_node: bool


class LossFinder:
    """Walks trees; for one thread. `read` gives a node's content, or raises Damaged."""

    def __init__(self, read: Callable[[ChunkName], bytes], readable: Readable) -> None:
        self._read = read
        self._readable = readable
        self._below: dict[bytes, tuple[LostBlocks, ...]] = {}

    def lost_in(self, tree: Tree) -> tuple[LostBlocks, ...]:
        """Lost blocks of a tree, ascending. Raises StorageError."""
        return self._lost(tree.root, root_level(blocks_of(tree.size))) if tree.root else ()

    def _lost(self, name: ChunkName, level: int) -> tuple[LostBlocks, ...]:
        lost = self._below.get(name)
        if lost is None:
            try:
                entries = decode_node(self._read(name), level)
            except (Damaged, FormatError):
                lost = (LostBlocks(0, FANOUT ** (level + 1), name, is_node=True),)
            else:
                lost = tuple(self._lost_entries(entries, level))
            self._below[name] = lost
        return lost

    def _lost_entries(self, entries: Names, level: int) -> Iterator[LostBlocks]:
        used = np.flatnonzero(entries.any(axis=1))
        if level:
            for slot in used.tolist():
                start = slot * FANOUT**level
                for lost in self._lost(ChunkName(entries[slot].tobytes()), level - 1):
                    yield LostBlocks(start + lost.first, start + lost.end, lost.name, lost.is_node)
            return
        for slot in used[~self._readable(entries[used])].tolist():
            yield LostBlocks(slot, slot + 1, entries[slot].tobytes(), is_node=False)


def losses(
    points: Iterable[RecoveryPoint], finder: LossFinder, cause: Callable[[bytes], Iterable[int]]
) -> dict[int, list[Loss]]:
    """By cause: what is lost. `cause` gives the numbers of what a lost chunk's name was lost through.

    Moments that lose the same ranges of the same disk through the same cause are one Loss.
    """
    alike: dict[tuple[int, str, str, str, tuple[Range, ...]], list[tuple[str, int]]] = {}
    for point in points:
        trees = [("disk", name, disk.tree) for name, disk in point.disks.items()]
        trees += [("file", name, tree) for name, tree in point.files.items()]
        for kind, name, tree in trees:
            by_cause: dict[int, list[Range]] = {}
            for lost in finder.lost_in(tree):
                start, end = lost.first * BLOCK_SIZE, min(lost.end * BLOCK_SIZE, tree.size)
                for number in cause(lost.name):
                    by_cause.setdefault(number, []).append((start, end))
            for number, parts in by_cause.items():
                alike.setdefault((number, point.vm, kind, name, merged(parts)), []).append((point.point, point.time_ns))
    result: dict[int, list[Loss]] = {}
    for (number, vm, kind, name, ranges), found in alike.items():
        result.setdefault(number, []).append(Loss(vm, kind, name, ranges, tuple(sorted(found, key=lambda p: (p[1], p[0])))))
    return result


def lost_names(points: Iterable[RecoveryPoint], finder: LossFinder) -> dict[bytes, bool]:
    """Names of all lost chunks, and whether each is a node."""
    found: dict[bytes, bool] = {}
    for point in points:
        for tree in point.trees():
            found.update((lost.name, lost.is_node) for lost in finder.lost_in(tree))
    return found
