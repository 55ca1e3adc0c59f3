# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk as it was at a recovery point, as a block device: nothing is extracted, blocks are fetched when they are read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from everywhen.block.device import BLOCK_SIZE, Extent
from everywhen.formats.node import FANOUT
from everywhen.formats.point import Tree
from everywhen.repository.blockmap import BlockMap
from everywhen.repository.fetch import ChunkFetcher


class PointDisk:
    """A read-only BlockDevice over a tree. For one thread at a time; several may share a fetcher."""

    def __init__(self, fetcher: ChunkFetcher, tree: Tree) -> None:
        self._fetcher = fetcher
        self._map = BlockMap(fetcher.read_many, tree)
        self.size = tree.size

    def read(self, offset: int, length: int) -> bytes:
        """Raises ValueError outside the disk, Damaged when a block has no readable copy."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are outside a disk of {self.size} bytes")
        first, end = offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)
        blocks = self._blocks(first, end)
        start = offset - first * BLOCK_SIZE
        return b"".join(blocks)[start : start + length]

    def read_blocks(self, blocks: list[int]) -> list[bytes]:
        """Some blocks by their numbers, at most 64, the last of the disk with what its chunk has. For who changes them.

        All together: a search in the index costs 100 µs, for one name or for 64. Raises Damaged.
        """
        self._map.read_ahead(sorted({block // FANOUT for block in blocks}))
        contents, names = [bytes(BLOCK_SIZE)] * len(blocks), {}
        for row, block in enumerate(blocks):
            entries = self._map.leaf(block // FANOUT)
            if entries is not None and entries[block % FANOUT].any():
                names[row] = entries[block % FANOUT]
        if names:
            found = self._fetcher.read_many_to_follow(np.stack(list(names.values())))
            for row, content in zip(names, found, strict=True):
                contents[row] = content
        return contents

    def extents(self) -> Iterator[Extent]:
        """Blocks without a chunk are zero."""
        at = 0
        for index, names in self._map.leaves():
            start = index * FANOUT * BLOCK_SIZE
            if start > at:
                yield Extent(at, start - at, zero=True)
                at = start
            used: npt.NDArray[np.bool_] = np.asarray(names.any(axis=1))
            edges = np.flatnonzero(np.diff(used.astype(np.int8))) + 1
            for slots in np.split(np.arange(FANOUT), edges):
                end = min(self.size, start + (int(slots[-1]) + 1) * BLOCK_SIZE)
                if end > at:
                    yield Extent(at, end - at, zero=not used[slots[0]])
                    at = end
        if at < self.size:
            yield Extent(at, self.size - at, zero=True)

    def close(self) -> None:
        """Nothing is held."""

    def _blocks(self, first: int, end: int) -> list[bytes]:
        contents = [bytes(BLOCK_SIZE)] * (end - first)
        rows, names = [], []
        for leaf in range(first // FANOUT, -(-end // FANOUT)):
            entries = self._map.leaf(leaf)
            if entries is None:
                continue
            low, high = max(first, leaf * FANOUT), min(end, (leaf + 1) * FANOUT)
            part = entries[low - leaf * FANOUT : high - leaf * FANOUT]
            used = np.flatnonzero(part.any(axis=1))
            rows += (used + low - first).tolist()
            names.append(part[used])
        if rows:
            for row, content in zip(rows, self._fetcher.read_many(np.concatenate(names)), strict=True):
                contents[row] = content
        return contents
