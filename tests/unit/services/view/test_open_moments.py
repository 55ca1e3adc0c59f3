# SPDX-License-Identifier: AGPL-3.0-or-later
"""Moments that are open: one for the same words, leased as long as they are used, and found after gc has moved everything."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.errors import Corrupt
from everywhen.formats.point import RecoveryPoint
from everywhen.interfaces.nbd_exports import MomentExports, kept
from everywhen.nbd.connection import NbdError
from everywhen.repository.ledger import Ledger, Vm
from everywhen.repository.presence import list_presences
from everywhen.repository.repository import Repository
from everywhen.services.addresses import parse_address
from everywhen.services.failures import NotFound
from everywhen.services.view.moments import FAILURES, OpenMoments
from everywhen.storage.memory import MemoryStore
from tests.laboratory import SparseDisk, World, block, shrink_packs, touched
from tests.memory_devices import MIB, MemoryDevice, MemoryExports, served

VM = "0" * 32
LATEST = parse_address("web1@latest")


class Watched:
    """A repository with a VM of three points, and its open moments; `now` is what their clock says."""

    def __init__(self, world: World, repository: Repository) -> None:
        self.world = world
        self.repository = repository
        self.now = 0.0
        self.asked: list[str] = []
        Ledger(repository.documents).put_vm(Vm(VM, "web1", "", "", "", 0))
        self.disks = [SparseDisk(20 * BLOCK_SIZE, {number: block(number) for number in range(12)})]
        self.points: list[RecoveryPoint] = []
        for _ in range(3):
            self.back_up()
        self.moments = OpenMoments(
            repository, "test", zone=UTC, monotonic=lambda: self.now, linger_s=10, before=self.asked.append
        )

    def back_up(self) -> None:
        disk = self.disks[-1].copy()
        disk.blocks[3] = touched(disk.blocks[3], len(self.points))
        self.world.clock.advance(60)
        self.points.append(self.world.back_up(self.repository, {"vda": disk}, vm=VM))
        self.disks.append(disk)

    @property
    def leases(self) -> list[list[str]]:
        return [lease.points for lease in list_presences(self.repository.documents, "leases/")]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    shrink_packs(monkeypatch)
    world, store = World(tmp_path), MemoryStore()
    unlocked = world.create(store, encrypted=False)
    with world.open(store, unlocked) as repository:
        repository.refresh()
        found = Watched(world, repository)
        yield found
        found.moments.close()
        assert found.leases == []


def test_the_same_words_are_one_moment_while_it_is_open(watched: Watched) -> None:
    first = watched.moments.open(LATEST)
    assert first.moment.point.point == watched.points[-1].point
    watched.back_up()
    assert watched.moments.open(parse_address("web1/vda")) is first
    watched.moments.release(LATEST)
    watched.moments.tidy()
    assert watched.moments.open(LATEST) is first
    for _ in range(2):
        watched.moments.release(LATEST)
    watched.now = 9.9
    watched.moments.tidy()
    assert watched.moments.open(LATEST) is first
    watched.moments.release(LATEST)
    watched.now = 20.0
    watched.moments.tidy()
    assert watched.leases == []
    assert watched.moments.open(LATEST).moment.point.point == watched.points[-1].point
    assert watched.asked == ["web1", "web1"]


def test_what_is_open_is_leased_and_readable_when_gc_has_moved_it(watched: Watched) -> None:
    names = [parse_address(f"web1/vda@{point.point}") for point in watched.points]
    views = [watched.moments.open(name) for name in names]
    assert sorted(watched.leases) == sorted([point.point] for point in watched.points)
    watched.world.drop(watched.repository, *watched.points[:-1])
    watched.world.clock.advance(1)
    with watched.world.open(watched.repository.store) as other:
        other.refresh()
        watched.world.collect(other)
    for view, disk in zip(views, watched.disks[1:], strict=True):
        assert view.disks["vda"].read(0, disk.size) == disk.read(0, disk.size)


def test_a_point_of_another_process_is_found(watched: Watched) -> None:
    """Its packs are not in our index yet, and a later opening of a known point does not list them either."""
    with watched.moments.used(parse_address(f"web1@{watched.points[0].point}")):
        pass
    disk = SparseDisk(20 * BLOCK_SIZE, {5: block("new")})
    with watched.world.open(watched.repository.store) as other:
        other.refresh()
        point = watched.world.back_up(other, {"vda": disk}, vm=VM)
    with watched.moments.used(parse_address(f"web1@{watched.points[1].point}")) as view:
        assert view.disks["vda"].read(0, 4096) == block(0)[:4096]
    with watched.moments.used(parse_address(f"web1@{point.point}")) as view:
        assert view.disks["vda"].read(0, disk.size) == disk.read(0, disk.size)


def test_who_asks_about_many_does_not_keep_them_open(watched: Watched) -> None:
    for _ in range(9):
        watched.back_up()
    for point in watched.points:
        with watched.moments.used(parse_address(f"web1@{point.point}")):
            watched.now += 0.1
    assert sorted(watched.leases) == sorted([point.point] for point in watched.points[-9:])
    watched.moments.tidy()
    assert sorted(watched.leases) == sorted([point.point] for point in watched.points[-8:])


def test_what_was_written_is_there_whichever_words_name_the_disk(watched: Watched, tmp_path: Path) -> None:
    exports = MomentExports(watched.moments, "url", overlay=kept(str(tmp_path)), opened=lambda _view: None)
    opened = [exports.open(name) for name in ("web1", "web1/vda", "web1/vda@latest")]
    assert opened[0].writer
    opened[0].writer.write(100, b"written")
    assert [one.device.read(100, 7) for one in opened] == [b"written"] * 3
    for one in opened:
        one.release()
    exports.close()


def test_what_cannot_be_opened_is_not_left_open(watched: Watched) -> None:
    for text in ("web1@2001-01-01", "wbe1", "web1/vdb@latest"):
        with pytest.raises(NotFound):
            watched.moments.open(parse_address(text))
    watched.moments.tidy()
    assert watched.leases == []


class Wrong(MemoryDevice):
    """A disk whose block map is not what it should be."""

    def read(self, offset: int, length: int) -> bytes:
        raise Corrupt("a node of the block map with 3 bytes")


def test_what_cannot_be_understood_fails_one_request_not_the_connection(tmp_path: Path) -> None:
    exports = MemoryExports({"disk": Wrong(bytes(MIB), at_hand=False)})
    with served(exports, tmp_path, failures=FAILURES) as running, running.connected() as client:
        for _ in range(2):
            with pytest.raises(NbdError, match="error 5"):
                client.answer(client.ask(0, 100))
    assert [type(error) for _, error in running.reported] == [Corrupt]
