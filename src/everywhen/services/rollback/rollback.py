# SPDX-License-Identifier: AGPL-3.0-or-later
"""One VM set back to a moment, step by step; each step is written down before the next, so that a killed run goes on.

The steps, what each crash leaves, and why each is right: docs/return.md. All raise Failure and the errors of the layers below.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from everywhen import __version__
from everywhen.block.open_image import open_image
from everywhen.block.patched import PatchedDevice, Patches
from everywhen.block.target_mark import Mark
from everywhen.capture.stored_disk import StoredDisk
from everywhen.formats.ids import PointId
from everywhen.formats.point import Disk, RecoveryPoint, RolledBack, Tree
from everywhen.repository.branches import rollbacks
from everywhen.repository.disk import PointDisk
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.repository.writer import PointWriter, parent_link, write_point
from everywhen.services.backup import BackupOrder, back_up
from everywhen.services.catalog import read_catalog
from everywhen.services.definition_files import files_of
from everywhen.services.failures import Failed
from everywhen.services.opening import OpenedMoment, open_again
from everywhen.services.rollback.configuration import configuration
from everywhen.services.rollback.image_writer import ImageWriter, QemuTools
from everywhen.services.rollback.machine import Capture, Machine
from everywhen.services.rollback.planning import demand_room
from everywhen.services.rollback.record import Record, Step, remove_record, write_record
from everywhen.services.rollback.states import Stretches, opened_states, to_write, write
from everywhen.services.times import rfc3339
from everywhen.services.unfinished import begin, replaced, unfinished
from everywhen.services.view.disk import MomentDisk
from everywhen.services.view.moments import MomentView

_LETS_GO_S, _LOOK_S = 10.0, 0.2
"""What a killed run wrote with may hold the images for a moment more."""
Report = Callable[[int, int | None], None]
"""Told bytes done and bytes in all."""


class Told(Protocol):
    """Hears how a rollback goes."""

    def reached(self, vm: str, step: Step) -> None:
        """That has been done, durably."""

    def working(self, vm: str, step: Step) -> Report:
        """That is being done: told how far it is."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a VM is: what runs it, who captures it, tools, this host's state folder."""

    machine: Machine
    capture: Capture
    tools: QemuTools
    state: Path


class Rollback:
    """One VM's. `record` says how far it has come; `written`: bytes of disks that this run wrote; `said`: of the machine."""

    def __init__(self, repository: Repository, vm: Vm, place: Place, record: Record, told: Told) -> None:
        self._repository = repository
        self.vm = vm
        self._place = place
        self.record = record
        self._told = told
        self.written = 0
        self.said = ""

    @property
    def _folder(self) -> Path:
        return self._place.state / self.vm.name

    def _become(self, step: Step, *, present: PointId | None = None) -> None:
        self.record = replace(self.record, step=step, present=present or self.record.present)
        write_record(self._folder, self.record)
        self._told.reached(self.vm.name, step)

    def begin(self) -> None:
        """Say that it is under way."""
        if self.record.undo and self.record.has(Step.WRITTEN):
            self.record = replace(self.record, step=Step.MARKED)  # the present is to be written over that
        write_record(self._folder, self.record)
        self._told.reached(self.vm.name, self.record.step)

    def stop(self, *, at_once: bool) -> None:
        """Have it off, where anything is to be written or was."""
        if self.record.undo and not self.record.has(Step.MARKED):
            return
        if self.record.has(Step.MARKED) and not self.record.has(Step.COMMITTED):
            self._demand_untouched()
        elif not self.record.has(Step.UNMARKED) and self._place.machine.runs():
            self._place.machine.stop(at_once=at_once)

    def _demand_untouched(self) -> None:
        """Raises Failed where the VM was started with disks that may be a mixture: what it wrote to them nobody knows."""
        until = time.monotonic() + _LETS_GO_S
        while self._place.machine.runs():
            if time.monotonic() > until:
                raise Failed(
                    f"{self.vm.name} was started since its rollback was broken off, with disks that may be of two moments.",
                    on=self.vm.name,
                    safe="Nothing was changed now.",
                    do=[
                        "Shut it down, and restore each of its disks whole:",
                        f"everywhen restore {self.vm.name}/DISK@WHEN --to PATH --in-place",
                        f"Then remove {self._folder / 'rollback.json'}",
                    ],
                )
            time.sleep(_LOOK_S)

    def present(self) -> None:
        """Have a point of what the disks hold: the end of what is left, and what the difference is computed from."""
        if self.record.undo and not self.record.has(Step.MARKED):
            return  # nothing was written
        known = None if self.record.has(Step.UNMARKED) else self._place.capture.stand_back()
        if self.record.has(Step.PRESENT):
            return
        catalog = read_catalog(self._repository)
        newest = catalog.newest(self.vm)
        if known is None or newest is None or newest.point != known or newest.disks.keys() != self._disks:
            newest = self._backed_up()
        else:
            newest = self._with_its_definition(newest)
        self._become(Step.PRESENT, present=newest.point)

    @property
    def _disks(self) -> set[str]:
        return {*self.record.disks, *self.record.others}

    def _with_its_definition(self, newest: RecoveryPoint) -> RecoveryPoint:
        """The point itself where it says what the VM is now; else one more: capture makes none of that alone."""
        repository, now, known = self._repository, self._place.machine.definition(), files_of(self._repository, newest)
        if all(name in known.sizes and known.read(name) == content for name, content in now.items()):
            return newest
        with write_point(repository, f"rollback {self.vm.name}", first_copy=False) as writer:
            point = RecoveryPoint(
                point=writer.point,
                vm=self.vm.vm,
                time_ns=max(repository.surroundings.clock(), newest.time_ns + 1),
                number=newest.number + 1,
                epoch=newest.epoch,
                parent=parent_link(repository, newest),
                asked=newest.asked,
                reached=newest.reached,
                why=newest.why,
                disks=_unchanged(newest.disks),
                files={name: writer.take_file(content) for name, content in now.items()},
                program=__version__,
            )
            writer.commit(point)
        return point

    def _backed_up(self) -> RecoveryPoint:
        images = self._place.machine.images()
        order = BackupOrder(
            vm=self.vm.name,
            images={name: disk.path for name, disk in images.items()},
            state=self._place.state,
            formats={name: disk.image_format for name, disk in images.items()},
            contents=self._place.machine.definition(),
            allow_outside=True,
        )
        report = self._told.working(self.vm.name, Step.PRESENT)
        point = back_up(self._repository, read_catalog(self._repository), order, report).point
        if point.reached == "none":
            raise Failed(f"An image of {self.vm.name} was {point.why}.", on=self.vm.name, safe="Nothing was written to it.")
        return point

    def mark(self) -> None:
        """Say of the images that they may be a mixture from now on; nobody takes that for a moment."""
        if self.record.undo and not self.record.has(Step.MARKED):
            return
        if self.record.has(Step.MARKED):
            self._demand_marks()
            return
        sizes, changed = self._goal().point.disks, self._changed()
        for (
            name,
            disk,
        ) in self.record.disks.items():  # before, it was asked for what is known of the images, not for what they held
            demand_room(self.vm, name, disk, sizes[name].tree.size, changed[name])
        for name, disk in self.record.disks.items():
            source = f"{self.vm.name}/{name}@{rfc3339(self.record.goal.time_ns)}"
            begin(disk.path, Mark(source, disk.path, 0, self.record.command), self._place.state)
        self._become(Step.MARKED)

    def _demand_marks(self) -> None:
        """Raises Failed where something else has written an image since: then it holds neither moment."""
        if self.record.has(Step.COMMITTED):
            return
        for disk in self.record.disks.values():
            mark = unfinished(disk.path, self._place.state)
            if mark is None or mark.again != self.record.command:
                raise Failed(
                    f"{disk.path} was written by something else since the rollback of {self.vm.name} began: it was restored.",
                    on=disk.path,
                    safe="It was not touched now.",
                    do=[
                        f"Restore the other disks, too: everywhen restore {self.vm.name}/DISK@WHEN --to PATH --in-place",
                        f"Then remove {self._folder / 'rollback.json'}",
                    ],
                )

    def write(self) -> None:
        """Make the disks what they are to be."""
        if self.record.has(Step.WRITTEN) or (self.record.undo and not self.record.has(Step.MARKED)):
            return
        with self._states() as (before, after):
            plan = {name: to_write(self._repository, before, after, name) for name in self.record.disks}
            self.written = sum(length for stretches in plan.values() for _, length in stretches)
            report, done = self._told.working(self.vm.name, Step.WRITTEN), 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                report(done, self.written)

            advance(0)
            for name, stretches in plan.items():
                self._write_disk(self.record.disks[name], after.disks[name], stretches, advance)
        self._become(Step.WRITTEN)

    def _states(self) -> AbstractContextManager[list[MomentView]]:
        """What the disks held, and what they are to hold."""
        both = (self._present(), self._goal())
        return opened_states(self._repository, self.vm, both[::-1] if self.record.undo else both)

    def _write_disk(self, image: StoredDisk, disk: MomentDisk, stretches: Stretches, advance: Callable[[int], None]) -> None:
        with open_image(image.path, format=image.image_format, allow_outside=True) as opened:
            size = opened.size
        if size < disk.size:
            self._place.tools.resize(image, disk.size)
        with ImageWriter(self._place.tools, image) as writer:
            write(disk, stretches, writer, advance)
            writer.flush()
        if size > disk.size and not stat.S_ISBLK(os.stat(image.path).st_mode):
            self._place.tools.resize(image, disk.size)  # last: of what is cut off nothing is needed any more

    def commit(self) -> None:
        """Make the point that says it. Capture goes on from it."""
        if self.record.undo or self.record.has(Step.COMMITTED):
            return
        if self.made() is None:  # else it was killed just after
            self._commit()
        self._become(Step.COMMITTED)

    def made(self) -> RecoveryPoint | None:
        """The point that this rollback has made."""
        made = rollbacks(read_catalog(self._repository).points_of(self.vm)).get(self.record.branch)
        return made if made is not None and made.parent and made.parent.point == self.record.present else None

    def _commit(self) -> None:
        repository, record, present, goal = self._repository, self.record, self._present().point, self._goal()
        changed = self._changed()
        began = repository.surroundings.clock()
        with write_point(repository, f"rollback {self.vm.name}", first_copy=False) as writer:
            disks = _unchanged(present.disks)
            for name, image in record.disks.items():
                tree, stored = _taken(repository, writer, goal, name)
                disks[name] = Disk(tree, image.image_format, 0, changed[name], stored)
            files = goal.point.files if record.configured else present.files
            moment = goal.found.moment
            point = RecoveryPoint(
                point=writer.point,
                vm=self.vm.vm,
                time_ns=max(began, present.time_ns + 1),
                number=present.number + 1,
                epoch=present.epoch,
                parent=parent_link(repository, present),
                asked=moment.consistency,
                reached=moment.consistency,
                why=goal.point.why if not goal.found.writes_after else "",
                disks=disks,
                files={name: _file(repository, writer, tree) for name, tree in files.items()},
                program=__version__,
                rolled_back=RolledBack(goal.point.point, moment.time_ns, record.branch),
            )
            writer.commit(point)

    def _changed(self) -> dict[str, int]:
        """Bytes of blocks that differ, by disk."""
        with self._states() as (before, after):
            return {
                name: sum(length for _, length in to_write(self._repository, before, after, name)) for name in self.record.disks
            }

    def unmark(self) -> None:
        """The images are whole, and of one moment."""
        if self.record.has(Step.UNMARKED):
            return
        for disk in self.record.disks.values():
            replaced(disk.path, self._place.state)
        self._become(Step.UNMARKED)

    def start(self) -> None:
        """Have it run again where it did; capture goes on."""
        if self.record.has(Step.STARTED):
            return
        if runs := self._place.machine.runs():
            newest = None
        elif self.record.undo:
            newest = self.record.present
        else:
            files = configuration(self._repository, self._goal().point) if self.record.configured else None
            self.said = self._place.machine.prepare(files)
            made = self.made()
            newest = made.point if made else None
        # Before it runs: capture knows then that nobody else has written to the images, and waits for the start.
        self._place.capture.go_on(newest)
        if self.record.ran and not runs:
            self._place.machine.start()
        self._become(Step.STARTED)

    def over(self) -> None:
        """Nothing is to be gone on with any more."""
        remove_record(self._folder)

    def _present(self) -> OpenedMoment:
        if self.record.present is None:
            raise ValueError("a rollback without a present")
        return open_again(self._repository, read_catalog(self._repository), self.vm, self.record.present, None)

    def _goal(self) -> OpenedMoment:
        goal = self.record.goal
        return open_again(self._repository, read_catalog(self._repository), self.vm, goal.point, goal.sequence)


def _unchanged(disks: Mapping[str, Disk]) -> dict[str, Disk]:
    return {name: replace(disk, bytes_read=0, bytes_changed=0, bytes_stored=0) for name, disk in disks.items()}


def _taken(repository: Repository, writer: PointWriter, moment: OpenedMoment, disk: str) -> tuple[Tree, int]:
    """A disk of a moment in the point to come, and what that stores: what the journal laid over it, if anything."""
    tree, patches = moment.point.disks[disk].tree, moment.patches.get(disk) or Patches()
    device = PatchedDevice(PointDisk(repository.fetcher, tree), patches, tree.size)
    intake = writer.take(device, tree, patches.ranges(tree.size), lambda _: None)
    return intake.tree, intake.bytes_stored


def _file(repository: Repository, writer: PointWriter, tree: Tree) -> Tree:
    """A configuration file of another point."""
    return tree if writer.usable(tree) else writer.take_file(PointDisk(repository.fetcher, tree).read(0, tree.size))
