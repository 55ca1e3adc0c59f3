# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two states of a VM's disks, opened side by side, and what has to be written to make the one the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from everywhen.repository.intake import WORKERS
from everywhen.repository.ledger import Vm
from everywhen.repository.reading import opened_points
from everywhen.repository.repository import Repository
from everywhen.services.opening import OpenedMoment
from everywhen.services.rollback.image_writer import ImageWriter
from everywhen.services.view.blocks import Blocks
from everywhen.services.view.differing_extents import differing_blocks, extents
from everywhen.services.view.disk import MomentDisk
from everywhen.services.view.moments import MomentView

_PIECE = 4 << 20
"""Bytes that are read and written together."""

Stretches = list[tuple[int, int]]
"""(start, length) in bytes, ascending."""


@contextmanager
def opened_states(repository: Repository, vm: Vm, moments: tuple[OpenedMoment, OpenedMoment]) -> Iterator[list[MomentView]]:
    """Both, leased while the body runs. Raises NoSuchPoint, StorageError."""
    blocks = Blocks(repository.fetcher)
    try:
        with opened_points(repository, f"rollback {vm.name}", [moment.point for moment in moments]) as leased:
            yield [_view(repository, vm, moment, blocks, leased=leased) for moment in moments]
    finally:
        blocks.close()


def _view(repository: Repository, vm: Vm, moment: OpenedMoment, blocks: Blocks, *, leased: bool) -> MomentView:
    disks = {
        name: MomentDisk(repository.used_ranges, blocks, disk.tree, moment.patches.get(name))
        for name, disk in moment.point.disks.items()
    }
    return MomentView(vm, moment, disks, leased)


def to_write(repository: Repository, now: MomentView, then: MomentView, disk: str) -> Stretches:
    """What of the disk must be written so that it becomes what it was `then`; whole blocks. Raises Damaged, StorageError."""
    found = list(
        extents(differing_blocks(repository.fetcher, now, then, disk), max(now.disks[disk].size, then.disks[disk].size))
    )
    end = then.disks[disk].size
    return [(start, min(length, end - start)) for start, length in found if start < end]


def write(disk: MomentDisk, stretches: Stretches, writer: ImageWriter, advance: Callable[[int], None]) -> None:
    """Write these bytes of a disk to its image; what comes next is read meanwhile. Raises Failed, Damaged, StorageError."""
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="rollback") as pool:
        pending: deque[tuple[int, Future[bytes]]] = deque()

        def settle() -> None:
            at, future = pending.popleft()
            content = future.result()
            writer.write(at, content)
            advance(len(content))

        try:
            for at, length in _pieces(stretches):
                pending.append((at, pool.submit(disk.read, at, length)))
                if len(pending) > 2 * WORKERS:
                    settle()
            while pending:
                settle()
        finally:
            for _, future in pending:
                future.cancel()


def _pieces(stretches: Stretches) -> Iterator[tuple[int, int]]:
    for start, length in stretches:
        for at in range(start, start + length, _PIECE):
            yield at, min(_PIECE, start + length - at)
