# SPDX-License-Identifier: AGPL-3.0-or-later
"""The journal into recovery points: records are laid over the newest point, and what they change is taken in.

The same code as a backup from known changes takes it in. Which records make a moment: docs/capture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from everywhen import __version__
from everywhen.block.device import BlockDevice
from everywhen.block.patched import PatchedDevice, Patches
from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import parse_json, text
from everywhen.formats.point import Disk, RecoveryPoint, Tree
from everywhen.formats.spool import MARK, WRITE, Group
from everywhen.repository.disk import PointDisk
from everywhen.repository.intake import Ranges
from everywhen.repository.repository import Repository
from everywhen.repository.writer import PointWriter, parent_link


@dataclass(slots=True)
class SealedDisk:
    """A disk of a VM under capture: what is known of it, and what the journal has beyond that."""

    name: str
    size: int
    tree: Tree | None
    """What was taken in last; None before anything was."""
    patches: Patches = field(default_factory=Patches)
    tapped: bool = False
    complete: bool = False
    read: int = 0
    changed: int = 0
    stored: int = 0

    def take_in(self, writer: PointWriter, device: BlockDevice, ranges: Ranges | None, progress: Callable[[int], None]) -> None:
        """Store what `device` has in these blocks (None: in all), where it differs.

        Raises StorageError, Damaged, DeviceError.
        """
        intake = writer.take(device, self.tree, ranges, progress)
        self.tree = intake.tree
        self.read += intake.bytes_read
        self.changed += intake.bytes_changed
        self.stored += intake.bytes_stored


class Sealer:
    """Takes the groups of one VM's journal in order, and makes points out of them."""

    def __init__(self, repository: Repository, vm: str, disks: list[SealedDisk], epoch: int) -> None:
        self._repository = repository
        self._vm = vm
        self._epoch = epoch
        self.disks = disks
        self.time_ns = 0
        """When the newest record was taken."""
        self.sequence = 0
        """The number after the newest record."""
        self.records = 0
        """Writes since the last point."""
        self.ended = False
        """Whether a tap was closed after the newest record, when all disks were complete."""

    @property
    def is_moment(self) -> bool:
        """Whether the state after the newest record is one in which a power cut could have left the VM."""
        return all(disk.complete for disk in self.disks)

    def feed(self, group: Group, until: int | None = None) -> None:
        """Lay the group's records over the disks, those before the sequence number `until`.

        Not beyond the record at which a tap was closed: what came before it is the last moment. Raises Corrupt.
        """
        data, begin = memoryview(group.data()), 0
        columns = (group.kinds, group.disks, group.offsets, group.lengths, group.data_ends(), group.times)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for sequence, (kind, number, offset, length, end, after) in enumerate(rows, group.sequence):
            start, begin = begin, end
            if sequence < self.sequence:
                continue  # of a group that was fed in part
            if self.ended or (until is not None and sequence >= until):
                return
            if number >= len(self.disks):
                raise Corrupt(f"record {sequence} is of disk {number}; there are {len(self.disks)}")
            disk = self.disks[number]
            if kind == MARK:
                what = text(parse_json("a mark", bytes(data[start:end])), "mark")
                if what == "tap closed" and self.is_moment:
                    self.ended = True
                    return
                disk.tapped = what == "tap opened" or (disk.tapped and what != "tap closed")
                disk.complete = disk.tapped and (disk.complete or what == "complete")
            elif kind == WRITE:
                disk.patches.write(offset, data[start:end])
                self.records += 1
            else:
                disk.patches.zero(offset, length)
                self.records += 1
            self.sequence = sequence + 1
            self.time_ns = max(self.time_ns, group.time_ns + after)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """A point that is tried: when the body raises, all is as it was, and what it would have had goes into the next one."""
        before = [replace(disk) for disk in self.disks]
        try:
            yield
        except BaseException:
            self.disks[:] = before
            raise
        self.records = 0
        for disk in self.disks:
            disk.read = disk.changed = disk.stored = 0

    def take_in(self, writer: PointWriter) -> None:
        """Store what the records changed; it becomes part of what is known. Raises StorageError, Damaged."""
        for disk in self.disks:
            below = PointDisk(self._repository.fetcher, disk.tree or Tree(0, None))
            device = PatchedDevice(below, disk.patches, disk.size)
            disk.take_in(writer, device, disk.patches.ranges(disk.size), lambda _: None)
            disk.patches = Patches()

    def point(
        self, writer: PointWriter, parent: RecoveryPoint | None, seconds: float, mark: str | None = None
    ) -> RecoveryPoint:
        """The point that shows what was taken in. Commit it with `writer.commit`."""
        disks = {
            disk.name: Disk(disk.tree or Tree(disk.size, None), "raw", disk.read, disk.changed, disk.stored)
            for disk in self.disks
        }
        return RecoveryPoint(
            point=writer.point,
            vm=self._vm,
            time_ns=max(self.time_ns, parent.time_ns + 1) if parent else self.time_ns,
            number=parent.number + 1 if parent else 1,
            epoch=self._epoch,
            parent=parent_link(self._repository, parent),
            asked="crash",
            reached="crash",
            why="",
            disks=disks,
            mark=mark,
            seconds=round(seconds, 3),
            program=__version__,
        )
