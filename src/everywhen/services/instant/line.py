# SPDX-License-Identifier: AGPL-3.0-or-later
"""The timeline of a VM that runs from the backup: a stream of its own, spooled by this process, and made into points by it.

As a capture's (docs/capture.md), but that nothing is copied: what the disks held at the stream's first moment is what its first
point shows, so each disk is complete as soon as it is tapped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from everywhen.block.patched import PatchedDevice, Patches
from everywhen.capture.counters import CLOSED, DURABLE, FINE, ROLL, ROLLED, STATE, TAKEN, WORK_BYTES, WRITTEN_BYTES, Counters
from everywhen.capture.sink_process import SinkOrder
from everywhen.capture.spool_writer import SpoolWriter
from everywhen.formats.fields import canonical_json
from everywhen.formats.point import Gap, JournalPosition, RecoveryPoint, RolledBack, Tree
from everywhen.formats.segment import MARK
from everywhen.repository import epochs
from everywhen.repository.disk import PointDisk
from everywhen.repository.index.process_lock import try_lock
from everywhen.repository.keys.segment_keys import JournalRecipient
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.repository.writer import PointWriter, write_point
from everywhen.services.failures import Busy
from everywhen.services.instant.journalled import Spooler
from everywhen.services.opening import OpenedMoment
from everywhen.services.protect.capture_order import Time
from everywhen.services.protect.lineage import claimed_epoch, demand_line
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.protect.spool_import import import_spool
from everywhen.services.protect.spooling import Spool
from everywhen.services.replay import Replay

_SEAL_S, _SHIP_S = 300.0, 60.0
_SEAL_BYTES, _SHIP_BYTES = 256 << 20, 16 << 20
"""As captures do: a run that goes on after a kill lays no more than that over the newest point before it serves."""
_ROLL_S, _LOOK_S = 10.0, 0.01
"""The spool's thread looks at least four times a second whether its file is to be closed."""


@dataclass(frozen=True, slots=True)
class Start:
    """`base`: what the disks hold; `parent`: the VM's newest point. `rolled_back`: it begins here again; `gap_ns`: until when
    its writes were known before, where some may be missing (None: none is)."""

    base: OpenedMoment
    parent: RecoveryPoint
    rolled_back: RolledBack | None = None
    gap_ns: int | None = None


class Line:
    """One stream. `spooler` is for the threads that serve; all else is for one thread."""

    def __init__(self, repository: Repository, vm: Vm, folder: Path, start: Start, limit: int, time: Time) -> None:
        """`folder`: of the spool, empty; `limit`: bytes that may wait in it. The first point is made.

        Raises Busy, StorageError, Damaged, Fenced, OSError.
        """
        self._repository = repository
        self._vm = vm
        self._time = time
        self.disks = tuple(sorted(start.base.point.disks))
        self.newest = start.parent
        self._stream = repository.surroundings.randomness(16).hex()
        with ExitStack() as stack:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            if not try_lock(descriptor):
                raise Busy(f"{folder}: a capture of {vm.name} runs on this host.", on=vm.name)
            self._epoch = claimed_epoch(repository, vm.vm, start.parent, folder)
            recipient = JournalRecipient.of(repository.id, repository.unlocked.keyset)
            sizes = [start.base.point.disks[name].tree.size for name in self.disks]
            whose = (recipient.repository.hex(), recipient.generation, recipient.public.hex())
            order = SinkOrder(sizes, str(folder), limit, self._stream, self._epoch, *whose)
            self._counters = Counters.create()
            stack.callback(self._counters.close)
            self._writer = SpoolWriter(order.place(), self._counters)
            stack.callback(self._writer.close)
            self.spooler = Spooler(self._writer, self._counters)
            self._spool = Spool(repository, folder, self._epoch, self._stream)
            for number in range(len(self.disks)):
                for what in ("tap opened", "complete"):
                    self._mark(number, what)
            self.spooler.sync()
            self.newest = self._first(start)
            self._closing = stack.pop_all()
        self._begin = self._position.sequence
        self._sealed_s = self._shipped_s = time.monotonic()
        self._sealed_bytes = self._shipped_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """What was taken is durable in the spool."""
        self._closing.close()

    @property
    def writes(self) -> bool:
        """Whether the spool still takes what is written."""
        return self._counters.get(STATE) == FINE

    @property
    def _position(self) -> JournalPosition:
        if self.newest.journal is None:
            raise ValueError("a stream's point without a position in it")
        return self.newest.journal

    def tend(self) -> RecoveryPoint | None:
        """What is due: segments to the repository, a point. The point, where one was made.

        Raises Displaced, StorageError, Damaged, Fenced, SpoolDamaged, OSError: nothing is lost by it, and it is tried again.
        """
        now = self._time.monotonic()
        waits = self._counters.get(TAKEN) > self._position.sequence
        if waits and (now - self._sealed_s >= _SEAL_S or self._counters.get(WORK_BYTES) - self._sealed_bytes >= _SEAL_BYTES):
            return self.seal()
        spooled = self._counters.get(WRITTEN_BYTES)
        if spooled > self._shipped_bytes and (now - self._shipped_s >= _SHIP_S or spooled - self._shipped_bytes >= _SHIP_BYTES):
            self._demand_line(cheaply=True)
            self._ship()
        return None

    def seal(self, mark: str | None = None) -> RecoveryPoint | None:
        """A point of all that was answered by now; None where nothing was written since the newest one. Raises as `tend`."""
        self.spooler.sync()
        self._demand_line(cheaply=False)
        began, work, position = self._time.monotonic(), self._counters.get(WORK_BYTES), self._position
        with write_point(self._repository, f"boot {self._vm.name}", first_copy=False) as writer:
            sealer = Sealer.after(self._repository, writer, self.newest, position)
            for group in self._spool.groups(position.sequence):
                sealer.feed(group, until=self._counters.get(DURABLE))
            if not sealer.replay.writes:
                return None
            whose = (self._vm.vm, self._epoch, self._stream, self.newest.files)
            origin = Origin(*whose, position.began_ns, position.gap, position.clock)
            self.newest = sealer.commit(self.newest, origin, self._time.monotonic() - began, mark)
        self._sealed_s, self._sealed_bytes = self._time.monotonic(), work
        self._ship()
        self._spool.drop(self._position.sequence)
        return self.newest

    def closed(self) -> None:
        """Say in the stream that what is written from now on is not in it. Raises OSError."""
        for number in range(len(self.disks)):
            self._mark(number, "tap closed")
        self.spooler.sync()

    def end(self, *, stood: bool = True) -> RecoveryPoint:
        """No more is written: a point of the last moment, and the spool is empty. Raises as `tend`."""
        self._closing.close()
        made = import_spool(self._repository, self.newest, self._spool, self._begin, lambda: None)
        self.newest = made.point if made and made.point else self.newest
        epochs.leave(self._repository, self._vm.vm, self._epoch, stood=stood)
        return self.newest

    def _demand_line(self, *, cheaply: bool) -> None:
        demand_line(self._repository, self._vm.vm, self._epoch, self._stream, cheaply=cheaply)

    def _mark(self, disk: int, what: str) -> None:
        text = canonical_json({"mark": what})
        self.spooler.take((MARK, disk, 0, len(text), text))

    def _first(self, start: Start) -> RecoveryPoint:
        """The stream's first point: what the disks hold before anything is written."""
        repository, base = self._repository, start.base
        with write_point(repository, f"boot {self._vm.name}", first_copy=False) as writer:
            trees = {name: base.point.disks[name].tree for name in self.disks}
            disks = [SealedDisk(name, tree.size, tree) for name, tree in trees.items()]
            for disk in disks:
                # Not as records of ours: those are forgotten once they are taken in, and who serves the moment reads these.
                patches = base.patches.get(disk.name) or Patches()
                device = PatchedDevice(PointDisk(repository.fetcher, disk.tree), patches, disk.size)
                disk.take_in(writer, device, patches.ranges(disk.size), lambda _: None)
            sealer = Sealer(repository, writer, disks, Replay([Patches() for _ in disks], 0, following=False))
            for group in self._spool.groups(0):
                sealer.feed(group)
            at_ns = max(sealer.replay.time_ns, start.parent.time_ns + 1)
            gap = Gap(at_ns, "it went on") if start.gap_ns is None else Gap(start.gap_ns, "it was brought back from a backup")
            files = _files(repository, writer, base.point.files)
            origin = Origin(self._vm.vm, self._epoch, self._stream, files, gap=gap, rolled_back=start.rolled_back)
            return sealer.commit(start.parent, origin, 0)

    def _ship(self) -> None:
        """All that is spooled by now."""
        spooled = self._counters.get(WRITTEN_BYTES)
        self._counters.put(ROLL, self._counters.get(ROLL) + 1)
        self.spooler.sync()
        until = self._time.monotonic() + _ROLL_S
        while self._counters.get(ROLL) != self._counters.get(ROLLED) and self._time.monotonic() < until:
            self._time.sleep(_LOOK_S)
        self._spool.ship(self._begin, self._counters.get(CLOSED), lambda: None)
        self._shipped_s, self._shipped_bytes = self._time.monotonic(), spooled


def _files(repository: Repository, writer: PointWriter, trees: Mapping[str, Tree]) -> dict[str, Tree]:
    """Configuration files of another point."""
    return {
        name: tree if writer.usable(tree) else writer.take_file(PointDisk(repository.fetcher, tree).read(0, tree.size))
        for name, tree in trees.items()
    }
