# SPDX-License-Identifier: AGPL-3.0-or-later
"""What becomes of a spool that a run before left, where the points that it follows are not simply there."""

from __future__ import annotations

from pathlib import Path

import pytest

from everywhen.capture.hypervisor import QmpSocket
from everywhen.capture.spool_reader import spool_files
from everywhen.formats.ids import PointId
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.journal import Journal
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.repository.twins import twin_of
from everywhen.services.protect.capture_order import CaptureOrder
from everywhen.services.protect.local_recipient import LocalRecipient
from tests.deaf import Deaf
from tests.laboratory import World
from tests.spools import STREAM, WRITES, sealed_further, spooled


class Hearing(Deaf):
    """Is told, and remembers what of runs before stays here."""

    def __init__(self) -> None:
        self.left: list[str] = []

    def left_behind(self, what: str) -> None:
        self.left.append(what)


@pytest.fixture
def order(tmp_path: Path) -> CaptureOrder:
    made = CaptureOrder(QmpSocket("nowhere"), tmp_path / "web1", 1 << 30, 0, 300.0)
    made.spool.mkdir(parents=True)
    return made


def beginning(
    repository: Repository, order: CaptureOrder, hearing: Hearing
) -> tuple[Vm, RecoveryPoint | None, dict[PointId, int], int]:
    return LocalRecipient(repository).beginning("web1", order, hearing)


def test_what_may_follow_a_point_that_cannot_be_read_stays(repository: Repository, order: CaptureOrder) -> None:
    point = spooled(repository, order.spool)
    names = [f"points/{point.point}", twin_of(f"points/{point.point}")]
    good = [repository.store.get(name) for name in names]
    files = [file.path.read_bytes() for file in spool_files(order.spool)]
    for name in names:
        repository.store.put(name, [b"rotten"])
    hearing = Hearing()
    assert beginning(repository, order, hearing)[1:3] == (None, {})
    assert [file.path.read_bytes() for file in spool_files(order.spool)] == files
    (said,) = hearing.left
    assert str(order.spool) in said
    assert point.point in said
    assert "verify --repair" in said
    for name, content in zip(names, good, strict=True):
        repository.store.put(name, [content])
    _, newest, line, _ = beginning(repository, order, hearing)
    assert newest is not None
    assert newest.journal is not None
    assert (newest.number, newest.journal.sequence) == (2, WRITES + 2)
    assert line == {point.point: 1, newest.point: 2}
    assert spool_files(order.spool) == []
    assert len(hearing.left) == 1


def test_what_follows_no_point_goes(repository: Repository, order: CaptureOrder) -> None:
    point = spooled(repository, order.spool)
    for name in (f"points/{point.point}", twin_of(f"points/{point.point}")):
        repository.store.delete(name)
    hearing = Hearing()
    assert beginning(repository, order, hearing)[1] is None
    assert (spool_files(order.spool), hearing.left) == ([], [])


def test_what_follows_a_dropped_point_is_no_moment_less(world: World, repository: Repository, order: CaptureOrder) -> None:
    point = spooled(repository, order.spool)
    world.drop(repository, point, delay_s=72 * 3600)
    _, newest, line, _ = beginning(repository, order, Hearing())
    assert newest is not None
    assert newest.parent is not None
    assert newest.parent.point == point.point
    assert line == {point.point: 1, newest.point: 2}, "a bitmap since the dropped one has all that came since the newest"


def test_a_bitmap_since_a_dropped_point_is_not_taken_for_one_since_an_older_one(
    world: World, repository: Repository, order: CaptureOrder
) -> None:
    point = spooled(repository, order.spool)
    later = sealed_further(repository, order.spool, point, WRITES + 2)
    world.drop(repository, later, delay_s=72 * 3600)
    _, newest, line, _ = beginning(repository, order, Hearing())
    assert newest == point
    assert line == {point.point: 1}


def test_what_follows_a_deleted_point_is_not_laid_over_an_older_one(repository: Repository, order: CaptureOrder) -> None:
    """Its files up to the deleted point are gone from the spool: the rest goes into the journal and makes no point."""
    point = spooled(repository, order.spool)
    later = sealed_further(repository, order.spool, point, 10)
    for name in (f"points/{later.point}", twin_of(f"points/{later.point}")):
        repository.store.delete(name)
    spool_files(order.spool)[0].path.unlink()
    hearing = Hearing()
    _, newest, *_ = beginning(repository, order, hearing)
    assert newest == point
    assert (spool_files(order.spool), hearing.left) == ([], [])
    assert Journal(repository, STREAM).numbers() == [1, 2]
