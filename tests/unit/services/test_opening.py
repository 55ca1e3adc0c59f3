# SPDX-License-Identifier: AGPL-3.0-or-later
"""The moment that an address means, where the journal is not in the repository to its end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

import pytest

from everywhen.block.patched import Patches
from everywhen.formats.point import Disk, RecoveryPoint, RolledBack, Tree
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.repository.writer import parent_link, write_point
from everywhen.services.addresses import parse_address
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import Failure, NotFound
from everywhen.services.identities import record
from everywhen.services.opening import open_moment
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.replay import Replay
from everywhen.services.view.blocks import Blocks
from everywhen.services.view.disk import MomentDisk
from everywhen.services.whens import Found
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World
from tests.records import COMPLETE, OPENED, group, put_segment, write

STREAM = "ab" * 16
VM = Vm("f" * 32, "web1", "web1", "", "", 0)
GROUPS = [
    group(0, *OPENED, *COMPLETE),
    group(4, *(write(0, 0, bytes([number])) for number in range(4, 7))),
    group(7, *(write(0, 0, bytes([number])) for number in range(7, 10))),
]
"""Written at 0, 4000, 4001, 4002, 7000, 7001 and 7002 ns."""


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """Points after records 4 and 10; of the journal between them the second half is not shipped."""
    world, store = World(tmp_path), MemoryStore()
    with world.open(store, world.create(store, encrypted=False)) as opened:
        record(opened, VM)
        with write_point(opened, "test", first_copy=True) as writer:
            disks = [SealedDisk("vda", 65536, Tree(65536, None)), SealedDisk("vdb", 65536, Tree(65536, None))]
            sealer = Sealer(opened, writer, disks, Replay([Patches(), Patches()], 0, following=False))
            sealer.feed(GROUPS[0])
            first = sealer.commit(None, Origin(VM.vm, 1, STREAM, {}), 0)
        assert first.journal is not None
        with write_point(opened, "test", first_copy=False) as writer:
            sealer = Sealer.after(opened, writer, first, first.journal)
            for one in GROUPS[1:]:
                sealer.feed(one)
            sealer.commit(first, Origin(VM.vm, 1, STREAM, {}), 0)
        put_segment(opened, STREAM, 0, *GROUPS[:2])
        yield opened


def found(repository: Repository, when: str, vm: str = "web1") -> Found:
    address = parse_address(f"{vm}@{when}")
    _, opened = open_moment(repository, read_catalog(repository), address, now_ns=1 << 61, zone=UTC, exact=False)
    return opened.found


def test_a_moment_in_what_is_not_shipped_is_not_said_to_be_it(repository: Repository) -> None:
    when = "1970-01-01T00:00:00.000007001Z"
    before = found(repository, when)
    assert (before.sequence, before.exact) == (7, False)
    put_segment(repository, STREAM, 1, GROUPS[2])
    after = found(repository, when)
    assert (after.sequence, after.exact) == (9, True)


def test_writes_are_not_counted_back_over_what_is_not_shipped(repository: Repository) -> None:
    with pytest.raises(Failure):
        found(repository, "latest~1")
    put_segment(repository, STREAM, 1, GROUPS[2])
    assert found(repository, "latest~1").sequence == 9


def backed_up(repository: Repository, parent: RecoveryPoint, at_ns: int) -> RecoveryPoint:
    """A backup of images beside the capture, made at that time."""
    with write_point(repository, "backup", first_copy=False) as writer:
        tree = writer.take_file(b"image" + bytes(65531))
        disks = {name: Disk(tree, "raw", 0, 0, 0) for name in ("vda", "vdb")}
        link = parent_link(repository, parent)
        point = RecoveryPoint(
            writer.point, VM.vm, at_ns, parent.number + 1, parent.epoch, link, "crash", "none", "read while written to", disks
        )
        writer.commit(point)
    return point


def test_a_backup_beside_a_capture_hides_none_of_its_moments(repository: Repository) -> None:
    put_segment(repository, STREAM, 1, GROUPS[2])
    first, last = repository.points.list()[0]
    beside = backed_up(repository, first, 4001)
    assert found(repository, "1970-01-01T00:00:00.000004001Z").moment.id == beside.point
    assert found(repository, "1970-01-01T00:00:00.000004002Z").sequence == 7
    assert found(repository, "1970-01-01T00:00:00.000007001Z").sequence == 9
    assert found(repository, beside.point).moment.id == beside.point
    newest = backed_up(repository, last, 8000)
    assert found(repository, "latest").moment.id == newest.point
    put_segment(repository, STREAM, 2, group(10, write(0, 0, b"later")))
    later = found(repository, "latest")
    assert (later.moment.id, later.sequence, later.exact) == (last.point, 11, True)
    assert found(repository, "1970-01-01T00:00:00.000009000Z").moment.id == newest.point
    assert found(repository, "latest~2").sequence == 9


def test_no_time_leads_to_another_branch(repository: Repository) -> None:
    put_segment(repository, STREAM, 1, GROUPS[2])
    first, last = repository.points.list()[0]
    with write_point(repository, "test", first_copy=True) as writer:
        disks = [SealedDisk("vda", 65536, Tree(65536, None)), SealedDisk("vdb", 65536, Tree(65536, None))]
        sealer = Sealer(repository, writer, disks, Replay([Patches(), Patches()], 0, following=False))
        sealer.feed(group(0, *OPENED, *COMPLETE))
        other = sealer.commit(first, Origin(VM.vm, 2, "cd" * 16, {}), 0)
    assert other.time_ns < last.time_ns
    assert found(repository, "latest").moment.id == other.point
    assert found(repository, last.point).moment.id == last.point


def test_what_a_rollback_left_has_a_name(repository: Repository) -> None:
    for number, groups in enumerate((GROUPS[2:3], [group(10, write(0, 0, b"left"))]), start=1):
        put_segment(repository, STREAM, number, *groups)
    first, last = repository.points.list()[0]
    present = backed_up(repository, last, 20_000)
    with write_point(repository, "rollback", first_copy=False) as writer:
        back = RolledBack(first.point, first.time_ns, 1)
        link = parent_link(repository, present)
        disks = first.disks
        point = RecoveryPoint(
            writer.point, VM.vm, 30_000, present.number + 1, 1, link, "crash", "crash", "", disks, rolled_back=back
        )
        writer.commit(point)
    later = backed_up(repository, point, 40_000)
    assert found(repository, "latest").moment.id == later.point
    assert found(repository, "latest", "web1~1").moment.id == present.point
    for when in ("1970-01-01T00:00:00.000007001Z", first.point, "1970-01-01T00:00:00.000015Z"):
        assert found(repository, when, "web1~1") == found(repository, when), "times lead to what lived then, with and without"
    assert found(repository, "1970-01-01T00:00:00.000035Z").moment.id == point.point
    assert found(repository, "1970-01-01T00:00:00.000035Z", "web1~1").moment.id == present.point
    for wrong in ("web1~2@latest", f"web1~1@{point.point}", f"web1~1@{later.point}"):
        with pytest.raises(NotFound):
            found(repository, wrong.partition("@")[2], wrong.partition("@")[0])


def test_much_that_is_laid_over_a_point_is_put_aside(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everywhen.services.opening._MEMORY", 100_000)
    chance = random.Random(4)
    content = bytearray([9]).ljust(65536, b"\0")
    groups = []
    for number in range(100):
        offset, data = chance.randrange(60_000), chance.randbytes(chance.choice([512, 4096]))
        content[offset : offset + len(data)] = data
        groups.append(group(10 + 2 * number, write(0, offset, data), write(1, 0, chance.randbytes(65536))))
    put_segment(repository, STREAM, 1, GROUPS[2], *groups)
    address = parse_address("web1@latest")
    _, opened = open_moment(repository, read_catalog(repository), address, now_ns=1 << 61, zone=UTC, exact=False)
    assert opened.found.writes_after == 200
    assert sum(one.memory for one in opened.patches.values()) <= 100_000
    blocks = Blocks(repository.fetcher)
    disk = MomentDisk(repository.used_ranges, blocks, opened.point.disks["vda"].tree, opened.patches["vda"])
    assert disk.read(0, 65536) == content
    blocks.close()


def test_which_moment_it_is_can_be_told_without_its_contents(repository: Repository) -> None:
    put_segment(repository, STREAM, 1, GROUPS[2], group(10, write(0, 0, b"later")))
    catalog, blocks = read_catalog(repository), Blocks(repository.fetcher)
    for when in ("latest", "latest~1", "latest~3", "1970-01-01T00:00:00.000007001Z"):
        address = parse_address(f"web1@{when}")
        _, whole = open_moment(repository, catalog, address, now_ns=1 << 61, zone=UTC, exact=False)
        _, told = open_moment(repository, catalog, address, now_ns=1 << 61, zone=UTC, exact=False, contents=False)
        assert (told.label, told.found) == (whole.label, whole.found)
        for patches in told.patches.values():
            with pytest.raises(TypeError, match="without its contents"):
                MomentDisk(repository.used_ranges, blocks, whole.point.disks["vda"].tree, patches)
    blocks.close()
