# SPDX-License-Identifier: AGPL-3.0-or-later
"""Disks out of a recovery point: to new image files, onto devices, in place, or as a stream."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from everywhen.block import qemu_locks
from everywhen.block.open_image import open_image
from everywhen.block.patched import PatchedSink, Patches
from everywhen.block.target import Target
from everywhen.block.target_device import WholeDevice
from everywhen.block.target_difference import Difference
from everywhen.block.target_file import PARTIAL_SUFFIX, NewFile
from everywhen.block.target_in_place import InPlace
from everywhen.block.target_stream import Stream
from everywhen.formats.layouts.choose import FORMATS
from everywhen.formats.layouts.layout import Identity, Layout, LayoutError
from everywhen.formats.point import RecoveryPoint, Tree
from everywhen.repository.disk import PointDisk
from everywhen.repository.errors import Damaged
from everywhen.repository.ledger import Vm
from everywhen.repository.reading import copy_disk, copy_disk_in_order, opened_points
from everywhen.repository.repository import Repository
from everywhen.services.failures import Damage, Failed, NotFound, WrongUsage
from everywhen.services.naming import is_name
from everywhen.services.opening import OpenedMoment
from everywhen.services.reading_back import ReadBack, let_go
from everywhen.services.unfinished import marks_of_devices, replaced

Report = Callable[[int, int | None], None]
Mode = Literal["new", "overwrite", "in-place"]


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    """What goes where. `to`: a file for one disk, a folder for several, `-` for standard output (a descriptor)."""

    vm: Vm
    moment: OpenedMoment
    disks: list[str]
    to: str
    format: str
    mode: Mode
    stdout: int
    files: bool
    """Whether the configuration files are wanted too (only into a folder)."""
    state: Path
    """This host's state folder, for the marks of devices."""
    verify: bool = False
    """Whether what was written is read back and compared."""
    dry_run: bool = False
    """In place: compare, and write nothing."""

    @property
    def point(self) -> RecoveryPoint:
        """The point that the moment is, or that it follows."""
        return self.moment.point

    def patches(self, disk: str) -> Patches:
        """What lies over the point's disk."""
        return self.moment.patches.get(disk) or Patches()


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
    verified: bool = False
    """Read back and compared."""
    dry_run: bool = False
    """Nothing was written; `bytes_written` would have been."""


@dataclass(frozen=True, slots=True)
class _Job:
    what: str
    disk: str
    tree: Tree
    patches: Patches
    target: Target


def restore(repository: Repository, order: RestoreOrder, report: Report) -> RestoreResult:
    """Raises Failure and the errors of the layers below. What is being written when it fails is removed or named."""
    began = repository.surroundings.clock()
    if order.format not in FORMATS:
        raise WrongUsage(f'"{order.format}" is not a format that can be written: {", ".join(FORMATS)}.', on=order.format)
    if not order.disks:
        raise NotFound(f"{order.vm.name} had no disks at {order.point.point}.", on=order.vm.name)
    into_folder = len(order.disks) > 1 or os.path.isdir(order.to) or not os.path.basename(order.to)
    if order.to == "-" and into_folder:
        raise WrongUsage("Standard output takes one disk: name it, as in web1/vda@latest.", on=order.to)
    remarks: list[str] = []
    if order.files and order.point.files and not into_folder:
        remarks.append(
            f"configuration files go into a folder only, as --to DIR/; left out: {', '.join(sorted(order.point.files))}"
        )
    with opened_points(repository, f"restore {order.vm.name}", [order.point]) as leased, ExitStack() as opened:
        if not leased:
            remarks.append("the repository cannot be written, so nothing there says that this moment is being read")
        if into_folder and not order.dry_run:
            os.makedirs(order.to, exist_ok=True)
        paths = {name: _path(order, name) if into_folder else order.to for name in order.disks}
        files = _file_paths(order, set(paths.values())) if into_folder and order.files else {}
        # All targets before the first byte: that the second disk's file exists should not be learned after an hour.
        jobs = [
            _Job(
                f"{order.vm.name}/{name}@{order.moment.label}",
                name,
                order.point.disks[name].tree,
                order.patches(name),
                opened.enter_context(_target(repository, order, name, path, remarks)),
            )
            for name, path in paths.items()
        ]
        advance = _advancing(report, sum(bytes_used(repository, job.tree, job.patches) for job in jobs) * (1 + order.verify))
        restored = [_restore_disk(repository, job, order.state, advance) for job in jobs]
        if order.verify:
            for job in jobs:
                _read_back(repository, job, order.format, advance)
        if order.dry_run:
            files = {}
        for name, path in files.items():
            tree = order.point.files[name]
            _put_file(path, PointDisk(repository.fetcher, tree).read(0, tree.size), replace=order.mode != "new")
    seconds = (repository.surroundings.clock() - began) / 1e9
    return RestoreResult(restored, list(files.values()), seconds, remarks, order.verify, order.dry_run)


def bytes_used(repository: Repository, tree: Tree, patches: Patches) -> int:
    """Bytes of a disk's blocks that are not known to be zero: what a restore of it writes."""
    return repository.used_ranges.of(tree, patches).count


def _advancing(report: Report, total: int) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(min(done, total), total)

    report(0, total)
    return advance


def _path(order: RestoreOrder, name: str) -> str:
    """A disk's file in the folder that was asked for. Raises Damage for a name that would lead out of it."""
    if not is_name(name) or not is_name(order.vm.name):
        raise Damage(f'{order.point.point} has a disk called "{name}": this program makes no such names.', on=order.vm.name)
    return os.path.join(order.to, f"{order.vm.name}-{name}.{_suffix(order.format)}")


def _restore_disk(repository: Repository, job: _Job, state: Path, advance: Callable[[int], None]) -> RestoredDisk:
    data = 0

    def count(length: int) -> None:
        nonlocal data
        data += length
        advance(length)

    target = job.target
    copy = copy_disk_in_order if isinstance(target, Stream) else copy_disk
    sink = PatchedSink(target, job.patches, count) if len(job.patches) else target
    try:
        copy(repository.fetcher, job.tree, sink, count)
    except Damaged as error:
        raise Damage(
            f"{job.what} is damaged: {error}",
            on=job.what,
            do=[
                "Which moments lose what, and which do not: everywhen verify --read-data",
                "Is it in another copy, or still on the disk? everywhen help damage",
            ],
        ) from error
    target.finish()
    if isinstance(target, NewFile | WholeDevice):
        replaced(target.path, state)
    written = target.bytes_written if isinstance(target, InPlace | Difference) else data
    resumed = isinstance(target, InPlace) and target.unfinished is not None
    return RestoredDisk(job.disk, target.path, job.tree.size, data, written, resumed)


def _read_back(repository: Repository, job: _Job, image_format: str, advance: Callable[[int], None]) -> None:
    """Raises Damage, DeviceError."""
    path = job.target.path
    let_go(path)
    name = "vhd" if image_format == "vhd-fixed" else image_format
    with closing(open_image(path, format=name)) as image:
        compare = ReadBack(image, path, job.tree.size)
        sink = PatchedSink(compare, job.patches, advance) if len(job.patches) else compare
        copy_disk_in_order(repository.fetcher, job.tree, sink, advance)


def _target(repository: Repository, order: RestoreOrder, name: str, path: str, remarks: list[str]) -> Target:
    tree = order.point.disks[name].tree
    source = f"{order.vm.name}/{name}@{order.moment.label}"
    if path == "-":
        if order.format != "raw":
            raise WrongUsage("Standard output takes raw only: leave --format out.", on=order.format)
        return Stream(order.stdout, tree.size)
    device = os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode)
    if order.mode == "in-place":
        return _in_place(order, path, tree, source, device=device)
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
    layout = _layout(repository, order, name, path, tree)
    if layout.padding:
        remarks.append(f"{path} shows {layout.padding} bytes of zeroes after the disk's end: {order.format} counts in sectors")
    return NewFile(path, layout, overwrite=order.mode == "overwrite", lock=lock)


def _in_place(order: RestoreOrder, path: str, tree: Tree, source: str, *, device: bool) -> InPlace | Difference:
    if order.format != "raw":
        raise WrongUsage("--in-place writes raw images and block devices only.", on=path)
    if not os.path.exists(path):
        raise NotFound(f"{path} does not exist; --in-place writes over something that is there.", on=path)
    if order.dry_run:
        return Difference(path, tree.size, lock=qemu_locks.writing(path))
    marks = marks_of_devices(order.state) if device else None
    if marks is not None:
        os.makedirs(marks, mode=0o700, exist_ok=True)
    return InPlace(path, tree.size, source, mark_folder=marks, lock=qemu_locks.writing(path))


def _layout(repository: Repository, order: RestoreOrder, name: str, path: str, tree: Tree) -> Layout:
    runs = repository.used_ranges.of(tree, order.patches(name))
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


def _file_paths(order: RestoreOrder, taken: set[str]) -> dict[str, str]:
    """Where the configuration files go, beside the disks, by name. Raises Failed when something is there."""
    paths: dict[str, str] = {}
    for name in sorted(order.point.files):
        # The name was a file's base name when it was stored; a forged repository could say otherwise.
        base = os.path.basename(name.replace("\0", ""))
        path = os.path.join(order.to, "unnamed" if base in ("", os.curdir, os.pardir) else base)
        if path in taken:
            raise Failed(
                f"Two things of {order.point.point} would be written to {path}; one is the configuration file {name}.",
                on=path,
                safe="Nothing was written.",
                do=[f"Restore the disks one by one: {order.vm.name}/{order.disks[0]}@{order.point.point}"],
            )
        if order.mode == "new" and os.path.lexists(path):
            raise Failed(f"{path} exists.", on=path, safe="Nothing was written.", do=["Overwrite: --overwrite"])
        taken.add(path)
        paths[name] = path
    return paths


def _put_file(path: str, content: bytes, *, replace: bool) -> None:
    """A configuration file, durable and whole or not there; an existing one is replaced as a whole. Raises OSError."""
    place = path + PARTIAL_SUFFIX if replace else path
    if replace:
        with suppress(FileNotFoundError):
            os.unlink(place)
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(place, path)
    except BaseException:
        os.unlink(place)
        raise


def _suffix(image_format: str) -> str:
    return {"vhd-fixed": "vhd"}.get(image_format, image_format)
