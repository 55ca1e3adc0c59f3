# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who consumes a spool is decided where the parts are put together: here something that is no repository does, with a real
QEMU, and nothing of capture knows. It may be away: what waits for it waits in the spool, and capture goes on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from everywhen.block.device import BLOCK_SIZE, BlockDevice
from everywhen.block.patched import PatchedDevice, Patches
from everywhen.capture.hypervisor import QmpSocket
from everywhen.capture.spool_reader import SpoolFile, first_sequence, read_spooled, spool_files
from everywhen.formats.fields import Json
from everywhen.formats.ids import PointId, new_point_id
from everywhen.formats.point import Disk, JournalPosition, RecoveryPoint, Tree
from everywhen.formats.segment import SegmentHeader
from everywhen.interfaces.control_socket import Listener, ask
from everywhen.repository.intake import Ranges
from everywhen.repository.keys.cipher import Cipher
from everywhen.repository.keys.segment_keys import JournalRecipient, open_segment
from everywhen.repository.ledger import Vm
from everywhen.repository.presence import Holder
from everywhen.repository.repository import Surroundings
from everywhen.services.protect.capture_order import CaptureOrder, Time, Told
from everywhen.services.protect.protection import protect
from everywhen.services.protect.recipient import Beginning, DiskMaking, Making, PointFacts, Report
from everywhen.services.replay import Replay
from everywhen.storage.base import Unavailable
from tests.deaf import Deaf
from tests.hypervisor import Hypervisor, eventually
from tests.spools import NOT_ENCRYPTED, VM

MIB = 1 << 20


class Bytes:
    """A BlockDevice."""

    def __init__(self, content: bytearray) -> None:
        self.content = content
        self.size = len(content)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.content[offset : offset + length])

    def read_blocks(self, blocks: Sequence[int]) -> list[bytes]:
        return [self.read(block * BLOCK_SIZE, BLOCK_SIZE).ljust(BLOCK_SIZE, b"\0") for block in blocks]


class Elsewhere:
    """Holds the disks of each point as bytes, and the journal as it came. Is `recipient.Recipient`."""

    def __init__(self, folder: Path) -> None:
        self.surroundings = Surroundings(time.time_ns, os.urandom, Holder("here", "boot", os.getpid(), "test"), folder)
        self.key = JournalRecipient(bytes(16), 0, b"")
        self.points: list[RecoveryPoint] = []
        self.contents: dict[PointId, dict[str, bytes]] = {}
        self.journal: dict[int, bytes] = {}
        self.away = False
        self.ended: list[tuple[int, bool]] = []

    def beginning(self, name: str, order: CaptureOrder, told: Told) -> Beginning:
        newest = self.points[-1] if self.points else None
        return Beginning(VM, newest, {newest.point: newest.number} if newest else {}, 0)

    def point(self, point: PointId) -> RecoveryPoint | None:
        return None

    def claim(self, vm: str, parent: RecoveryPoint | None, spool: Path) -> int:
        return len(self.ended) + 1

    def leave(self, vm: str, epoch: int, *, stood: bool) -> None:
        self.ended.append((epoch, stood))

    def demand_turn(self, vm: str, epoch: int) -> None:
        """Nobody else captures."""

    def demand_parent(self, parent: RecoveryPoint) -> None:
        assert parent is self.points[-1]

    def consumption(self, vm: Vm, epoch: int, stream: str, spool: Path) -> Stream:
        return Stream(self, epoch, stream, spool)

    def back_up(self, name: str, order: CaptureOrder, report: Report) -> RecoveryPoint | str:
        return "it takes no images"


class Stream:
    """Is `recipient.Consumption`."""

    def __init__(self, elsewhere: Elsewhere, epoch: int, stream: str, folder: Path) -> None:
        self.elsewhere, self.epoch, self.stream, self.folder = elsewhere, epoch, stream, folder

    def files(self) -> list[SpoolFile]:
        return spool_files(self.folder)

    def size(self) -> int:
        return sum(file.path.stat().st_size for file in self.files())

    def discard(self, closed: int) -> None:
        for file in self.files():
            if file.number < closed:
                file.path.unlink()

    def demand_line(self, *, cheaply: bool = False) -> None:
        if self.elsewhere.away:
            raise Unavailable("elsewhere", "it is away")

    def ship(self, begin: int, closed: int, alive: Callable[[], None]) -> None:
        self.elsewhere.journal |= {file.number: file.path.read_bytes() for file in self.files() if file.number < closed}

    def drop(self, sealed: int) -> None:
        for file, following in pairwise(self.files()):
            if file.number in self.elsewhere.journal and (first_sequence(following) or sealed + 1) <= sealed:
                file.path.unlink()

    def remove(self) -> None:
        for file in self.files():
            file.path.unlink()

    @contextmanager
    def first_point(
        self, parent: RecoveryPoint | None, disks: Sequence[tuple[str, int]], kept: Mapping[str, Json]
    ) -> Iterator[Making]:
        before = self.elsewhere.contents[parent.point] if parent else {}
        made = {
            name: OneDisk(bytearray(before.get(name, b"").ljust(size, b"\0")[:size]), known=name in before)
            for name, size in disks
        }
        yield Point(self, made, Replay([Patches() for _ in disks], 0, following=False))

    @contextmanager
    def next_point(self, parent: RecoveryPoint, position: JournalPosition) -> Iterator[Making]:
        self.demand_line()
        made = {name: OneDisk(bytearray(content)) for name, content in self.elsewhere.contents[parent.point].items()}
        yield Point(self, made, Replay([Patches() for _ in made], position.sequence, following=True))

    def last_point(self, parent: RecoveryPoint, begin: int, alive: Callable[[], None]) -> tuple[RecoveryPoint | None, int]:
        self.ship(begin, 1 << 62, alive)
        assert parent.journal is not None
        with self.next_point(parent, parent.journal) as making:
            making.lay(alive)
            assert isinstance(making, Point)
            point = making.commit(parent, PointFacts({})) if making.laid.writes else None
        self.remove()
        return point, making.laid.ended_ns or 0

    def count(self, days: Mapping[int, object]) -> None:
        """It keeps none."""


class OneDisk:
    """Is `recipient.DiskMaking`."""

    def __init__(self, content: bytearray, *, known: bool = False) -> None:
        self.device = Bytes(content)
        self.size_before = self.device.size if known else None
        self.goes_on = False

    def keep(self) -> Json:
        return {}  # it keeps nothing of what is not complete

    def take_in(
        self, device: BlockDevice, ranges: Ranges | None, progress: Callable[[int], None], enough: Callable[[], bool]
    ) -> Ranges:
        for first, end in [(0, -(-device.size // BLOCK_SIZE))] if ranges is None else ranges:
            start, stop = first * BLOCK_SIZE, min(end * BLOCK_SIZE, device.size)
            self.device.content[start:stop] = device.read(start, stop - start)
            progress(stop - start)
        return []


class Point:
    """Is `recipient.Making`."""

    def __init__(self, stream: Stream, disks: dict[str, OneDisk], replay: Replay) -> None:
        self.point = new_point_id(os.urandom)
        self.laid = replay
        self._stream = stream
        self._disks = disks

    @property
    def disks(self) -> Sequence[DiskMaking]:
        return list(self._disks.values())

    def lay(self, alive: Callable[[], None], until: int | None = None, until_ns: int | None = None) -> None:
        files = self._stream.files()
        for file in files:
            for group, _ in read_spooled(file, _opener, last=file == files[-1]):
                self.laid.feed(group, until=until, until_ns=until_ns)
        for disk, patches in zip(self._disks.values(), self.laid.patches, strict=True):
            below, size = disk.device, disk.device.size
            below.content[:] = PatchedDevice(below, patches, size).read(0, size)
            patches.clear()

    def commit(self, parent: RecoveryPoint | None, facts: PointFacts) -> RecoveryPoint:
        elsewhere, stream, names = self._stream.elsewhere, self._stream, tuple(self._disks)
        made = RecoveryPoint(
            point=self.point,
            vm=VM.vm,
            time_ns=self.laid.time_ns,
            number=len(elsewhere.points) + 1,
            epoch=stream.epoch,
            parent=None,
            asked="crash",
            reached="crash",
            why="",
            disks={name: Disk(Tree(disk.device.size, None), "raw", 0, 0, 0) for name, disk in self._disks.items()},
            mark=facts.mark,
            journal=JournalPosition(
                stream.stream, self.laid.sequence, names, facts.began_ns or self.laid.time_ns, facts.gap, None
            ),
        )
        elsewhere.contents[self.point] = {name: bytes(disk.device.content) for name, disk in self._disks.items()}
        elsewhere.points.append(made)
        return made


def _opener(header: SegmentHeader) -> Cipher:
    return open_segment(NOT_ENCRYPTED, bytes(16), header.cipher, header.generation, header.key)


class Hearing(Deaf):
    """Hears what waits, and what was lost."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def waiting(self, why: str) -> None:
        self.said.append(why)

    def lost(self, why: str) -> None:
        self.said.append(f"lost: {why}")


@contextmanager
def captured(elsewhere: Elsewhere, running: Hypervisor, folder: Path, hearing: Hearing) -> Iterator[Path]:
    """The folder of a capture that stands."""
    points, order = len(elsewhere.points), CaptureOrder(QmpSocket(str(running.qmp)), folder, 1 << 30, 0, 3600.0)
    with Listener(folder, dict) as wishes:
        arguments = (elsewhere, "web1", order, hearing, Time(time.monotonic, time.sleep), wishes)
        thread = threading.Thread(target=protect, args=arguments)
        thread.start()
        try:
            eventually(lambda: len(elsewhere.points) > points, "the first copy is complete")
            yield folder
        finally:
            wishes.end()
            thread.join(60)
    assert not thread.is_alive()


def test_something_that_is_no_repository_consumes_the_spool(tmp_path: Path) -> None:
    elsewhere, hearing, folder = Elsewhere(tmp_path), Hearing(), tmp_path / "web1"

    def same(point: RecoveryPoint) -> None:
        held = elsewhere.contents[point.point]
        assert held == {"vd0": running.content(0), "vd1": running.content(1)}

    with Hypervisor(tmp_path, [2 * MIB, MIB]) as running:
        running.write(0, MIB, MIB, 1)
        with captured(elsewhere, running, folder, hearing):
            same(elsewhere.points[-1])
            running.write(1, 4096, 512, 2)
            assert "point" in ask(folder, {"wish": "mark", "text": "there"})
            same(elsewhere.points[-1])
            elsewhere.away = True
            running.write(0, 0, 65536, 3)
            assert "it is away" in ask(folder, {"wish": "mark", "text": "away"})["error"]
            assert "it is away" in ask(folder, {"wish": "ship"})["error"]
            running.write(1, 65536, 4096, 4)
            assert not running.write_errors(0) + running.write_errors(1)
            elsewhere.away = False
            assert "point" in ask(folder, {"wish": "mark", "text": "back"})
            same(elsewhere.points[-1])
            assert "error" not in ask(folder, {"wish": "ship"})
            assert elsewhere.journal
            running.write(0, 8192, 4096, 5)
        assert not [said for said in hearing.said if said.startswith("lost")], "its absence has ended nothing"
        same(elsewhere.points[-1])
        running.write(1, 0, 4096, 6)  # nobody captures: the bitmap knows
        with captured(elsewhere, running, folder, hearing):
            same(elsewhere.points[-1])
        assert [point.mark for point in elsewhere.points if point.mark] == ["there", "back"]
        assert elsewhere.ended == [(1, True), (2, True)]
