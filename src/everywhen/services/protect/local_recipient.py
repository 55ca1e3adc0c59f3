# SPDX-License-Identifier: AGPL-3.0-or-later
"""A repository on this host consumes the spools of captures: is `recipient.Recipient`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from everywhen.block.device import BlockDevice
from everywhen.block.patched import Patches
from everywhen.capture.spool_reader import SpoolDamaged, spool_files
from everywhen.formats.errors import Corrupt, FormatError
from everywhen.formats.fields import Json, text, whole
from everywhen.formats.ids import PointId
from everywhen.formats.point import JournalPosition, RecoveryPoint, Tree
from everywhen.repository import epochs
from everywhen.repository.errors import NoSuchPoint
from everywhen.repository.intake import Ranges
from everywhen.repository.keys.segment_keys import JournalRecipient
from everywhen.repository.ledger import Vm
from everywhen.repository.minutes import DayOfMinutes, add_minutes
from everywhen.repository.repository import Repository, Surroundings
from everywhen.repository.writer import PointWriter, write_point
from everywhen.services.backup import BackupOrder, back_up
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.failures import WrongUsage
from everywhen.services.identities import put_into_group, record, vm_of
from everywhen.services.naming import is_name
from everywhen.services.protect.capture_order import CaptureOrder, Told
from everywhen.services.protect.capture_states import work_of
from everywhen.services.protect.lineage import claimed_epoch, demand_line, demand_parent, demand_turn
from everywhen.services.protect.recipient import Beginning, PointFacts, Report
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.protect.spool_import import Imported, import_left, import_spool
from everywhen.services.protect.spooling import Spool
from everywhen.services.replay import Replay


class LocalRecipient:
    """An open repository, unlocked."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._new: str | None = None
        """The VM that is to be made known when its taps are attached: of a mistyped name, or monitor, nothing is to stay."""

    @property
    def surroundings(self) -> Surroundings:
        return self._repository.surroundings

    @property
    def key(self) -> JournalRecipient:
        return JournalRecipient.of(self._repository.id, self._repository.unlocked.keyset)

    def beginning(self, name: str, order: CaptureOrder, told: Told) -> Beginning:
        if order.group and not is_name(order.group):
            what = f'"{order.group}" is not a name for a group: use a-z, 0-9, dot, dash and underscore.'
            raise WrongUsage(what, on=name, safe="Nothing was done.")
        repository = self._repository
        catalog = read_catalog(repository)
        vm, known = vm_of(repository, catalog, name, *order.hypervisor.identity())
        # Whoever waits for one knows that it exists, and wants to be told that it is not protected yet.
        self._new = None if known or order.waits else vm.vm
        if self._new is not None:
            vm = replace(vm, group=vm.group if order.group is None else order.group)
        elif not known:
            record(repository, vm)
        if order.group is not None and order.group != vm.group:
            vm = put_into_group(repository, vm, order.group)
        points = catalog.history_of(vm)
        # A dropped point comes back for 72 h (I-11), and with it what follows it: that may be all that a spool has.
        dropped = [point for point in catalog.dropped_points if point.vm == vm.vm]
        left = self._brought_in(order, catalog, [*points, *dropped], told) if order.spool.is_dir() else None
        if left is not None and left.point is not None:
            points = sorted([*points, left.point], key=lambda point: (point.time_ns, point.number, point.point))
            told.sealed(left.point, left.writes)
        newest = points[-1] if points else None
        return Beginning(vm, newest, _line(newest, [*points, *dropped]), left.ended_ns if left else 0)

    def _brought_in(self, order: CaptureOrder, catalog: Catalog, points: list[RecoveryPoint], told: Told) -> Imported | None:
        """What other runs left. A damaged spool is set aside: what it had beyond the newest point the bitmaps know, too."""
        repository = self._repository
        try:
            found = import_left(repository, order.spool, points, told.alive, all_known=not catalog.unreadable_points)
        except (SpoolDamaged, Corrupt) as error:
            aside = order.folder / f"spool-damaged-{repository.surroundings.clock()}"
            order.spool.rename(aside)
            told.left_behind(
                f"{error}. What was spooled after the newest recovery point is no moment any more; the files are in {aside}, "
                "and can be removed"
            )
            return None
        if left := spool_files(order.spool):
            told.left_behind(
                f"{len(left)} files in {order.spool} have writes that follow no recovery point that can be read, and "
                f"{len(catalog.unreadable_points)} cannot be read ({catalog.unreadable_points[0]}). They stay there: repair "
                "the repository (everywhen verify --repair), and the next protect brings them in"
            )
        return found

    def point(self, point: PointId) -> RecoveryPoint | None:
        try:
            return self._repository.points.get(point)
        except NoSuchPoint:
            return None

    def claim(self, vm: str, parent: RecoveryPoint | None, spool: Path) -> int:
        return claimed_epoch(self._repository, vm, parent, spool)

    def leave(self, vm: str, epoch: int, *, stood: bool) -> None:
        epochs.leave(self._repository, vm, epoch, stood=stood)

    def demand_turn(self, vm: str, epoch: int) -> None:
        demand_turn(self._repository, vm, epoch)

    def demand_parent(self, parent: RecoveryPoint) -> None:
        demand_parent(self._repository, parent)

    def consumption(self, vm: Vm, epoch: int, stream: str, spool: Path) -> LocalConsumption:
        files = Spool(self._repository, spool, epoch, stream)
        return LocalConsumption(self._repository, vm, epoch, stream, files, new=self._new == vm.vm)

    def back_up(self, name: str, order: CaptureOrder, report: Report) -> RecoveryPoint | str:
        disks = {disk: one for disk, one in order.hypervisor.images().items() if not order.disks or disk in order.disks}
        unread = next((f"{disk}: {one.why_not}" for disk, one in disks.items() if one.why_not), None)
        if unread is not None or not disks or (order.disks and disks.keys() != order.disks.keys()):
            return unread or "which disks are meant is seen only while it runs"
        wanted = BackupOrder(
            vm=name,
            images={disk: one.path for disk, one in disks.items()},
            state=order.folder.parent,
            # libvirt takes an image for raw where nothing is said, and so must we: what is in it is the guest's.
            formats={disk: one.image_format or "raw" for disk, one in disks.items()},
            contents=order.hypervisor.definition(),
            allow_outside=True,
            yields=True,
        )
        return back_up(self._repository, read_catalog(self._repository), wanted, report).point


class LocalConsumption:
    """One stream. Is `recipient.Consumption`."""

    def __init__(self, repository: Repository, vm: Vm, epoch: int, stream: str, spool: Spool, *, new: bool) -> None:
        """`new`: the VM is to be made known."""
        self._repository = repository
        self._vm = vm
        self._epoch = epoch
        self._stream = stream
        self._spool = spool
        self._new = new
        # A file goes when it is a segment of the journal, and its records are in a point.
        self.size, self.ship, self.drop = spool.size, spool.ship, spool.drop
        self.discard, self.remove = spool.discard, spool.remove

    def demand_line(self, *, cheaply: bool = False) -> None:
        demand_line(self._repository, self._vm.vm, self._epoch, self._stream, cheaply=cheaply)

    @contextmanager
    def first_point(
        self, parent: RecoveryPoint | None, disks: Sequence[tuple[str, int]], kept: Mapping[str, Json]
    ) -> Iterator[LocalMaking]:
        before, here = parent.disks if parent else {}, self._repository.id.hex()
        with write_point(self._repository, work_of(self._vm.name), first_copy=parent is None) as writer:
            if self._new:
                record(self._repository, self._vm)
            trees = {name: disk.tree for name, disk in before.items() if writer.usable(disk.tree)}
            made, copied = list[SealedDisk](), list[LocalDisk]()
            for name, size in disks:
                up = _taken_up(writer, name, kept[name], size, here) if name in kept else None
                made.append(up or SealedDisk(name, size, trees.get(name) or Tree(size, None)))
                known = up.tree if up else trees.get(name)
                copied.append(LocalDisk(writer, made[-1], known, here, goes_on=up is not None))
            sealer = Sealer(self._repository, writer, made, Replay([Patches() for _ in made], 0, following=False))
            yield LocalMaking(self._making_of, writer, sealer, self._spool, copied)

    @contextmanager
    def next_point(self, parent: RecoveryPoint, position: JournalPosition) -> Iterator[LocalMaking]:
        with write_point(self._repository, work_of(self._vm.name), first_copy=False) as writer:
            sealer = Sealer.after(self._repository, writer, parent, position)
            yield LocalMaking(self._making_of, writer, sealer, self._spool, [])

    def last_point(self, parent: RecoveryPoint, begin: int, alive: Callable[[], None]) -> tuple[RecoveryPoint | None, int]:
        made = import_spool(self._repository, parent, self._spool, begin, alive)
        return (made.point, made.ended_ns) if made is not None else (None, 0)

    def count(self, days: Mapping[int, DayOfMinutes]) -> None:
        add_minutes(self._repository.documents, self._vm.vm, self._stream, days)

    @property
    def _making_of(self) -> tuple[str, int, str]:
        return self._vm.vm, self._epoch, self._stream


@dataclass(frozen=True, slots=True)
class LocalDisk:
    """Is `recipient.DiskMaking`. `before`: its tree at the VM's newest point, or as an earlier making has kept it (`goes_on`),
    where that can be built upon; `repository`: its id."""

    writer: PointWriter
    disk: SealedDisk
    before: Tree | None
    repository: str
    goes_on: bool

    @property
    def size_before(self) -> int | None:
        return self.before.size if self.before is not None else None

    def keep(self) -> Json:
        self.writer.flush()
        return {"repository": self.repository, "changed": self.disk.changed, **self.disk.tree.to_json()}

    def take_in(
        self, device: BlockDevice, ranges: Ranges | None, progress: Callable[[int], None], enough: Callable[[], bool]
    ) -> Ranges:
        return self.disk.take_in(self.writer, device, ranges, progress, enough)


@dataclass(frozen=True, slots=True)
class LocalMaking:
    """Is `recipient.Making`. `whose`: the VM, the epoch and the stream."""

    whose: tuple[str, int, str]
    writer: PointWriter
    sealer: Sealer
    spool: Spool
    disks: Sequence[LocalDisk]

    @property
    def point(self) -> PointId:
        return self.writer.point

    @property
    def laid(self) -> Replay:
        return self.sealer.replay

    def lay(self, alive: Callable[[], None], until: int | None = None, until_ns: int | None = None) -> None:
        self.sealer.alive = alive
        for group in self.spool.groups(self.laid.sequence):
            self.sealer.feed(group, until, until_ns)
            if self.laid.beyond or (until is not None and self.laid.sequence >= until):
                break

    def commit(self, parent: RecoveryPoint | None, facts: PointFacts) -> RecoveryPoint:
        files = {name: self.writer.take_file(content) for name, content in facts.files.items()}
        origin = Origin(*self.whose, files, facts.began_ns, facts.gap, facts.clock or None, facts.apart)
        self.sealer.instant_ns = facts.at_ns or 0
        return self.sealer.commit(parent, origin, facts.seconds, facts.mark, facts.consistency, facts.latencies)


def _taken_up(writer: PointWriter, name: str, kept: Json, size: int, repository: str) -> SealedDisk | None:
    """A disk as an earlier making has kept it (`LocalDisk.keep`); None where that is of another repository or size, or not all
    of it is there any more. Raises StorageError."""
    try:
        tree = Tree.from_json(kept)
        if text(kept, "repository") == repository and tree.size == size and writer.take_up(tree):
            return SealedDisk(name, size, tree, changed=whole(kept, "changed"))
    except FormatError:
        pass  # then all is read
    return None


def _line(newest: RecoveryPoint | None, points: list[RecoveryPoint]) -> dict[PointId, int]:
    """Numbers of those points up to the newest one that are of its stream. It may be of a backup, of another host or of another
    disk by that name: no bitmap here knows of that. A bitmap since a later point, which was dropped, lacks what came before."""
    end = newest.journal if newest else None
    return {
        point.point: point.number
        for point in points
        if end and point.journal and point.journal.stream == end.stream and point.journal.sequence <= end.sequence
    }
