# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which bytes of a disk differ between two opened moments, in whole blocks: found in the block maps; only blocks in which a
journal's records lie are read.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.layouts.runs import Runs
from everywhen.repository.block_differences import BlockDifferences, BlockNumbers
from everywhen.repository.fetch import ChunkFetcher
from everywhen.services.view.moments import MomentView


def differing_blocks(fetcher: ChunkFetcher, before: MomentView, after: MomentView, disk: str) -> BlockNumbers:
    """Numbers of the blocks of a disk that both moments have, ascending. Raises Damaged, StorageError."""
    views = before, after
    trees = [view.moment.point.disks[disk].tree for view in views]
    found = BlockDifferences(fetcher.read_many).between(trees[0], [trees[1]])[0].blocks
    patched = {
        first
        for view, tree in zip(views, trees, strict=True)
        if disk in view.moment.patches
        for begin, end in view.moment.patches[disk].ranges(tree.size)
        for first in range(begin, end)
    }
    if not patched:
        return found
    alone = [block for block in sorted(patched) if _block(before, disk, block) != _block(after, disk, block)]
    rest = found[~np.isin(found, np.array(sorted(patched), np.int64))]
    return np.union1d(rest, np.array(alone, np.int64))


def extents(blocks: BlockNumbers, size: int) -> Iterator[tuple[int, int]]:
    """(start, length) in bytes of the stretches of these blocks, on a disk of this size."""
    runs = Runs.of_blocks(blocks, BLOCK_SIZE, size)
    yield from ((int(start), int(end - start)) for start, end in zip(runs.starts, runs.ends, strict=True))


def _block(view: MomentView, disk: str, block: int) -> bytes:
    device = view.disks[disk]
    start = block * BLOCK_SIZE
    return device.read(start, max(0, min(BLOCK_SIZE, device.size - start))) if start < device.size else b""
