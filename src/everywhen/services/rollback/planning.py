# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a rollback would do, and everything that may keep it from being done, before anything is."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from everywhen.block.open_image import open_image
from everywhen.capture.stored_disk import StoredDisk
from everywhen.repository.branches import next_branch
from everywhen.repository.epochs import latest_claim
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.catalog import Catalog
from everywhen.services.failures import Busy, Failed, NoSpace, NotFound
from everywhen.services.opening import OpenedMoment
from everywhen.services.rollback.configuration import configuration
from everywhen.services.rollback.machine import Machine
from everywhen.services.rollback.record import Goal, Record
from everywhen.services.rollback.states import opened_states, to_write
from everywhen.services.sizes import size
from everywhen.services.unfinished import unfinished

_NOTHING = "Nothing was changed."


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants of one VM: `disk`: of this one alone; `words`: how all of the command's moments were named."""

    vm: Vm
    moment: OpenedMoment
    disk: str | None
    words: tuple[str, ...]
    configured: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done to one VM. `differs`: bytes of blocks to be written, by disk, as of `newest`, its newest moment now;
    `sizes`: bytes of these disks; `leaves_ns`: so much time leaves the machine."""

    asked: Asked
    record: Record
    differs: dict[str, int]
    sizes: dict[str, int]
    newest: OpenedMoment
    leaves_ns: int


def planned(
    repository: Repository, catalog: Catalog, asked: Asked, newest: OpenedMoment, machine: Machine, state: Path
) -> Plan:
    """Raises Failure where it cannot be done, MonitorError, ImageError, StorageError, Damaged."""
    vm, point = asked.vm, asked.moment.point
    _demand_ours(repository, vm)
    if asked.configured:
        configuration(repository, point)  # that it is there
    images = machine.images()
    wanted = [asked.disk] if asked.disk else sorted(point.disks)
    missing = [name for name in wanted if name not in images]
    if missing:
        raise NotFound(
            f"{vm.name} had a disk {missing[0]} then, and has none of that name now.",
            on=f"{vm.name}/{missing[0]}",
            safe=_NOTHING,
            do=[
                f"Attach a disk {missing[0]} of {size(point.disks[missing[0]].tree.size)}, or name its image: --disk",
                *(f"Only {vm.name}/{name}: everywhen rollback {vm.name}/{name}@WHEN" for name in wanted if name in images),
            ],
        )
    if not wanted:
        raise NotFound(f"{vm.name} had no disks then.", on=vm.name, safe=_NOTHING)
    for image in images.values():
        _demand_usable(vm, image, state)
    runs = machine.runs()
    machine.demand_usable()
    disks = {name: images[name] for name in wanted}
    sequence = asked.moment.found.sequence if asked.moment.found.writes_after else None
    every = [*catalog.points_of(vm), *(one for one in catalog.dropped_points if one.vm == vm.vm)]
    record = Record(
        asked=asked.words,
        vm=vm.vm,
        repository=repository.id.hex(),
        branch=next_branch(every),
        goal=Goal(point.point, sequence, asked.moment.found.moment.time_ns),
        disks=disks,
        others=tuple(sorted(images.keys() - disks.keys())),
        ran=runs,
        configured=asked.configured,
    )
    with opened_states(repository, vm, (newest, asked.moment)) as (now, then):
        both = [name for name in wanted if name in now.disks]
        differs = {name: sum(length for _, length in to_write(repository, now, then, name)) for name in both}
    sizes = {name: point.disks[name].tree.size for name in wanted}
    for name, image in disks.items():
        demand_room(vm, name, image, sizes[name], differs.get(name, sizes[name]))
    leaves_ns = newest.found.moment.time_ns - asked.moment.found.moment.time_ns
    return Plan(asked, record, differs, sizes, newest, max(leaves_ns, 0))


def _demand_ours(repository: Repository, vm: Vm) -> None:
    """Raises Busy where a capture on another host has claimed the VM, and may still run: its points are the VM's."""
    claim = latest_claim(repository.documents, vm.vm)
    here = repository.surroundings.holder
    if claim is not None and claim.holder.host not in ("", here.host):
        raise Busy(
            f"{vm.name} is captured by a run on {claim.holder.host}, as far as the repository knows.",
            on=vm.name,
            safe=_NOTHING,
            do=[f"Roll it back there. Does it run here now? Then capture it here first: everywhen protect {vm.name}"],
        )


def _demand_usable(vm: Vm, image: StoredDisk, state: Path) -> None:
    """Raises Failed, Busy, NotFound."""
    if image.why_not:
        raise Failed(f"{image.path or vm.name}: {image.why_not}.", on=vm.name, safe=_NOTHING)
    if not os.path.exists(image.path):
        raise NotFound(f"{image.path} is not there.", on=image.path, safe=_NOTHING)
    if (mark := unfinished(image.path, state)) is not None:
        raise Busy(
            f"{image.path} is a mixture of two moments: a restore of {mark.source} to it has not ended.",
            on=image.path,
            safe=_NOTHING,
            do=[f"Go on with it: {mark.command}"],
        )


def demand_room(vm: Vm, name: str, image: StoredDisk, wanted: int, differs: int) -> None:
    """Raises NoSpace, Failed. Writes to what is there already need no room; how much of an image is, its file system says."""
    status = os.stat(image.path)
    if stat.S_ISBLK(status.st_mode):
        with open_image(image.path, format=image.image_format, allow_outside=True) as opened:
            if image.image_format == "raw" and opened.size < wanted:
                raise Failed(
                    f"{image.path} has {opened.size:,} bytes, and {vm.name}/{name} had {wanted:,} then.",
                    on=image.path,
                    safe=_NOTHING,
                    do=[f"Make it larger: {wanted:,} bytes at least"],
                )
        return
    free = os.statvfs(image.path)
    room = free.f_bavail * free.f_frsize
    needs = min(differs, max(0, wanted - status.st_blocks * 512)) if image.image_format == "raw" else differs
    if needs > room:
        raise NoSpace(
            f"{image.path} may grow by {size(needs)}, and its file system has {size(room)} free.",
            on=image.path,
            safe="No disk was changed.",
            do=["Make room there, and then the same command again."],
        )


def apart_ns(catalog: Catalog, plans: Sequence[Plan]) -> dict[str, tuple[str, int]]:
    """By VM that is in a group of which others are not rolled back: the group, and by how much those will be ahead (ns)."""
    named = {plan.asked.vm.vm for plan in plans}
    found: dict[str, tuple[str, int]] = {}
    for plan in plans:
        vm = plan.asked.vm
        others = [one for one in catalog.vms if vm.group and one.group == vm.group and one.vm not in named]
        newest = [point.time_ns for one in others if (point := catalog.newest(one)) is not None]
        if newest:
            found[vm.name] = (vm.group, max(newest) - plan.record.goal.time_ns)
    return found
