# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which bytes of a disk are used, that is, not known to be zero: what an image file of it holds, and what a restore writes.

A block map has a leaf for each 16 MiB, 65,536 for a full disk of 1 TB. What a leaf says of that is kept by the leaf's name:
states of a disk share nearly all of theirs, so that only the first one costs the reading of them.
"""

from __future__ import annotations

import threading
from itertools import islice

import numpy as np

from everywhen.block.device import BLOCK_SIZE
from everywhen.block.patched import Patches
from everywhen.formats.ids import CHUNK_NAME_SIZE, ChunkName
from everywhen.formats.layouts.runs import Runs
from everywhen.formats.node import FANOUT, decode_node
from everywhen.formats.point import Tree
from everywhen.repository.blockmap import TOGETHER, BlockMap, ReadChunks

_KEPT = 1 << 17
"""Leaves, of disks with 2 TB in use; about 200 bytes each."""


class UsedRanges:
    """Of the disks of one repository. Safe to use from several threads."""

    def __init__(self, read_many: ReadChunks) -> None:
        self._read_many = read_many
        self._kept: dict[ChunkName, bytes] = {}
        """By a leaf's name: a bit for each of its blocks."""
        self._lock = threading.Lock()

    def of(self, tree: Tree, patches: Patches | None = None) -> Runs:
        """The bytes of a disk in blocks that are not known to be zero; with what lies over it. Raises Damaged, StorageError."""
        # A record may name what lies beyond the disk: who wrote the segment is not trusted to know its size.
        patched = np.array(patches.ranges(tree.size) if patches else [], np.int64).reshape(-1, 2)
        starts, ends = [patched[:, 0]], [patched[:, 1]]
        leaves = BlockMap(self._read_many, tree).nodes(0)
        while group := list(islice(leaves, TOGETHER)):
            bits = b"".join(self._bits([name for _, name in group]))
            used = np.unpackbits(np.frombuffer(bits, np.uint8)).reshape(-1, FANOUT)
            edges = np.diff(used.astype(np.int8), axis=1, prepend=0, append=0)
            first = np.array([index for index, _ in group], np.int64) * FANOUT
            for found, edge in ((starts, 1), (ends, -1)):
                rows, slots = np.nonzero(edges == edge)
                found.append(first[rows] + slots)
        blocks = Runs.of_ranges(np.concatenate(starts), np.concatenate(ends))
        return Runs(blocks.starts * BLOCK_SIZE, np.minimum(blocks.ends * BLOCK_SIZE, tree.size))

    def _bits(self, leaves: list[ChunkName]) -> list[bytes]:
        """What is known of these leaves, or is read now, together."""
        found = {name: bits for name in leaves if (bits := self._kept.get(name)) is not None}
        missing = list(dict.fromkeys(name for name in leaves if name not in found))
        rows = np.frombuffer(b"".join(missing), np.uint8).reshape(-1, CHUNK_NAME_SIZE)
        for name, content in zip(missing, self._read_many(rows) if missing else [], strict=True):
            used = decode_node(content, 0).view(np.uint64).any(axis=1)  # four numbers a name: a third of the time
            found[name] = np.packbits(used).tobytes()
        with self._lock:
            self._kept |= {name: found[name] for name in missing}
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
        return [found[name] for name in leaves]
