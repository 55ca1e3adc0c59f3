# SPDX-License-Identifier: AGPL-3.0-or-later
"""One running VM under capture, into a repository on this host: taps on, what they cannot know copied, the journal sealed.

The order of things, and what each crash leaves: docs/capture.md. The oldest of our bitmaps on a disk always covers everything
since the VM's newest point; so after any end of ours only what it names is read again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from everywhen.block.device import BLOCK_SIZE, DeviceError
from everywhen.capture import bitmaps, leftovers
from everywhen.capture.counters import FINE, SPOOL_FAILED, SPOOL_FULL, SPOOL_SLOW
from everywhen.capture.export import CannotExport, DangerousExport, ExportedDisk, Pace, exported
from everywhen.capture.nodes import DiskNode, NoDisks, find_disks
from everywhen.capture.qmp import CommandFailed, Monitor, MonitorError, QmpMonitor
from everywhen.capture.reception import Reception
from everywhen.capture.sink_process import SinkOrder
from everywhen.capture.spool_reader import SpoolDamaged, SpoolFile, read_groups, spool_files
from everywhen.capture.tap import Tap, TapFailed, attached
from everywhen.formats.fields import canonical_json
from everywhen.formats.ids import PointId
from everywhen.formats.point import RecoveryPoint
from everywhen.formats.spool import Group, SpoolHeader
from everywhen.nbd.connection import NbdConnection, NbdError
from everywhen.repository.intake import Ranges
from everywhen.repository.keys.cipher import Cipher
from everywhen.repository.keys.spool_keys import SpoolRecipient, open_file
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.repository.writer import PointWriter, write_point
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import Failed, Failure, WrongUsage
from everywhen.services.identities import record, vm_by_name
from everywhen.services.naming import is_name
from everywhen.services.sealing import SealedDisk, Sealer
from everywhen.storage.base import StorageError


class Time(Protocol):
    """The clock and the wish to end."""

    def monotonic(self) -> float:
        """Seconds that never run backwards."""

    def sleep(self, seconds: float) -> None:
        """Wait, whatever is wished for."""

    def stopped(self, seconds: float) -> bool:
        """Wait for so many seconds; True as soon as somebody wants the end."""


_WHY = {
    FINE: "the sink ended, or was taken away because it hung",
    SPOOL_FULL: "the spool is full",
    SPOOL_SLOW: "this host's disk is too slow for the spool",
    SPOOL_FAILED: "the spool cannot be written",
}
_LOOK_S = 0.25
_BACK_OFF_S, _LONGEST_BACK_OFF_S, _LASTED_S = 1.0, 300.0, 600.0
_DURABLE_S = 10.0


@dataclass(frozen=True, slots=True)
class ProtectOrder:
    """What to protect: the monitor's socket; the folder of sockets and spool; the spool's limit in bytes; bytes a second to
    copy (0: no limit); seconds between two points."""

    monitor: str
    folder: Path
    spool_limit: int
    rate: int
    seal_s: float


class Told(Protocol):
    """Who is told how it goes."""

    def attached(self, disks: list[str]) -> None: ...

    def copying(self, done: int, total: int) -> None: ...

    def sealed(self, point: RecoveryPoint, records: int) -> None: ...

    def lost(self, why: str) -> None: ...

    def waiting(self, why: str) -> None: ...


class CaptureLost(Exception):
    """The taps are gone; what changes from now on is known by the bitmaps alone. Says why."""


_ENDS = (
    CaptureLost,
    MonitorError,
    CommandFailed,
    TapFailed,
    NbdError,
    DeviceError,
    NoDisks,
    CannotExport,
    DangerousExport,
    SpoolDamaged,
    StorageError,
    OSError,
)
"""What ends a stretch of capture, and once it has stood is no reason not to try again."""


class _Stopped(Exception):
    """The end was wished for before the first point was made."""


def protect(repository: Repository, name: str, order: ProtectOrder, told: Told, time: Time) -> RecoveryPoint | None:
    """Capture until the end is wanted, again and again if it is lost; gives the newest point.

    Raises Failure where it cannot be begun at all: no such monitor, nothing to capture, a disk that cannot be captured.
    """
    if not is_name(name):
        raise WrongUsage(f'"{name}" is not a name for a VM: use a-z, 0-9, dot, dash and underscore.', on=name)
    catalog = read_catalog(repository)
    vm, known = vm_by_name(repository, catalog, name)
    if not known:
        record(repository, vm)
    points = {point.point: point.number for point in catalog.points if point.vm == vm.vm}
    newest, back_off, stood = catalog.newest(vm), _BACK_OFF_S, False
    while True:
        capture = Capture(repository, vm, order, told, time, newest, points)
        began = time.monotonic()
        try:
            return capture.run()
        except _Stopped:
            return capture.parent
        except _ENDS as error:
            newest = capture.parent
            stood = stood or capture.stood
            if not stood:
                if isinstance(error, StorageError):
                    raise  # it says for itself what is wrong with the repository
                raise _not_begun(name, order, error) from error
            told.lost(str(error))
        # A capture that lasted has earned a quick try.
        back_off = _BACK_OFF_S if time.monotonic() - began > _LASTED_S else min(2 * back_off, _LONGEST_BACK_OFF_S)
        if time.stopped(back_off):
            return newest


def _not_begun(name: str, order: ProtectOrder, error: Exception) -> Failure:
    return Failed(
        f"{name} cannot be captured: {error}.",
        on=order.monitor,
        safe="Nothing of it is left in the VM, which runs on as before.",
    )


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What stands while the taps do."""

    monitor: Monitor
    nodes: list[DiskNode]
    reception: Reception
    sealer: Sealer
    taps: list[Tap]


@dataclass(slots=True)
class Capture:
    """One stretch of capture, from attaching to the loss of the taps or the wish to end."""

    repository: Repository
    vm: Vm
    order: ProtectOrder
    told: Told
    time: Time
    parent: RecoveryPoint | None
    known: dict[PointId, int]
    """Numbers of the VM's points."""
    stood: bool = False
    """Whether all taps were attached, and a point was made."""
    _sealer: Sealer | None = None
    _read: dict[Path, int] = field(default_factory=dict)
    """How many groups of a spool file were fed."""

    def run(self) -> RecoveryPoint | None:
        """Protect until the end is wanted; gives the newest point. Raises CaptureLost and the errors of the layers below."""
        try:
            return self._run()
        except _ENDS:
            with suppress(StorageError):  # then it is in the next point: the bitmaps have it
                self._last_words()
            raise

    def _run(self) -> RecoveryPoint | None:
        with QmpMonitor.connect(self.order.monitor) as monitor:
            nodes = find_disks(monitor)
            for node in nodes:
                if node.iothread:
                    raise DangerousExport(f"{node.device} has an iothread, and reading such a disk from QEMU is not built yet")
            leftovers.clear(monitor, nodes)
            try:
                self._capture(monitor, nodes)
            finally:
                # The sink is gone: nothing of ours stays in QEMU but the bitmaps. QEMU itself may be gone.
                with suppress(CommandFailed, MonitorError):
                    leftovers.clear(monitor, nodes)
        return self.parent

    def _capture(self, monitor: Monitor, nodes: list[DiskNode]) -> None:
        spool = self.order.folder / "spool"
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in spool_files(spool):
            old.path.unlink()  # what it had beyond the newest point the bitmaps name, too; its moments are given up
        sealer = self._sealer = self._begin_sealing(nodes)
        with Reception(self.order.folder / "sink.sock", self._sink_order(nodes, sealer)) as reception:
            taps = [Tap(monitor, node, number) for number, node in enumerate(nodes)]
            for tap in taps:
                tap.attach(str(reception.socket_path))
            self.told.attached([disk.name for disk in sealer.disks])
            stretch = _Stretch(monitor, nodes, reception, sealer, taps)
            self._close_gap(stretch)
            self.stood = True
            self._follow(stretch)

    def _last_words(self) -> None:
        """After a loss: a point of the last moment that the spool has. QEMU's end is such a loss; its last writes are in."""
        sealer = self._sealer
        if sealer is None:
            return
        for group in self._groups():
            sealer.feed(group)
        if sealer.is_moment and sealer.records:
            with write_point(self.repository, f"protect {self.vm.name}", first_copy=False) as writer:
                self._commit(writer, sealer, self.time.monotonic())

    def _begin_sealing(self, nodes: list[DiskNode]) -> Sealer:
        disks = []
        for name, node in zip(_names(nodes), nodes, strict=True):
            known = self.parent.disks.get(name) if self.parent else None
            disks.append(SealedDisk(name, node.size, known.tree if known else None))
        epoch = self.parent.epoch + 1 if self.parent else 1
        return Sealer(self.repository, self.vm.vm, disks, epoch)

    def _covering(self, monitor: Monitor, node: DiskNode, disk: SealedDisk) -> bitmaps.Recording | None:
        """The bitmap that has recorded every change of the disk since the newest possible one of the VM's points."""
        found = bitmaps.recordings(monitor, node.node)
        usable = [one for one in found if one.disk == disk.name and one.point in self.known]
        return max(usable, key=lambda one: self.known[one.point], default=None)

    def _sink_order(self, nodes: list[DiskNode], sealer: Sealer) -> SinkOrder:
        recipient = SpoolRecipient.of(self.repository.id, self.repository.unlocked.keyset)
        return SinkOrder(
            sizes=[node.size for node in nodes],
            folder=str(self.order.folder / "spool"),
            limit=self.order.spool_limit,
            vm=self.vm.vm,
            epoch=self.parent.epoch + 1 if self.parent else 1,
            sequence=sealer.sequence,
            repository=recipient.repository.hex(),
            generation=recipient.generation,
            public=recipient.public.hex(),
        )

    def _close_gap(self, stretch: _Stretch) -> None:
        """Read what the taps cannot know, lay the journal over it, and make the first point."""
        pace = Pace(self.order.rate, self.time.monotonic, self.time.sleep)
        with write_point(self.repository, f"protect {self.vm.name}", first_copy=self.parent is None) as writer:
            total = sum(node.size for node in stretch.nodes)
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                if self.time.stopped(0):
                    raise _Stopped
                done += count
                self.told.copying(min(done, total), total)

            for number, node in enumerate(stretch.nodes):
                disk = stretch.sealer.disks[number]
                with self._exported(stretch.monitor, node, disk, pace) as (device, ranges):
                    disk.take_in(writer, device, ranges, advance)
                self._mark_complete(stretch.reception, number)
            self._seal(stretch, writer)

    @contextmanager
    def _exported(
        self, monitor: Monitor, node: DiskNode, disk: SealedDisk, pace: Pace
    ) -> Iterator[tuple[ExportedDisk, Ranges | None]]:
        """The disk to be read, and the blocks that are to be looked at: those a bitmap names, or None for all of them."""
        path = str(self.order.folder / "export.sock")
        since = self._covering(monitor, node, disk)
        if since is None:
            with exported(monitor, node, path, pace, None) as device:
                yield device, None
            return
        bitmaps.freeze(monitor, node.node, since)
        try:
            with exported(monitor, node, path, pace, bitmaps.FROZEN) as device:
                yield device, _blocks(device.dirty(bitmaps.FROZEN))
        finally:
            bitmaps.remove(monitor, node.node, bitmaps.FROZEN)

    def _mark_complete(self, reception: Reception, number: int) -> None:
        with NbdConnection(str(reception.socket_path), f"mark-{number}", timeout=_DURABLE_S) as connection:
            connection.answer(connection.send(0, canonical_json({"mark": "complete"})))

    def _follow(self, stretch: _Stretch) -> None:
        """Seal from time to time, until the end is wanted. Raises CaptureLost."""
        last = self.time.monotonic()
        while True:
            ending = self.time.stopped(_LOOK_S)
            if not stretch.reception.alive or stretch.reception.state != FINE:
                raise CaptureLost(_WHY[stretch.reception.state])
            for tap in stretch.taps:
                if (why := tap.ended(0)) is not None:
                    raise CaptureLost(f"{tap.disk.device}: {why}")
            if not ending and self.time.monotonic() - last < self.order.seal_s:
                continue
            try:
                self._make_point(stretch)
            except StorageError as error:
                if ending:
                    raise
                # Capture goes on: the spool holds what the repository does not take, as long as there is room.
                self.told.waiting(str(error))
            last = self.time.monotonic()
            if ending:
                return

    def _make_point(self, stretch: _Stretch) -> None:
        """A point of what was written since the last one, if anything was."""
        if stretch.reception.taken > stretch.sealer.sequence:
            with write_point(self.repository, f"protect {self.vm.name}", first_copy=False) as writer:
                self._seal(stretch, writer)

    def _seal(self, stretch: _Stretch, writer: PointWriter) -> None:
        """Begin new bitmaps, make the point of that instant, and let go of older bitmaps and of the spool up to there."""
        began, monitor, sealer = self.time.monotonic(), stretch.monitor, stretch.sealer
        names = {node.node: disk.name for node, disk in zip(stretch.nodes, sealer.disks, strict=True)}
        old = {node: bitmaps.recordings(monitor, node) for node in names}
        bitmaps.begin(monitor, names, writer.point)
        try:
            there = attached(monitor)
            self._feed(stretch.reception, sealer, stretch.reception.taken)
            # What was written between the end of a tap and the beginning of these bitmaps is neither here nor there.
            if sealer.ended or not sealer.is_moment or not there.issuperset(tap.name for tap in stretch.taps):
                raise CaptureLost("a tap ended")
            self._commit(writer, sealer, began)
        except BaseException:
            if writer.point not in self.known:
                with suppress(CommandFailed, MonitorError):  # where QEMU is gone, so are they
                    for node, bitmap in bitmaps.begun(names, writer.point).items():
                        bitmaps.remove(monitor, node, bitmap)
            raise
        for node, recordings in old.items():
            bitmaps.remove(monitor, node, *(recording.name for recording in recordings))
        self._drop_read()

    def _commit(self, writer: PointWriter, sealer: Sealer, began: float) -> None:
        """The point of what was fed."""
        records = sealer.records
        with sealer.attempt():
            sealer.take_in(writer)
            point = sealer.point(writer, self.parent, self.time.monotonic() - began)
            writer.commit(point)
        self.parent, self.known[point.point] = point, point.number
        self.told.sealed(point, records)

    def _feed(self, reception: Reception, sealer: Sealer, until: int) -> None:
        """Feed the sealer all records before `until`, as soon as they are durable. Raises CaptureLost."""
        end = self.time.monotonic() + _DURABLE_S
        while reception.durable < until:
            if not reception.alive or self.time.monotonic() > end:
                raise CaptureLost("the spool does not become durable")
            self.time.sleep(0.02)
        for group in self._groups():
            sealer.feed(group, until)
        if sealer.sequence < until and not sealer.ended:
            raise CaptureLost(f"the spool ends at record {sealer.sequence}, and {until} were durable")

    def _groups(self) -> Iterator[Group]:
        """The groups that were not fed to the end, from the one that was fed last."""
        files = spool_files(self.order.folder / "spool")
        for file in files:
            done = self._read.get(file.path, 0)
            for ordinal, group in enumerate(read_groups(file, self._opener, last=file == files[-1])):
                if ordinal >= done - 1:
                    self._read[file.path] = ordinal + 1
                    yield group

    def _drop_read(self) -> None:
        """Remove the spool files that are in a point: all but the newest, which is still written."""
        files = spool_files(self.order.folder / "spool")
        for file in files[:-1]:
            if file.path in self._read and self._is_behind(file, files):
                file.path.unlink()
                del self._read[file.path]

    def _is_behind(self, file: SpoolFile, files: list[SpoolFile]) -> bool:
        """Whether reading has come to a later file."""
        return any(later.path in self._read for later in files if later > file)

    def _opener(self, header: SpoolHeader) -> Cipher:
        keyset = self.repository.unlocked.keyset
        return open_file(keyset, self.repository.id, header.cipher, header.generation, header.key)


def _names(nodes: list[DiskNode]) -> list[str]:
    """Names of ours for the disks, after the hypervisor's devices: they must not change when a disk is added or removed."""
    names = [re.sub(r"[^a-z0-9._-]+", "-", node.device.lower()).strip("-.") for node in nodes]
    return [name if is_name(name) and names.count(name) == 1 else f"disk{number}" for number, name in enumerate(names)]


def _blocks(dirty: list[tuple[int, int]]) -> Ranges:
    """Byte ranges as ranges of blocks, sorted and disjoint."""
    ranges: Ranges = []
    for start, end in dirty:
        first, last = start // BLOCK_SIZE, -(-end // BLOCK_SIZE)
        if ranges and first <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(last, ranges[-1][1]))
        else:
            ranges.append((first, last))
    return ranges
