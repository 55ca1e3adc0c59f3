# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write amplification against what really lies in the store, and what must not count in it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.block.patched import Patches
from everywhen.formats.point import RecoveryPoint, Tree
from everywhen.formats.segment import ZERO, Group, decode_group, encode_group
from everywhen.repository.ledger import Vm
from everywhen.repository.minutes import DayOfMinutes, PointRow, Row, add_minutes
from everywhen.repository.repository import Repository
from everywhen.repository.writer import write_point
from everywhen.services.ages import DAY, MINUTE
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.protect.written import Amplification, activity, amplification, together
from everywhen.services.replay import Replay
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World
from tests.records import COMPLETE, OPENED, group, put_segment, write

VM, STREAM = Vm("f" * 32, "web1", "", "", "", 0), "ab" * 16
SIZE = 8 << 20
BEGAN = 4000


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    world, store = World(tmp_path), MemoryStore()
    with world.open(store, world.create(store, encrypted=True)) as opened:
        yield opened


def sealed(repository: Repository, parent: RecoveryPoint | None, *groups: Group) -> RecoveryPoint:
    """The stream's first point without `parent`, else the one after it."""
    with write_point(repository, "test", first_copy=False) as writer:
        if parent is not None and parent.journal is not None:
            sealer = Sealer.after(repository, writer, parent, parent.journal)
        else:
            disks = [SealedDisk("vda", SIZE, Tree(SIZE, None)), SealedDisk("vdb", SIZE, Tree(SIZE, None))]
            sealer = Sealer(repository, writer, disks, Replay([Patches(), Patches()], 0, following=False))
        for one in groups:
            sealer.feed(one)
        return sealer.commit(parent, Origin(VM.vm, 1, STREAM, {}, BEGAN if parent else 0), 0.1)


def stored(repository: Repository, *prefixes: str) -> int:
    return sum(found.size for prefix in prefixes for found in repository.store.list(prefix))


def test_it_is_what_lies_in_the_store(repository: Repository) -> None:
    chance = random.Random(3)
    noise = [chance.randbytes(4096) for _ in range(60)]
    first = group(0, *OPENED, *COMPLETE, *[write(0, 65536 * at, noise[at]) for at in range(20)])
    point = sealed(repository, None, first)
    before = stored(repository, "packs/", "twins/packs/")
    # Each block twice, the second time one page on: 40 writes to as many pages; and one page again and again.
    second = group(24, *[write(1, 65536 * (at % 20) + 4096 * (at // 20), noise[20 + at]) for at in range(40)])
    third = group(64, *[write(0, 0, noise[at]) for at in range(10)])
    put_segment(repository, STREAM, 0, first, second)
    point = sealed(repository, point, second)
    put_segment(repository, STREAM, 1, third)
    point = sealed(repository, point, third)
    found = amplification(repository, VM, 0)
    assert (found.written, found.different, found.points) == (70 * 4096, 41 * 4096, 2)
    assert found.sealed == stored(repository, "packs/", "twins/packs/") - before
    # Without the headers, of 192 bytes each, and what the marks take.
    assert found.journal == pytest.approx(stored(repository, "journals/") - 2 * 192, abs=200)
    assert found.of_journal == pytest.approx(1.0, abs=0.03), "noise"
    assert found.of_sealed is not None
    assert 0.9 < found.of_sealed < 1.6


def test_zeroes_flatter_nobody(repository: Repository) -> None:
    point = sealed(repository, None, group(0, *OPENED, *COMPLETE))
    zeroes = decode_group(encode_group(4, 4000, [(ZERO, 0, 0, SIZE, 0), (ZERO, 1, 0, SIZE, 1)], [], 1))
    sealed(repository, point, zeroes, group(6, write(0, 5, b"x" * 1000)))
    found = amplification(repository, VM, 0)
    assert (found.written, found.different) == (1000, 1000)
    day = activity(repository, VM, 0, DAY)
    assert (day.size, day.data) == (2 * SIZE + 1000, 1000)
    assert day.compressed < 100


def test_minutes_of_an_older_program_do_not_count(repository: Repository) -> None:
    add_minutes(repository.documents, VM.vm, STREAM, {7: DayOfMinutes({"vda": {5: Row(1, 10, 1, 3)}})})
    assert amplification(repository, VM, 0) == Amplification()
    assert amplification(repository, VM, 0).of_journal is amplification(repository, VM, 0).of_sealed is None
    assert activity(repository, VM, 7 * DAY, 8 * DAY).size == 10


def test_of_whole_days_and_of_several_vms(repository: Repository) -> None:
    for number in (7, 8, 9):
        rows = {3: Row(writes=2, size=100, zeroes=40, journal=30, median=number, worst=number * 10)}
        day = DayOfMinutes({"vda": rows}, points={3: PointRow(1, 50, 75)})
        add_minutes(repository.documents, VM.vm, STREAM, {number: day})
    found = amplification(repository, VM, 8 * DAY + 5 * MINUTE)
    assert found == Amplification(written=120, journal=60, different=100, sealed=150, points=2)
    assert (found.of_journal, found.of_sealed) == (0.5, 1.5)
    assert together([found, Amplification(), found]) == Amplification(240, 120, 200, 300, 4)
    assert together([]) == Amplification()
    both = activity(repository, VM, 8 * DAY, 10 * DAY)
    assert (both.median_ns, both.worst_ns) == (8, 90)
