# SPDX-License-Identifier: AGPL-3.0-or-later
"""Disks out of a recovery point: to new image files, onto devices, in place, or as a stream."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from everywhen.block import qemu_locks
from everywhen.block.device import BLOCK_SIZE
from everywhen.block.target import Target
from everywhen.block.target_device import WholeDevice
from everywhen.block.target_file import NewFile
from everywhen.block.target_in_place import InPlace
from everywhen.block.target_stream import Stream
from everywhen.formats.layouts.choose import FORMATS
from everywhen.formats.layouts.layout import Identity, Layout, LayoutError
from everywhen.formats.layouts.runs import Runs
from everywhen.formats.point import RecoveryPoint, Tree
from everywhen.repository.disk import PointDisk
from everywhen.repository.ledger import Vm
from everywhen.repository.reading import copy_disk, copy_disk_in_order, opened_points, used_blocks
from everywhen.repository.repository import Repository
from everywhen.services.failures import Failed, NotFound, WrongUsage

Report = Callable[[int, int | None], None]
Mode = Literal["new", "overwrite", "in-place"]


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    """What goes where. `to`: a file for one disk, a folder for several, `-` for standard output (a descriptor)."""

    vm: Vm
    point: RecoveryPoint
    disks: list[str]
    to: str
    format: str
    mode: Mode
    stdout: int
    files: bool
    """Whether the configuration files are wanted too (only into a folder)."""


@dataclass(frozen=True, slots=True)
class RestoredDisk:
    """One disk that was restored: where to, its size, bytes of data, and bytes really written (in place: fewer)."""

    disk: str
    path: str
    size: int
    bytes_data: int
    bytes_written: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """Everything that was restored; `remarks` for the user."""

    disks: list[RestoredDisk]
    files: list[str]
    seconds: float
    remarks: list[str]


def restore(repository: Repository, order: RestoreOrder, report: Report) -> RestoreResult:
    """Raises Failure and the errors of the layers below. What is being written when it fails is removed or named."""
    began = repository.surroundings.clock()
    if order.format not in FORMATS:
        raise WrongUsage(f'"{order.format}" is not a format that can be written: {", ".join(FORMATS)}.', on=order.format)
    if not order.disks:
        raise NotFound(f"{order.vm.name} had no disks at {order.point.point}.", on=order.vm.name)
    into_folder = len(order.disks) > 1 or os.path.isdir(order.to)
    if order.to == "-" and into_folder:
        raise WrongUsage("Standard output takes one disk: name it, as in web1/vda@latest.", on=order.to)
    restored: list[RestoredDisk] = []
    remarks: list[str] = []
    with opened_points(repository, f"restore {order.vm.name}", [order.point]) as leased:
        if not leased:
            remarks.append("the repository cannot be written, so nothing there says that this moment is being read")
        total = sum(used_bytes(repository, order.point.disks[name].tree) for name in order.disks)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            report(done, total)

        report(0, total)
        if into_folder:
            os.makedirs(order.to, exist_ok=True)
        for name in order.disks:
            path = os.path.join(order.to, f"{order.vm.name}-{name}.{_suffix(order.format)}") if into_folder else order.to
            restored.append(_restore_disk(repository, order, name, path, advance))
        files = _restore_files(repository, order) if into_folder and order.files else []
    return RestoreResult(restored, files, (repository.surroundings.clock() - began) / 1e9, remarks)


def used_bytes(repository: Repository, tree: Tree) -> int:
    """Bytes of a disk that are not known to be zero, in whole blocks."""
    return len(used_blocks(repository.fetcher, tree)) * BLOCK_SIZE


def _restore_disk(
    repository: Repository, order: RestoreOrder, name: str, path: str, advance: Callable[[int], None]
) -> RestoredDisk:
    tree = order.point.disks[name].tree
    data = 0

    def count(length: int) -> None:
        nonlocal data
        data += length
        advance(length)

    with _target(repository, order, name, path) as target:
        copy = copy_disk_in_order if isinstance(target, Stream) else copy_disk
        copy(repository.fetcher, tree, target, count)
        target.finish()
    written = target.bytes_written if isinstance(target, InPlace) else data
    resumed = isinstance(target, InPlace) and target.unfinished is not None
    return RestoredDisk(name, target.path, tree.size, data, written, resumed)


def _target(repository: Repository, order: RestoreOrder, name: str, path: str) -> Target:
    tree = order.point.disks[name].tree
    source = f"{order.vm.name}/{name}@{order.point.point}"
    if path == "-":
        if order.format != "raw":
            raise WrongUsage("Standard output takes raw only: leave --format out.", on=order.format)
        return Stream(order.stdout, tree.size)
    device = os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode)
    if order.mode == "in-place":
        return _in_place(repository, order, path, tree, source, device=device)
    if device:
        if order.format != "raw":
            raise WrongUsage(f"{path} is a block device: it takes raw only.", on=path)
        if order.mode != "overwrite":
            raise Failed(
                f"{path} is a block device.",
                on=path,
                safe="Nothing was written.",
                do=["Overwrite all of it: --overwrite", "Write only what differs: --in-place"],
            )
        return WholeDevice(path, tree.size)
    lock = qemu_locks.writing(path) if os.path.exists(path) else None
    return NewFile(path, _layout(repository, order, name, path, tree), overwrite=order.mode == "overwrite", lock=lock)


def _in_place(repository: Repository, order: RestoreOrder, path: str, tree: Tree, source: str, *, device: bool) -> InPlace:
    if order.format != "raw":
        raise WrongUsage("--in-place writes raw images and block devices only.", on=path)
    if not os.path.exists(path):
        raise NotFound(f"{path} does not exist; --in-place writes over something that is there.", on=path)
    marks = repository.cache / "restoring"
    marks.mkdir(exist_ok=True)
    return InPlace(path, tree.size, source, mark_folder=str(marks) if device else None, lock=qemu_locks.writing(path))


def _layout(repository: Repository, order: RestoreOrder, name: str, path: str, tree: Tree) -> Layout:
    used = used_blocks(repository.fetcher, tree)
    runs = Runs.of_blocks(used, BLOCK_SIZE, tree.size) if len(used) else Runs.of_extents([])
    fresh = uuid.UUID(bytes=repository.surroundings.randomness(16), version=4)
    created = repository.surroundings.clock() // 1_000_000_000
    try:
        return FORMATS[order.format](tree.size, runs, Identity(fresh, created, os.path.basename(path)))
    except LayoutError as error:
        raise Failed(
            f"{order.vm.name}/{name} cannot be written as {order.format}: {error}",
            on=path,
            safe="Nothing was written.",
            do=["Choose another --format."],
        ) from error


def _restore_files(repository: Repository, order: RestoreOrder) -> list[str]:
    """The configuration files, beside the disks."""
    written = []
    for name, tree in sorted(order.point.files.items()):
        # The name was a file's base name when it was stored; a forged repository could say otherwise.
        path = os.path.join(order.to, os.path.basename(name) or "unnamed")
        content = PointDisk(repository.fetcher, tree).read(0, tree.size)
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if order.mode == "overwrite" else os.O_EXCL)
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        written.append(path)
    return written


def _suffix(image_format: str) -> str:
    return {"vhd-fixed": "vhd"}.get(image_format, image_format)
