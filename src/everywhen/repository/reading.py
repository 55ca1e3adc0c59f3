# SPDX-License-Identifier: AGPL-3.0-or-later
"""Having points open: the reader's steps R1 to R4 of docs/locking.md, and copying a whole disk out in parallel."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Protocol

import numpy as np

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.ids import random_word
from everywhen.formats.node import FANOUT, Names
from everywhen.formats.point import RecoveryPoint, Tree
from everywhen.repository.blockmap import BlockMap
from everywhen.repository.errors import Damaged, DamagedChunk, NoSuchPoint
from everywhen.repository.fetch import ChunkFetcher
from everywhen.repository.intake import WORKERS
from everywhen.repository.repository import Repository
from everywhen.storage.base import AccessDenied, OutOfSpace, ReadOnly

_BATCH = 64
_FEW = 16
"""Points up to which it takes less to ask for each than to have all listed."""
_WRITTEN = 8
"""Blocks unpacked and written together: 512 KiB are still in the processor's cache when the kernel copies them."""
_FAR_READERS = 8
"""Threads for a store far away: with 30 ms a request and 1 MB in each, eight of them fill a line of 250 MB/s."""


class Sink(Protocol):
    """Where the bytes of a disk go. Both methods are called from several threads."""

    def write(self, offset: int, data: bytes) -> None: ...

    def zero(self, offset: int, length: int) -> None: ...


@contextmanager
def opened_points(
    repository: Repository, what: str, points: list[RecoveryPoint], *, packs_known: bool = False
) -> Iterator[bool]:
    """A lease on the points while the body runs; they were there after the lease was. Raises NoSuchPoint.

    Of none, it says that somebody is here. `packs_known`: the index was brought up to date after these points were made; what
    gc moved since is found when missed.
    Gives False when the medium cannot be written or is full: then nothing keeps another computer's gc from deleting them.
    """
    lease = repository.attend(f"leases/{random_word(repository.surroundings.randomness, 16)}", what, [p.point for p in points])
    try:
        lease.begin()
    except (ReadOnly, AccessDenied, OutOfSpace):
        repository.refresh()
        yield False
        return
    try:
        repository.look_for_condemned() if packs_known else repository.refresh()
        # One by one each is asked for; of many there is a list, which is read from a cache.
        listed = {point.point for point in repository.points.list()[0]} if len(points) > _FEW else set()
        for point in points:
            # A point that is condemned after this is kept: gc looks for leases after it has condemned.
            if point.point in repository.condemned_points:
                raise NoSuchPoint(f"{point.point} was dropped, and is being deleted just now")
            if point.point not in listed:
                repository.points.get(point.point)
        yield True
    finally:
        lease.end()


def copy_disk(fetcher: ChunkFetcher, tree: Tree, sink: Sink, progress: Callable[[int], None]) -> None:
    """Write a whole disk to `sink`: every byte exactly once, in about ascending order.

    `progress` is told bytes of data (zeroes not counted). Raises Damaged, and what the sink raises.
    """
    block_map = BlockMap(fetcher.read_many, tree)
    readers = _FAR_READERS if fetcher.far else WORKERS
    with ThreadPoolExecutor(readers, thread_name_prefix="copy") as pool:
        pending: deque[Future[int]] = deque()
        try:
            for job in _jobs(block_map, fetcher, sink):
                pending.append(pool.submit(job))
                if len(pending) > 2 * readers:
                    progress(pending.popleft().result())
            while pending:
                progress(pending.popleft().result())
        finally:
            for future in pending:
                future.cancel()


def copy_disk_in_order(fetcher: ChunkFetcher, tree: Tree, sink: Sink, progress: Callable[[int], None]) -> None:
    """`copy_disk` for a sink that cannot seek: strictly ascending, one write at a time; chunks are fetched ahead."""
    block_map = BlockMap(fetcher.read_many, tree)
    at = 0
    readers = _FAR_READERS if fetcher.far else WORKERS
    with ThreadPoolExecutor(readers, thread_name_prefix="copy") as pool:
        pending: deque[tuple[int, int, Names, Future[list[bytes]]]] = deque()

        def settle() -> None:
            nonlocal at
            first, length, names, future = pending.popleft()
            with _placing(first, names):
                data = b"".join(future.result())[:length]
            start = first * BLOCK_SIZE
            if start > at:
                sink.zero(at, start - at)
            sink.write(start, data)
            at = start + length
            progress(length)

        try:
            for first, names in _runs(block_map):
                start = first * BLOCK_SIZE
                length = min(len(names) * BLOCK_SIZE, tree.size - start)
                pending.append((first, length, names, pool.submit(fetcher.read_many, names)))
                if len(pending) > 2 * readers:
                    settle()
            while pending:
                settle()
        finally:
            for *_, future in pending:
                future.cancel()
    if at < tree.size:
        sink.zero(at, tree.size - at)


def _runs(block_map: BlockMap) -> Iterator[tuple[int, Names]]:
    """(first block, names) of stretches of used blocks, at most `_BATCH` long, in order."""
    for index, names in block_map.leaves():
        used = np.flatnonzero(names.any(axis=1))
        for stretch in np.split(used, np.flatnonzero(np.diff(used) != 1) + 1):
            for at in range(0, len(stretch), _BATCH):
                slots = stretch[at : at + _BATCH]
                yield index * FANOUT + int(slots[0]), names[slots]


def _jobs(block_map: BlockMap, fetcher: ChunkFetcher, sink: Sink) -> Iterator[Callable[[], int]]:
    """Work that covers the disk once; each job tells how many bytes of data it wrote.

    A job takes up to `_BATCH` used blocks, neighbours or not: on a fragmented disk that is still few reads of packs.
    """
    at = 0
    group: list[tuple[int, Names]] = []
    count = 0
    for first, names in _runs(block_map):
        start = first * BLOCK_SIZE
        if start > at:
            yield _zeroing(sink, at, start - at)
        at = min(start + len(names) * BLOCK_SIZE, block_map.size)
        group.append((first, names))
        count += len(names)
        if count >= _BATCH:
            yield _writing(fetcher, sink, block_map.size, group)
            group, count = [], 0
    if group:
        yield _writing(fetcher, sink, block_map.size, group)
    if at < block_map.size:
        yield _zeroing(sink, at, block_map.size - at)


@contextmanager
def _placing(first: int, names: Names) -> Iterator[None]:
    """Say where on the disk a chunk is that cannot be read; `names` of blocks from `first` on. Raises Damaged."""
    try:
        yield
    except DamagedChunk as error:
        rows = np.flatnonzero((names == np.frombuffer(error.name, np.uint8)).all(axis=1))
        if not len(rows):
            raise
        start = (first + int(rows[0])) * BLOCK_SIZE
        raise Damaged(f"bytes {start:,} - {start + BLOCK_SIZE - 1:,}: {error}") from error


def _zeroing(sink: Sink, start: int, length: int) -> Callable[[], int]:
    def job() -> int:
        sink.zero(start, length)
        return 0

    return job


def _writing(fetcher: ChunkFetcher, sink: Sink, size: int, group: list[tuple[int, Names]]) -> Callable[[], int]:
    def job() -> int:
        contents = fetcher.each(np.concatenate([names for _, names in group]))
        done = 0
        for first, names in group:
            for at in range(0, len(names), _WRITTEN):
                start = (first + at) * BLOCK_SIZE
                length = min(min(_WRITTEN, len(names) - at) * BLOCK_SIZE, size - start)
                with _placing(first, names):
                    data = b"".join(islice(contents, min(_WRITTEN, len(names) - at)))
                sink.write(start, data if len(data) == length else data[:length])
                done += length
        return done

    return job
