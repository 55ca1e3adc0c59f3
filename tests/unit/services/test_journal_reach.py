# SPDX-License-Identifier: AGPL-3.0-or-later
"""How far the journal in the repository goes on after the newest point; and what the minutes of its records keep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.formats.ids import PointId
from everywhen.formats.point import Gap, JournalPosition, RecoveryPoint
from everywhen.repository.errors import Damaged
from everywhen.repository.ledger import Vm
from everywhen.repository.minutes import DayOfMinutes, Row, add_minutes, kept_minutes
from everywhen.repository.repository import Repository
from everywhen.services.ages import DAY
from everywhen.services.journal_reach import reached_ns
from everywhen.services.protect.written import Activity, activity
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World
from tests.records import COMPLETE, OPENED, group, put_segment, write

STREAM, VM = "ab" * 16, Vm("f" * 32, "web1", "", "", "", 0)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    world, store = World(tmp_path), MemoryStore()
    with world.open(store, world.create(store, encrypted=False)) as opened:
        yield opened


def point(time_ns: int, journal: JournalPosition | None) -> RecoveryPoint:
    return RecoveryPoint(PointId("p-" + "a" * 12), VM.vm, time_ns, 1, 1, None, "crash", "crash", "", {}, journal=journal)


def test_reach(repository: Repository) -> None:
    of_stream = JournalPosition(STREAM, 4, ("vda", "vdb"), 3, Gap(1, "paused"))
    assert reached_ns(repository, point(3, of_stream), exactly=True) is None, "nothing was shipped yet"
    put_segment(repository, STREAM, 0, group(0, *OPENED, *COMPLETE))
    put_segment(repository, STREAM, 1, group(4, write(0, 0, b"x")), group(5, write(0, 0, b"x"), write(0, 0, b"y")))
    assert reached_ns(repository, point(3, of_stream), exactly=True) == 5001
    assert reached_ns(repository, point(3, of_stream), exactly=False) == 4000
    assert reached_ns(repository, point(5001, of_stream), exactly=True) is None, "the point shows it"
    assert reached_ns(repository, point(3, None), exactly=True) is None
    repository.store.delete(f"journals/{STREAM}/{1:016x}")
    repository.store.put(f"journals/{STREAM}/{1:016x}", [bytes(300)])
    with pytest.raises(Damaged):
        reached_ns(repository, point(3, of_stream), exactly=False)


def test_minutes_add_up_and_outlive_what_cannot_be_read(repository: Repository) -> None:
    documents = repository.documents
    for _ in range(2):
        add_minutes(documents, VM.vm, STREAM, {7: DayOfMinutes({"vda": {5: Row(1, 10, 1, 3)}}, [(1, 2)])})
    add_minutes(documents, VM.vm, "cd" * 16, {7: DayOfMinutes({"vda": {5: Row(1, 10, 1)}}), 8: DayOfMinutes()})
    kept = [(number, day.disks.get("vda"), day.gaps) for number, day in kept_minutes(documents, VM.vm)]
    assert kept == [(7, {5: Row(2, 20, 2, 6)}, [(1, 2)]), (7, {5: Row(1, 10, 1)}, []), (8, None, [])]
    assert activity(repository, VM, 7 * DAY, 8 * DAY) == Activity(3, 30, 3, 0)
    assert activity(repository, VM, 0, 8 * DAY).gap_ns == 1
    assert activity(repository, VM, 8 * DAY, 9 * DAY).writes == 0
    repository.store.put(f"minutes/{VM.vm}/7-{STREAM}", [b"nonsense"])
    assert activity(repository, VM, 7 * DAY, 8 * DAY).writes == 1
    add_minutes(documents, VM.vm, STREAM, {7: DayOfMinutes({"vda": {5: Row(1, 10, 1, 3)}})})
    assert activity(repository, VM, 7 * DAY, 8 * DAY).writes == 2
