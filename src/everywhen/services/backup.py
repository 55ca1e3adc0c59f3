# SPDX-License-Identifier: AGPL-3.0-or-later
"""One recovery point out of disk images: first, by hash scan, or from known changes; all the same code.

Nothing is claimed that was not captured (I-5): an image that was in use or changed while it was read makes a point of
consistency `none`, with the reason.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from everywhen import __version__
from everywhen.block import qemu_locks
from everywhen.block.image import Image
from everywhen.block.image_errors import ImageInUse
from everywhen.block.open_image import open_image
from everywhen.block.target_device_use import uses
from everywhen.formats.point import Disk, RecoveryPoint, Tree
from everywhen.repository.intake import Intake, Ranges
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.repository.writer import parent_link, write_point
from everywhen.services.catalog import Catalog
from everywhen.services.changed_blocks import find_miss, read_changed_blocks
from everywhen.services.failures import Busy, Damage, WrongUsage
from everywhen.services.identities import record, vm_by_name
from everywhen.services.naming import is_name
from everywhen.services.unfinished import unfinished

Report = Callable[[int, int | None], None]
"""Told bytes done and bytes in all."""

_LIVE = "read while a running VM or another program may have been writing to it"
_MOVED = "changed while it was read"
_LARGEST_FILE = 256 << 20
_MUCH_SMALLER = 2
"""A disk of less than one part in so many is another one, or was taken for what it is not: disks grow."""


@dataclass(frozen=True, slots=True)
class BackupOrder:
    """What to back up: images by disk name, configuration files, and what is known of the changes."""

    vm: str
    images: dict[str, str]
    state: Path
    """This host's state folder: there it says which devices are half restored."""
    files: list[str] = field(default_factory=list)
    changed_blocks: dict[str, str] = field(default_factory=dict)
    since: str | None = None
    formats: dict[str, str] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    """Configuration files that are at hand already, by name."""
    live: bool = False
    allow_outside: bool = False
    yields: bool = False
    """Whether a VM may start meanwhile: then there is no point, but it is not kept from its images."""


@dataclass(frozen=True, slots=True)
class BackupResult:
    """The point that was made, and what the user must hear about it."""

    point: RecoveryPoint
    vm: Vm
    seconds: float
    misses: dict[str, int]
    """By disk: a block that had changed although the list of changes did not name it; the disk was scanned in full."""
    remarks: list[str]


def back_up(repository: Repository, catalog: Catalog, order: BackupOrder, report: Report) -> BackupResult:
    """Make the point. Raises Failure and the errors of the layers below."""
    if not is_name(order.vm):
        raise WrongUsage(f'"{order.vm}" is not a name for a VM: use a-z, 0-9, dot, dash and underscore.', on=order.vm)
    began = repository.surroundings.clock()
    vm, known = vm_by_name(repository, catalog, order.vm)
    parent = catalog.newest(vm)
    contents = {**order.contents, **_read_files(order.files)}
    with ExitStack() as opened:
        whys: set[str] = set()
        images = {name: _opened(order, name, path, opened, whys) for name, path in order.images.items()}
        changes = {name: _changes(order, name, image, parent) for name, image in images.items()}
        before = {name: image.fingerprint() for name, image in images.items()}
        advance = _advancing(report, sum(_to_read(images[name], changes[name]) for name in images))
        misses: dict[str, int] = {}
        with write_point(repository, f"backup {order.vm}", first_copy=parent is None) as writer:
            disks = {}
            for name, image in images.items():
                base = parent.disks[name].tree if parent and name in parent.disks else None
                miss = _miss(repository, image, base if writer.usable(base) else None, changes[name])
                if miss is not None:
                    misses[name], changes[name] = miss, None
                disks[name] = _disk(image, writer.take(image, base, changes[name], advance))
            files = {name: writer.take_file(content) for name, content in contents.items()}
            if any(image.fingerprint() != before[name] for name, image in images.items()):
                whys.add(_MOVED)
            if order.yields:
                _require_still(images, whys)
            if not known:
                record(repository, vm)
            point = RecoveryPoint(
                point=writer.point,
                vm=vm.vm,
                # Recorded time never runs backwards along a chain, whatever the clock does.
                time_ns=max(began, parent.time_ns + 1) if parent else began,
                number=parent.number + 1 if parent else 1,
                epoch=parent.epoch if parent else 1,
                parent=parent_link(repository, parent),
                asked="crash",
                reached="none" if whys else "crash",
                why="; ".join(sorted(whys)),
                disks=disks,
                files=files,
                seconds=round((repository.surroundings.clock() - began) / 1e9, 3),
                program=__version__,
            )
            writer.commit(point)
    remarks = [f"{order.images[name]}: {remark}" for name, image in images.items() for remark in image.summary.remarks]
    remarks += [remark for name in images if (remark := _another_disk(order, name, point, parent))]
    return BackupResult(point, vm, point.seconds, misses, remarks)


def _another_disk(order: BackupOrder, name: str, point: RecoveryPoint, parent: RecoveryPoint | None) -> str:
    """What a format that was detected says about the disk, where it is not what it was; '' where it is.

    In a raw image a guest can write what looks like another format, and so end the backups of its own disk.
    """
    if name in order.formats or parent is None or name not in parent.disks:
        return ""
    new, old = point.disks[name], parent.disks[name]
    # Of what was captured no format is known: the hypervisor told the bytes of the disk.
    other = parent.journal is None and new.format != old.format
    if not other and new.tree.size * _MUCH_SMALLER >= old.tree.size:
        return ""
    return (
        f"{order.images[name]}: was taken for {new.format} with {new.tree.size:,} bytes; before, in {parent.point}, {name} was "
        f"{old.format} with {old.tree.size:,}. If that is not so, a guest may have written it: say --image-format {name}=raw"
    )


def _advancing(report: Report, total: int) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(min(done, total), total)

    report(0, total)
    return advance


def _opened(order: BackupOrder, name: str, path: str, opened: ExitStack, whys: set[str]) -> Image:
    """The image, which nobody writes to from now on; or, with `--live`, why that is not so in `whys`.

    It is opened twice: to know which files to lock, and under the locks, since its tables may have changed until then.
    """
    if not is_name(name):
        raise WrongUsage(f'"{name}" is not a name for a disk: use a-z, 0-9, dot, dash and underscore.', on=name)
    with open_image(path, format=order.formats.get(name), allow_outside=order.allow_outside) as image:
        files = image.files
    for why in (_half_restored(order, files), _hold_still(order, files, opened)):
        if why:
            whys.add(why)
    image = opened.enter_context(open_image(path, format=order.formats.get(name), allow_outside=order.allow_outside))
    if not image.size:
        raise Damage(f"{path} is empty: no disk has 0 bytes.", on=path, safe="Nothing was read or written.")
    if image.files != files:
        raise Busy(f"{path} was given other files while it was being opened.", on=path, safe="Nothing was read or written.")
    return image


def _half_restored(order: BackupOrder, files: tuple[str, ...]) -> str:
    """'' when no restore in place to these files is unfinished, else which one is (`--live`). Raises Busy, TargetError."""
    for path in files:
        mark = unfinished(path, order.state)
        if mark is not None and not order.live:
            raise Busy(
                f"{path} is a mixture of two moments: a restore of {mark.source} to it has not ended.",
                on=path,
                safe="Nothing was read or changed.",
                do=[
                    f"Go on with it: {mark.command}",
                    "Or read it as it is, with consistency `none`: --live",
                ],
            )
        if mark is not None:
            return f"a mixture of two moments: a restore of {mark.source} to {path} had not ended"
    return ""


def _hold_still(order: BackupOrder, files: tuple[str, ...], opened: ExitStack) -> str:
    """Keep QEMU from writing to these files until `opened` ends; '' when that holds, else why it does not (`--live`)."""
    used = [sentence for path in files for sentence in _uses(path)]
    if used and not order.live:
        raise Busy(
            f"{files[0]} may be written to while it is read: {', '.join(used)}.",
            on=files[0],
            safe="Nothing was read or changed.",
            do=["Unmount it, or take a snapshot and name that.", "Or read it as it is, with consistency `none`: --live"],
        )
    if used:
        return _LIVE
    try:
        if order.yields:
            qemu_locks.look(files)
        else:
            opened.enter_context(qemu_locks.reading(files))
    except ImageInUse as error:
        if not order.live:
            raise Busy(
                str(error),
                on=files[0],
                safe="Nothing was read or changed.",
                do=["Shut the VM down first.", "Or read it as it is, with consistency `none`: --live"],
            ) from error
        return _LIVE
    return ""


def _require_still(images: dict[str, Image], whys: set[str]) -> None:
    """Raises Busy where somebody has written to an image, or may have, since it was opened."""
    try:
        qemu_locks.look([path for image in images.values() for path in image.files])
    except ImageInUse as error:
        raise Busy(str(error), safe="No point was made.") from error
    if whys:
        raise Busy(f"An image was {'; '.join(sorted(whys))}.", safe="No point was made.")


def _uses(path: str) -> list[str]:
    """Who has a block device mounted or built upon; who writes without that shows in the fingerprint."""
    status = os.stat(path)
    return uses(status.st_rdev) if stat.S_ISBLK(status.st_mode) else []


def _changes(order: BackupOrder, name: str, image: Image, parent: RecoveryPoint | None) -> Ranges | None:
    """The known changes of a disk, or None for a scan. Refused unless they begin at the disk's newest point."""
    path = order.changed_blocks.get(name)
    if path is None:
        return None
    if order.since is None:
        raise WrongUsage("--changed-blocks needs --since POINT: the point that the changes begin at.", on=name)
    if parent is None or name not in parent.disks or parent.point != order.since:
        newest = parent.point if parent and name in parent.disks else "none"
        raise WrongUsage(
            f"The changes of {name} begin at {order.since}, but its newest point is {newest}.",
            on=name,
            safe="Nothing was read or written.",
            do=["Leave --changed-blocks out: the disk is then compared by hash."],
        )
    return read_changed_blocks(Path(path), image.size)


def _miss(repository: Repository, image: Image, base: Tree | None, ranges: Ranges | None) -> int | None:
    if base is None or ranges is None:
        return None
    chance = random.Random(repository.surroundings.randomness(16))  # noqa: S311 - a sample, no secret
    return find_miss(image, repository.block_map(base), ranges, repository.codec, chance)


def _to_read(image: Image, changes: Ranges | None) -> int:
    """About how many bytes will be read."""
    if changes is not None:
        return sum((end - first) << 16 for first, end in changes)
    return sum(extent.length for extent in image.extents() if not extent.zero)


def _read_files(paths: list[str]) -> dict[str, bytes]:
    """Configuration files by base name, read before anything else: an hour later would be late to learn of a wrong path.

    Raises WrongUsage, OSError.
    """
    contents: dict[str, bytes] = {}
    for path in paths:
        name = Path(path).name
        if name in contents:
            raise WrongUsage(
                f'Two configuration files are called "{name}".',
                on=path,
                safe="Nothing was read or written.",
                do=["Configuration files are kept by their name without the folder: give one of them another name."],
            )
        # Without O_NONBLOCK a FIFO in the place of a file would be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise WrongUsage(f"{path} is not a regular file.", on=path, safe="Nothing was read or written.")
            if status.st_size > _LARGEST_FILE:
                raise WrongUsage(f"{path} has {status.st_size:,} bytes: too large for a configuration file.", on=path)
            contents[name] = file.read(_LARGEST_FILE)
    return contents


def _disk(image: Image, intake: Intake) -> Disk:
    return Disk(intake.tree, image.format, intake.bytes_read, intake.bytes_changed, intake.bytes_stored)
