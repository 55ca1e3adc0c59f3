# SPDX-License-Identifier: AGPL-3.0-or-later
"""The instant at which a group can be opened, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest

from everywhen.block.patched import Patches
from everywhen.formats.point import Gap, RecoveryPoint, Tree
from everywhen.formats.segment import Group, decode_group, encode_group
from everywhen.repository.ledger import Ledger, Vm
from everywhen.repository.repository import Repository
from everywhen.repository.writer import write_point
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import Failure, NotFound, WrongUsage
from everywhen.services.groups import GroupMoment, find_instant, members, parse_group, points_at
from everywhen.services.identities import put_into_group, record
from everywhen.services.opening import open_at
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.replay import Replay
from everywhen.services.whens import parse_when
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World
from tests.records import COMPLETE, OPENED, Made, mark, put_segment, write

SIZE = 65536


def records(first: int, *made: tuple[int, Made]) -> Group:
    """Records at these times."""
    rows = [(kind, disk, offset, len(data), at - made[0][0]) for at, (kind, disk, offset, data) in made]
    return decode_group(encode_group(first, made[0][0], rows, [data for _, (*_, data) in made], 1))


def began(at: int) -> Group:
    return records(0, *((at, one) for one in (*OPENED, *COMPLETE)))


def witness(first: int, at: int) -> Group:
    return records(first, (at, mark(0, "instant")))


class Captured:
    """A VM, its journal and its points, as a capture makes them."""

    def __init__(self, repository: Repository, name: str, clock: str | None = "c" * 32) -> None:
        self.repository = repository
        self.vm = Vm(name.encode().hex().ljust(32, "0"), name, name, "", "", 0, "erp")
        record(repository, self.vm)
        self._clock = clock
        self._parent: RecoveryPoint | None = None
        self._streams = 0

    def stream(self, *groups: Group, points: tuple[tuple[int, str | None], ...] = (), gap: Gap | None = None) -> None:
        """A stretch of capture: the first group makes its first point, `points` are made at later instants, with marks."""
        self._streams += 1
        stream = f"{self.vm.vm[:30]}{self._streams:02x}"
        put_segment(self.repository, stream, 0, *groups)
        with write_point(self.repository, "test", first_copy=True) as writer:
            disks = [SealedDisk(name, SIZE, Tree(SIZE, None)) for name in ("vda", "vdb")]
            sealer = Sealer(self.repository, writer, disks, Replay([Patches(), Patches()], 0, following=False))
            sealer.feed(groups[0])
            origin = Origin(self.vm.vm, self._streams, stream, {}, gap=gap, clock=self._clock)
            self._parent = sealer.commit(self._parent, origin, 0)
        for at_ns, text in points:
            assert self._parent.journal is not None
            with write_point(self.repository, "test", first_copy=False) as writer:
                sealer = Sealer.after(self.repository, writer, self._parent, self._parent.journal)
                for one in groups:
                    sealer.feed(one, until_ns=at_ns)
                sealer.instant_ns = at_ns
                began_ns = self._parent.journal.began_ns
                self._parent = sealer.commit(self._parent, replace(origin, began_ns=began_ns), 0, text)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    world, store = World(tmp_path), MemoryStore()
    with world.open(store, world.create(store, encrypted=False)) as opened:
        yield opened


def found(repository: Repository, when: str, now_ns: int = 5000) -> GroupMoment:
    asked = parse_when(when, now_ns=now_ns, zone=UTC)
    return find_instant(repository, read_catalog(repository), "erp", asked, now_ns=now_ns, zone=UTC)


def time(ns: int) -> str:
    return f"1970-01-01T00:00:00.{ns:09d}Z"


def test_what_names_a_group() -> None:
    assert parse_group("web1@latest") is None
    assert parse_group("group:erp") == ("erp", "latest")
    assert parse_group('group:erp@"before: update @ noon"') == ("erp", '"before: update @ noon"')
    for text in ("group:", "group:ERP", "group:erp@", "group:erp/vda", "group:erp:/etc/passwd", "group:a b"):
        with pytest.raises(WrongUsage):
            parse_group(text)


def test_any_time_within_both_journals(repository: Repository) -> None:
    one, other = Captured(repository, "web1"), Captured(repository, "web2")
    one.stream(began(1000), records(4, (2000, write(0, 0, b"1")), (2400, write(0, 0, b"3"))), witness(6, 4000))
    other.stream(began(1001), records(4, (2200, write(0, 0, b"2"))), witness(5, 4010))
    for at, expected in ((1999, (0, 0)), (2000, (1, 0)), (2399, (1, 1)), (2400, (2, 1)), (3999, (2, 1))):
        moment = found(repository, time(at))
        assert (moment.time_ns, moment.in_order, moment.held_back) == (at, True, [])
        catalog = read_catalog(repository)
        opened = [open_at(repository, catalog, vm, at, zone=UTC) for vm in moment.vms]
        assert tuple(moment.found.writes_after for moment in opened) == expected
    assert found(repository, "latest").time_ns == 4000, "the second one stood at that time, as its mark shows"
    with pytest.raises(NotFound, match="web2 has no moment before"):
        found(repository, time(1000))


def test_one_without_later_moments_holds_its_group_back(repository: Repository) -> None:
    hour = 3600 * 10**9
    one, other = Captured(repository, "web1"), Captured(repository, "web2")
    one.stream(began(1000), witness(4, 4000 + hour))
    other.stream(began(1000), records(4, (2200, write(0, 0, b"2"))))
    moment = found(repository, "latest", 5000 + hour)
    assert (moment.time_ns, moment.held_back) == (2200, ["web2"])
    assert "of web2 nothing later is known" in moment.words(UTC)
    assert found(repository, "-1h", 5000 + hour).held_back == [], "that is what was asked for, almost"


def test_no_instant_within_a_gap_of_one_of_them(repository: Repository) -> None:
    one, other = Captured(repository, "web1"), Captured(repository, "web2")
    one.stream(began(1000), witness(4, 9000))
    other.stream(began(1000), records(4, (2000, write(0, 0, b"2")), (2600, mark(1, "tap closed"))))
    other.stream(began(4000), witness(4, 9000), gap=Gap(2300, "the sink ended"))
    assert [found(repository, time(at)).time_ns for at in (2100, 2400, 3999, 4000, 8000)] == [2100, 2300, 2300, 4000, 8000]


def test_a_point_within_a_gap_can_be_opened_itself(repository: Repository) -> None:
    one, other = Captured(repository, "web1"), Captured(repository, "web2", None)
    one.stream(began(1000), witness(4, 9000))
    other.stream(began(1000), points=((3000, "by hand"),))
    other.stream(began(5000), witness(4, 9000), gap=Gap(2000, "the sink ended"))
    assert (found(repository, '"by hand"').time_ns, found(repository, time(3500)).time_ns) == (3000, 1000)


def test_times_of_two_clocks_are_called_that(repository: Repository) -> None:
    Captured(repository, "web1").stream(began(1000), witness(4, 4000))
    other = Captured(repository, "web2", "d" * 32)
    other.stream(began(1000), witness(4, 4000))
    moment = found(repository, time(3000))
    assert (moment.time_ns, moment.in_order) == (3000, False)
    assert "the same clock time, not in write order" in moment.words(UTC)


@pytest.mark.parametrize("clock", [None, "c" * 32])
def test_no_clock_is_no_common_clock(repository: Repository, clock: str | None) -> None:
    for name in ("web1", "web2"):
        Captured(repository, name, clock).stream(began(1000), witness(4, 4000))
    assert found(repository, time(3000)).in_order is (clock is not None)


def test_marks_and_points(repository: Repository) -> None:
    one, other = Captured(repository, "web1"), Captured(repository, "web2")
    one.stream(began(1000), witness(4, 9000), points=((3000, "before"), (5000, "alone"), (6000, "twice")))
    other.stream(began(1000), witness(4, 4500), points=((3000, "before"), (4000, "twice")))
    assert found(repository, '"before"').time_ns == 3000
    catalog = read_catalog(repository)
    there = points_at(catalog, members(catalog, "erp"))
    assert {at: sorted(points) for at, points in there.items() if at > 1000} == {3000: ["web1", "web2"]}
    assert found(repository, there[3000]["web2"].point).time_ns == 3000
    with pytest.raises(WrongUsage, match="fits 2 instants"):
        found(repository, '"twice"')
    with pytest.raises(NotFound, match="can be opened at exactly"):
        found(repository, '"alone"')
    with pytest.raises(NotFound, match='No VM of group erp has "never"'):
        found(repository, '"never"')
    with pytest.raises(WrongUsage, match="single writes"):
        found(repository, "latest~1")


def test_who_is_in_a_group(repository: Repository) -> None:
    vms = [Captured(repository, name).vm for name in ("web1", "web2", "web3")]
    assert put_into_group(repository, vms[1], "").group == ""
    assert put_into_group(repository, vms[2], "crm").group == "crm"
    Ledger(repository.documents).put_vm(replace(vms[0], policy="last 3"))
    put_into_group(repository, vms[0], "erp2")
    catalog = read_catalog(repository)
    assert [(vm.name, vm.group, vm.policy) for vm in catalog.vms] == [
        ("web1", "erp2", "last 3"),
        ("web2", "", ""),
        ("web3", "crm", ""),
    ]
    assert [vm.name for vm in members(catalog, "crm")] == ["web3"]
    with pytest.raises(Failure, match=r'No VM is in a group "erp".* Close: erp2'):
        members(catalog, "erp")


def test_a_vm_without_a_group_reads_as_before() -> None:
    document = Vm("f" * 32, "web1", "web1", "", "", 0).to_json()
    del document["group"]
    assert Vm.from_json("f" * 32, document).group == ""
