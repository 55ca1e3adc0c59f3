# SPDX-License-Identifier: AGPL-3.0-or-later
"""The journal into recovery points: what its records change since the newest point is taken in, and makes the next one.

The same code as a backup from known changes takes it in. Which records make a moment: `services/replay.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from everywhen import __version__
from everywhen.block.device import BlockDevice
from everywhen.block.patched import PatchedDevice, Patches
from everywhen.formats.point import ClockStep, Disk, Gap, JournalPosition, RecoveryPoint, RolledBack, Tree
from everywhen.formats.segment import Group
from everywhen.repository.disk import PointDisk
from everywhen.repository.intake import Ranges
from everywhen.repository.minutes import PER_DAY, DayOfMinutes, PointRow, Row, add_minutes
from everywhen.repository.repository import Repository
from everywhen.repository.writer import PointWriter, parent_link
from everywhen.services.ages import MINUTE
from everywhen.services.protect.minutes import MinuteCounts
from everywhen.services.protect.quieting import CRASH, Consistency
from everywhen.services.replay import Replay

_MEMORY = 128 << 20
"""Bytes of changes that are held before they are taken in. Only what is changed again after that is stored twice: of writes
of which most lie in 100 MiB half as much as with 64 MiB."""

_CLOCK_STEPS = 32
"""So many of a stream stand in its points: a clock that is set every few minutes must not make them long."""

_BLOCKS = 1 << 18
"""Changed blocks that are held, at about 300 bytes each: zeroes have no content, and a record of them may name many."""


@dataclass(slots=True)
class SealedDisk:
    """A disk of a VM under capture, as it was taken in last (without a root: nothing was), and figures of the point to come."""

    name: str
    size: int
    tree: Tree
    read: int = 0
    changed: int = 0
    stored: int = 0

    def take_in(
        self,
        writer: PointWriter,
        device: BlockDevice,
        ranges: Ranges | None,
        progress: Callable[[int], None],
        enough: Callable[[], bool] = lambda: False,
    ) -> Ranges:
        """Store what `device` has in these blocks (None: in all), where it differs; which are left because it was `enough`.

        Raises StorageError, Damaged, DeviceError.
        """
        intake = writer.take(device, self.tree, ranges, progress, enough)
        self.tree = intake.tree
        self.read += intake.bytes_read
        self.changed += intake.bytes_changed
        self.stored += intake.bytes_stored
        return intake.left


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose points these are: the VM, the capture's epoch, its journal's stream, and the configuration files of the VM.

    `began_ns`: the stream's first moment, 0 for the point that shows it; `gap`: what was not captured before that; `clock`: the
    one that stamped its records, where VMs share it; `apart`: where points alone are captured, each of a stream of its own,
    what is named in place of that in their common statistics; `rolled_back`: of a point with which the VM began again.
    """

    vm: str
    epoch: int
    stream: str
    files: dict[str, Tree]
    began_ns: int = 0
    gap: Gap | None = None
    clock: str | None = None
    apart: str = ""
    rolled_back: RolledBack | None = None


class Sealer:
    """One recovery point in the making. When it fails, another one begins with the newest point again."""

    def __init__(self, repository: Repository, writer: PointWriter, disks: list[SealedDisk], replay: Replay) -> None:
        """`disks` as `replay` numbers them; what is taken in lies under its records."""
        self._repository = repository
        self._writer = writer
        self._disks = disks
        self.replay = replay
        self.instant_ns = 0
        """The common instant that the point is to show, 0: none. Nothing was written between its newest record and that."""
        self.alive: Callable[[], None] = lambda: None
        """Called now and then while records are laid and taken in: of a spool that has grown for hours, that takes hours."""
        self._minutes = MinuteCounts()

    @classmethod
    def after(cls, repository: Repository, writer: PointWriter, point: RecoveryPoint, position: JournalPosition) -> Sealer:
        """Of the records that follow `point` in its journal."""
        disks = [SealedDisk(name, point.disks[name].tree.size, point.disks[name].tree) for name in position.disks]
        replay = Replay([Patches() for _ in disks], position.sequence, following=True)
        return cls(repository, writer, disks, replay)

    def feed(self, group: Group, until: int | None = None, until_ns: int | None = None) -> None:
        """The next records, those before the number `until` and not after a time. Raises Corrupt, StorageError, Damaged."""
        self.alive()
        since = self.replay.sequence
        self.replay.feed(group, until=until, until_ns=until_ns)
        self._minutes.add(group, since, self.replay.sequence)
        patches = self.replay.patches
        if sum(one.memory for one in patches) > _MEMORY or sum(map(len, patches)) > _BLOCKS:
            self._take_in()

    def commit(
        self,
        parent: RecoveryPoint | None,
        origin: Origin,
        seconds: float,
        mark: str | None = None,
        consistency: Consistency = CRASH,
        latencies: Mapping[int, DayOfMinutes] | None = None,
    ) -> RecoveryPoint:
        """Make the point: the state after the newest record. `latencies`: what is known of those, by day since 1970.

        Raises StorageError, Damaged, Fenced.
        """
        self._take_in()
        disks = {disk.name: Disk(disk.tree, "raw", disk.read, disk.changed, disk.stored) for disk in self._disks}
        time_ns = max(self.replay.time_ns, self.instant_ns, parent.time_ns + 1 if parent else 0)
        names = tuple(disk.name for disk in self._disks)
        point = RecoveryPoint(
            point=self._writer.point,
            vm=origin.vm,
            time_ns=time_ns,
            number=parent.number + 1 if parent else 1,
            epoch=origin.epoch,
            parent=parent_link(self._repository, parent),
            asked=consistency.asked,
            reached=consistency.reached,
            why=consistency.why,
            disks=disks,
            files=origin.files,
            mark=mark,
            seconds=round(seconds, 3),
            program=__version__,
            journal=JournalPosition(
                origin.stream,
                self.replay.sequence,
                names,
                origin.began_ns or time_ns,
                origin.gap,
                origin.clock,
                self._clock_steps(parent, origin.stream),
            ),
            common=self.instant_ns > 0,
            guest_clock=consistency.clock,
            rolled_back=origin.rolled_back,
        )
        days = self._days(point.time_ns, origin, self._writer.flush())
        for number, day in (latencies or {}).items():
            days.setdefault(number, DayOfMinutes()).merge(day)
        add_minutes(self._repository.documents, origin.vm, origin.apart or origin.stream, days)
        self._writer.commit(point)
        return point

    def _clock_steps(self, parent: RecoveryPoint | None, stream: str) -> tuple[ClockStep, ...]:
        """The stream's newest ones."""
        before = parent.journal if parent else None
        known = before.clock_steps if before and before.stream == stream else ()
        return (*known, *self.replay.clock_steps)[-_CLOCK_STEPS:]

    def _days(self, time_ns: int, origin: Origin, sealed: int) -> dict[int, DayOfMinutes]:
        """What is to be known of the point's minutes when it is long gone; `sealed`: bytes of its packs."""
        # Where points alone are captured, only those writes are seen that come while one is made.
        days = {} if origin.apart else self._minutes.days([disk.name for disk in self._disks])
        minute = time_ns // MINUTE
        of_point = days.setdefault(minute // PER_DAY, DayOfMinutes())
        for disk in self._disks:
            of_point.add(disk.name, minute % PER_DAY, Row(stored=disk.stored))
        if origin.began_ns:
            of_point.add_points(minute % PER_DAY, PointRow(1, self._minutes.different, sealed))
        elif origin.gap is not None:
            of_point.gaps.append((origin.gap.from_ns, time_ns))
        return days

    def _take_in(self) -> None:
        for disk, patches in zip(self._disks, self.replay.patches, strict=True):
            below = PointDisk(self._repository.fetcher, disk.tree)
            device = PatchedDevice(below, patches, disk.size)
            disk.take_in(self._writer, device, patches.ranges(disk.size), lambda _: self.alive())
            patches.clear()
