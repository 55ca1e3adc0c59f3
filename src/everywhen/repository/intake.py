# SPDX-License-Identifier: AGPL-3.0-or-later
"""One disk into the repository: which blocks to read, reading them, and the block map that comes out.

A first backup, a hash scan and a backup of known changes are the same code: they differ in which blocks are looked at.
A block that is not looked at keeps the name it had in `base`.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everywhen.block.device import BLOCK_SIZE, BlockDevice
from everywhen.formats.node import FANOUT, Names
from everywhen.formats.point import Tree
from everywhen.repository.blockmap import TOGETHER, BlockMap, BlockMapBuilder, blocks_of
from everywhen.repository.chunk import Content
from everywhen.repository.ingest import Batch, ChunkSink, Taken

_BATCH = 64
"""Blocks in a batch: 4 MiB, large enough that Python's cost per batch vanishes, small enough to keep memory low."""

WORKERS = max(2, os.cpu_count() or 2)
_AHEAD = WORKERS + 2

_ZEROES = bytes(BLOCK_SIZE)

Ranges = list[tuple[int, int]]
"""Sorted, disjoint (first, end) block numbers."""


@dataclass(frozen=True, slots=True)
class Intake:
    """What taking in a disk gave; figures in bytes, nodes of the block map not counted."""

    tree: Tree
    bytes_read: int
    bytes_changed: int
    bytes_stored: int
    left: Ranges
    """Blocks that were to be looked at, and were not: it was enough before."""


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A leaf being made: its names so far."""

    index: int
    names: Names


@dataclass(frozen=True, slots=True)
class _Part:
    """Blocks of one leaf: their slots in it, (n,), and contents. With it everything before block `end` is dealt with."""

    leaf: _Leaf
    slots: npt.NDArray[np.intp]
    contents: list[Content]
    end: int


def take_disk(
    sink: ChunkSink,
    device: BlockDevice,
    base: BlockMap | None,
    changed: Ranges | None,
    progress: Callable[[int], None],
    enough: Callable[[], bool] = lambda: False,
) -> Intake:
    """Take in `device`. `changed` None: look at every block; else only at those (and at a resized disk's end).

    `progress` is told bytes of the disk dealt with since it was last called. `enough` is asked after each batch, at least
    one: then what follows is left as it is in `base`. Raises DeviceError, StorageError, Damaged.
    """
    looked_at = None if base is None else with_edges(changed, base.size, device.size)
    left: Ranges = []
    builder = BlockMapBuilder(base, device.size, sink.put_nodes)
    figures = np.zeros(3, np.int64)
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="take") as pool:
        pending: deque[tuple[list[_Part], int, Future[Taken]]] = deque()
        open_leaf: _Leaf | None = None

        def settle() -> None:
            nonlocal open_leaf
            parts, read, future = pending.popleft()
            taken = future.result()
            at = 0
            for part in parts:
                if open_leaf is not None and open_leaf is not part.leaf:
                    builder.put_leaf(open_leaf.index, open_leaf.names)
                open_leaf = part.leaf
                part.leaf.names[part.slots] = taken.names[at : at + len(part.slots)]
                at += len(part.slots)
            figures[:] += (read, taken.bytes_changed, taken.bytes_stored)
            progress(read)

        try:
            for parts in _batches(_read(device, base, looked_at)):
                contents = [content for part in parts for content in part.contents]
                batch = Batch(contents, np.concatenate([part.leaf.names[part.slots] for part in parts]))
                read = sum(len(content) for content in contents if content is not _ZEROES)
                pending.append((parts, read, pool.submit(sink.take, batch)))
                if len(pending) > _AHEAD:
                    settle()
                if enough():
                    left = _from(parts[-1].end, looked_at, device.size)
                    break
            while pending:
                settle()
        finally:
            for *_, future in pending:
                future.cancel()
        if open_leaf is not None:
            builder.put_leaf(open_leaf.index, open_leaf.names)
    read, changed_bytes, stored = figures.tolist()
    return Intake(builder.finish(), read, changed_bytes, stored, left)


def _batches(parts: Iterator[_Part]) -> Iterator[list[_Part]]:
    """Parts together until they have `_BATCH` blocks: scattered changes come as many parts of few blocks."""
    batch: list[_Part] = []
    blocks = 0
    for part in parts:
        batch.append(part)
        blocks += len(part.slots)
        if blocks >= _BATCH:
            yield batch
            batch, blocks = [], 0
    if batch:
        yield batch


def _from(block: int, looked_at: Ranges | None, size: int) -> Ranges:
    """What is to be looked at from this block on."""
    ranges = [(0, blocks_of(size))] if looked_at is None else looked_at
    return [(max(first, block), end) for first, end in ranges if end > block]


def _read(device: BlockDevice, base: BlockMap | None, looked_at: Ranges | None) -> Iterator[_Part]:
    """What to take, in order, up to `_BATCH` blocks at a time. Known zeroes are `_ZEROES`, and were not read."""
    data = _data_ranges(device)
    leaves = _leaves(data, looked_at, base, device.size)
    for place, index in enumerate(leaves):
        if base and place % TOGETHER == 0:
            base.read_ahead(leaves[place : place + TOGETHER])
        before = base.leaf(index) if base else None
        names = np.zeros((FANOUT, 32), np.uint8) if before is None else before.copy()
        leaf = _Leaf(index, names)
        first = index * FANOUT
        inside = min(FANOUT, blocks_of(device.size) - first)
        wanted = np.ones(inside, bool) if looked_at is None else _mask(looked_at, first, inside)
        is_data = _mask(data, first, inside)
        zeroed = np.flatnonzero(wanted & ~is_data & names[:inside].any(axis=1))
        if len(zeroed):
            yield _Part(leaf, zeroed, [_ZEROES] * len(zeroed), first)
        to_read = np.flatnonzero(wanted & is_data)
        for at in range(0, len(to_read), _BATCH):
            slots = to_read[at : at + _BATCH]
            yield _Part(leaf, slots, _contents(device, first, slots), first + int(slots[-1]) + 1)


def _contents(device: BlockDevice, first: int, slots: npt.NDArray[np.intp]) -> list[Content]:
    """Contents of blocks `first` + slots, neighbours read together."""
    contents: list[Content] = []
    for run in np.split(slots, np.flatnonzero(np.diff(slots) != 1) + 1):
        start = (first + int(run[0])) * BLOCK_SIZE
        length = min(len(run) * BLOCK_SIZE, device.size - start)
        read = memoryview(device.read(start, length))
        contents += [read[at : at + BLOCK_SIZE] for at in range(0, length, BLOCK_SIZE)]
    return contents


def _data_ranges(device: BlockDevice) -> Ranges:
    """Blocks of which at least a byte is not known to be zero."""
    ranges: Ranges = []
    for extent in device.extents():
        if extent.zero or not extent.length:
            continue
        first, end = extent.start // BLOCK_SIZE, -(-extent.end // BLOCK_SIZE)
        if ranges and first <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((first, end))
    return ranges


def with_edges(changed: Ranges | None, before: int, size: int) -> Ranges | None:
    """Known changes, plus what a resize from `before` bytes makes new: the block at the smaller end, and all that was added."""
    if changed is None:
        return None
    end = blocks_of(size)
    ranges = [(first, min(last, end)) for first, last in changed if first < end]
    if before != size and end:
        ranges.append((min(before, size) // BLOCK_SIZE, end))
    merged: Ranges = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _leaves(data: Ranges, looked_at: Ranges | None, base: BlockMap | None, size: int) -> list[int]:
    """Leaves that may change: those with data or with names in the base, as far as they are looked at."""
    end = -(-blocks_of(size) // FANOUT)
    leaves = {index for first, last in data for index in range(first // FANOUT, -(-last // FANOUT))}
    if base is not None:
        leaves |= {index for index, _ in base.nodes(0) if index < end}
    if looked_at is not None:
        leaves &= {index for first, last in looked_at for index in range(first // FANOUT, -(-last // FANOUT))}
    return sorted(leaves)


def _mask(ranges: Ranges, first: int, count: int) -> npt.NDArray[np.bool_]:
    """(count,) bool: which of the blocks from `first` on lie in the ranges."""
    mask = np.zeros(count, bool)
    at = max(0, bisect_right(ranges, (first, 1 << 62)) - 1)
    while at < len(ranges) and ranges[at][0] < first + count:
        mask[max(0, ranges[at][0] - first) : max(0, ranges[at][1] - first)] = True
        at += 1
    return mask
