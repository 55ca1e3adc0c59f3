# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is kept of minutes for years: gc makes hours and days of them, verify names what cannot be read, repair removes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from everywhen.repository.gc import minutes as thinning
from everywhen.repository.minutes import PER_DAY, PREFIX, DayOfMinutes, PointRow, Row, add_minutes, kept_minutes
from everywhen.repository.repository import Repository
from everywhen.repository.verify.findings import Verdict
from everywhen.repository.verify.repair import repair
from everywhen.repository.verify.verify import Watching, judging
from everywhen.storage.base import Buffer, ObjectStore, OutOfSpace
from everywhen.storage.forwarding import ForwardingStore
from everywhen.storage.memory import MemoryStore
from everywhen.storage.metered import MeteredStore
from tests.laboratory import World

VM, OTHER, STREAM = "f" * 32, "e" * 32, "ab" * 16
TODAY = 20_000
WATCHING = Watching(lambda *_: None, lambda *_: None)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.clock.advance(TODAY * 86_400 - made.clock() // 10**9 + 3600)
    return made


@pytest.fixture
def store() -> MeteredStore:
    return MeteredStore(MemoryStore())


@pytest.fixture
def repository(world: World, store: MeteredStore) -> Iterator[Repository]:
    with world.open(store, world.create(store, encrypted=True)) as opened:
        yield opened


def day() -> DayOfMinutes:
    rows = {minute: Row(1, 10, 1, 3, worst=minute) for minute in (0, 59, 60, PER_DAY - 1)}
    return DayOfMinutes({"vda": rows}, [(1, 2)], {7: PointRow(1, 2, 3)})


def kept(repository: Repository, vm: str = VM) -> dict[int, tuple[int, int]]:
    """How many rows a day has, and its writes."""
    return {
        number: (len(one.disks["vda"]), sum(row.writes for row in one.disks["vda"].values()))
        for number, one in kept_minutes(repository.documents, vm)
    }


def test_minutes_become_hours_and_hours_days(world: World, repository: Repository, store: MeteredStore) -> None:
    ages = (0, 89, 90, 91, 730, 731)
    add_minutes(repository.documents, VM, STREAM, {TODAY - age: day() for age in ages})
    assert world.collect(repository, dry_run=True).days_thinned == 3
    assert {rows for rows, _ in kept(repository).values()} == {4}
    assert world.collect(repository).days_thinned == 3
    rows = {0: 4, 89: 4, 90: 4, 91: 3, 730: 3, 731: 1}
    assert kept(repository) == {TODAY - age: (rows[age], 4) for age in ages}, "nothing but the minute is lost"
    (oldest,) = (one for number, one in kept_minutes(repository.documents, VM) if number == TODAY - 731)
    assert oldest == DayOfMinutes({"vda": {0: Row(4, 40, 4, 12, worst=PER_DAY - 1)}}, [(1, 2)], {0: PointRow(1, 2, 3)}, PER_DAY)
    before = store.operations["put"]
    assert thinning.thin_minutes(repository, dry_run=False) == 0
    assert store.operations["put"] == before, "nothing is written when nothing is due"
    world.clock.advance(86_400)
    add_minutes(repository.documents, VM, STREAM, {TODAY + 1: day()})
    read = store.operations["get"]
    assert world.collect(repository).days_thinned == 2
    rows |= {-1: 4, 90: 3, 730: 1}
    assert kept(repository) == {TODAY - age: (count, 4) for age, count in rows.items()}
    assert store.operations["get"] - read < 20


def test_a_vm_that_was_not_captured_lately_and_a_clock_that_runs_ahead_lose_no_minutes(
    world: World, repository: Repository
) -> None:
    add_minutes(repository.documents, VM, STREAM, {TODAY - 50: day()})
    add_minutes(repository.documents, OTHER, STREAM, {TODAY + 9000: day(), TODAY: day()})
    assert world.collect(repository).days_thinned == 0, "a capture's clock ran ahead"
    world.clock.advance(1000 * 86_400)
    assert world.collect(repository).days_thinned == 1, "the other VM's minutes say that so much time has passed"
    assert kept(repository) == {TODAY - 50: (4, 4)}
    assert kept(repository, OTHER)[TODAY] == (1, 4)


class Full(ForwardingStore):
    """No room for minutes after so many of them."""

    left = 1 << 30

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        if name.startswith(PREFIX):
            if not self.left:
                raise OutOfSpace(name, "full")
            self.left -= 1
        self.inner.put(name, parts, if_absent=if_absent)


def opened(world: World, store: ObjectStore) -> Repository:
    return world.open(store, world.create(store, encrypted=False))


def test_on_a_full_medium_gc_ends_and_the_next_one_goes_on(world: World) -> None:
    store = Full(MemoryStore())
    with opened(world, store) as repository:
        add_minutes(repository.documents, VM, STREAM, {TODAY: day(), **{TODAY - age: day() for age in (100, 101, 102)}})
        store.left = 2
        assert world.collect(repository).days_thinned == 2
        store.left = 1 << 30
        assert world.collect(repository).days_thinned == 1
        assert [rows for rows, _ in kept(repository).values()] == [3, 3, 3, 4]


def verdict(repository: Repository) -> Verdict:
    with judging(repository, WATCHING, read_data=False) as judgement:
        return judgement.verdict


@pytest.mark.parametrize("how", ["flipped", "of another day", "of no sense"])
def test_verify_names_what_cannot_be_read_and_repair_removes_it(repository: Repository, store: MeteredStore, how: str) -> None:
    add_minutes(repository.documents, VM, STREAM, {TODAY: day(), TODAY - 1: day()})
    assert verdict(repository).findings == []
    name, other = (f"{PREFIX}{VM}/{TODAY - age}-{STREAM}" for age in (0, 1))
    if how == "of no sense":
        repository.documents.put(name, day().to_json() | {"per": 7})
    else:
        data = bytearray(store.get(other if how == "of another day" else name))
        data[-1] ^= how == "flipped"
        store.put(name, [bytes(data)])
    (found,) = verdict(repository).findings
    assert (found.object, found.invariant, found.losses, found.stands) == (name, "4.10.6", [], True)
    assert "What was written on 2024-10-04" in found.why
    with judging(repository, WATCHING, read_data=False) as judgement:
        repair(repository, judgement, [], lambda *_: None)
        assert not judgement.verdict.damaged
    assert verdict(repository).findings == []
    assert list(kept(repository)) == [TODAY - 1]


def test_repair_does_not_remove_what_a_capture_has_written_anew(repository: Repository, store: MeteredStore) -> None:
    add_minutes(repository.documents, VM, STREAM, {TODAY: day()})
    store.put(f"{PREFIX}{VM}/{TODAY}-{STREAM}", [b"nonsense"])
    with judging(repository, WATCHING, read_data=False) as judgement:
        add_minutes(repository.documents, VM, STREAM, {TODAY: day()})
        repair(repository, judgement, [], lambda *_: None)
        assert not judgement.verdict.damaged
    assert list(kept(repository)) == [TODAY]


def test_what_is_no_day_is_nobodys_damage(repository: Repository, store: MeteredStore) -> None:
    for name in ("thinned", "notes-of-mine", "7"):
        store.put(f"{PREFIX}{VM}/{name}", [b"nonsense"])
    assert verdict(repository).findings == []
    assert kept(repository) == {}
