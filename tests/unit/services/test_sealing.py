# SPDX-License-Identifier: AGPL-3.0-or-later
"""What records make of disks, and which of the states between them are moments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import canonical_json
from everywhen.formats.spool import MARK, WRITE, ZERO, Group, decode_group, encode_group
from everywhen.repository.disk import PointDisk
from everywhen.repository.repository import Repository
from everywhen.repository.writer import write_point
from everywhen.services.sealing import SealedDisk, Sealer
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World

SIZE = 4 * BLOCK_SIZE
Made = tuple[int, int, int, bytes]


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    world, store = World(tmp_path), MemoryStore()
    with world.open(store, world.create(store, encrypted=False)) as opened:
        yield opened


@pytest.fixture
def sealer(repository: Repository) -> Sealer:
    return Sealer(repository, "a" * 32, [SealedDisk("vda", SIZE, None), SealedDisk("vdb", SIZE, None)], 1)


def mark(disk: int, what: str) -> Made:
    return MARK, disk, 0, canonical_json({"mark": what})


def write(disk: int, offset: int, content: bytes) -> Made:
    return WRITE, disk, offset, content


def group(first: int, *records: Made) -> Group:
    rows = [(kind, disk, offset, len(data), at) for at, (kind, disk, offset, data) in enumerate(records)]
    return decode_group(encode_group(first, 1000 * first, rows, [data for *_, data in records], 1))


OPENED = (mark(0, "tap opened"), mark(1, "tap opened"))
COMPLETE = (mark(0, "complete"), mark(1, "complete"))


def test_only_what_is_whole_on_all_disks_is_a_moment(sealer: Sealer) -> None:
    for number, made in enumerate((*OPENED, COMPLETE[0])):
        sealer.feed(group(number, made))
        assert not sealer.is_moment
    sealer.feed(group(3, COMPLETE[1]))
    assert sealer.is_moment


def test_a_copy_that_ends_after_its_tap_completes_nothing(sealer: Sealer) -> None:
    sealer.feed(group(0, *OPENED, mark(0, "tap closed"), *COMPLETE))
    assert not sealer.is_moment
    assert not sealer.ended


def test_nothing_is_fed_beyond_the_end_of_a_tap(sealer: Sealer) -> None:
    sealer.feed(group(0, *OPENED, *COMPLETE, write(0, 0, b"before"), mark(1, "tap closed"), write(0, 0, b"behind")))
    sealer.feed(group(7, write(0, 0, b"later")))
    assert sealer.ended
    assert sealer.is_moment
    assert (sealer.sequence, sealer.records) == (5, 1)
    assert sealer.disks[0].patches.over(0, bytes(10)) == b"before\0\0\0\0"


def test_a_group_may_be_fed_in_parts_and_again(sealer: Sealer) -> None:
    records = (*OPENED, *COMPLETE, write(0, 0, b"a"), write(1, 1, b"b"), write(0, 1, b"c"))
    for until in (2, 5, 5, 6, None):
        sealer.feed(group(0, *records), until)
    assert (sealer.sequence, sealer.records) == (7, 3)
    assert sealer.disks[0].patches.over(0, bytes(3)) == b"ac\0"
    assert sealer.time_ns == 6


def test_a_record_of_a_disk_that_is_not_there(sealer: Sealer) -> None:
    with pytest.raises(Corrupt, match="disk 2"):
        sealer.feed(group(0, write(2, 0, b"x")))


def failing(repository: Repository, sealer: Sealer) -> None:
    """A point that is not committed."""
    with write_point(repository, "test", first_copy=True) as writer, sealer.attempt():
        sealer.take_in(writer)
        raise RuntimeError("no room")


def test_a_point_holds_what_was_written_and_a_failed_one_loses_nothing(repository: Repository, sealer: Sealer) -> None:
    zeroed = encode_group(6, 0, [(ZERO, 0, 3 * BLOCK_SIZE, BLOCK_SIZE, 0)], [], 1)
    sealer.feed(group(0, *OPENED, *COMPLETE, write(0, 3 * BLOCK_SIZE, b"x" * BLOCK_SIZE), write(1, 70_000, b"second")))
    sealer.feed(decode_group(zeroed))
    with pytest.raises(RuntimeError, match="no room"):
        failing(repository, sealer)
    assert sealer.records == 3
    with write_point(repository, "test", first_copy=True) as writer, sealer.attempt():
        sealer.take_in(writer)
        point = sealer.point(writer, None, 0.5)
        writer.commit(point)
    assert (sealer.records, len(sealer.disks[0].patches)) == (0, 0)
    content = {name: PointDisk(repository.fetcher, disk.tree).read(0, SIZE) for name, disk in point.disks.items()}
    assert content == {"vda": bytes(SIZE), "vdb": (bytes(70_000) + b"second").ljust(SIZE, b"\0")}
    assert (point.reached, point.number, point.epoch) == ("crash", 1, 1)
