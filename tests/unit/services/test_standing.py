# SPDX-License-Identifier: AGPL-3.0-or-later
"""What status finds, and what --check answers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from everywhen.formats.ids import PackId
from everywhen.repository import damage
from everywhen.repository.ledger import Ledger, Vm
from everywhen.repository.presence import Holder, Presence
from everywhen.services.ages import DAY, HOUR, MINUTE
from everywhen.services.failures import Exit
from everywhen.services.keep import holding
from everywhen.services.keep.pruning import drop
from everywhen.services.protect.capture_states import work_of
from everywhen.services.protect.captured import FAILED, KILLED, Captured
from everywhen.services.standing import MAX_AGE, State, state
from everywhen.storage.base import Space
from everywhen.storage.posix import PosixStore
from tests.keep_samples import World, noise


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(PosixStore, "space", lambda _: Space(1000, 500))
    made = World(tmp_path)
    yield made
    made.close()


def look(world: World, captures: Mapping[str, Captured] = MappingProxyType({}), **options: int) -> State:
    catalog = world.catalog()
    return state(world.repository, catalog, world.policies(), catalog.vms, captures, **options)


def test_an_empty_repository_is_all_right(world: World) -> None:
    found = look(world)
    assert (found.vms, found.needs, found.check) == ([], [], Exit.DONE)


def test_a_vm_is_protected_while_its_newest_moment_is_young(world: World) -> None:
    world.backup("web1", [b"a"])
    world.now += MAX_AGE
    assert look(world).check is Exit.DONE
    world.now += 1
    found = look(world)
    assert found.check is Exit.FAILED
    assert found.vms[0].needs == ["its newest moment is 1 d old, more than 1 d 2 h"]
    assert look(world, max_age_ns=2 * DAY).check is Exit.DONE


def test_one_vm_that_is_not_protected_is_enough(world: World) -> None:
    world.backup("web1", [b"a"])
    world.now += MAX_AGE + 1
    world.backup("web2", [b"b"])
    found = look(world)
    assert [vm.protected for vm in found.vms] == [False, True]
    assert found.check is Exit.FAILED


def test_a_vm_without_moments_is_not_protected(world: World) -> None:
    Ledger(world.repository.documents).put_vm(Vm("0" * 32, "new3", "new3", "", "", world.now))
    assert look(world).check is Exit.FAILED


def test_figures_of_a_vm(world: World) -> None:
    points = []
    for number in range(5):
        points.append(world.backup("web1", [bytes([number])]))
        world.now += HOUR
    drop(world.repository, points[:1], "test")
    holding.hold(world.repository, world.catalog().points[0], "audit", 0)
    [vm] = look(world).vms
    assert vm.newest is not None
    assert vm.oldest is not None
    assert (vm.newest.point, vm.oldest.point, vm.points, vm.dropped) == (points[4], points[1], 4, 1)
    assert [hold.reason for hold in vm.held] == ["audit"]
    assert vm.back_until_ns == world.now + 72 * HOUR
    assert (vm.needs, look(world).check) == ([], Exit.DONE)
    drop(world.repository, points[2:3], "more than a third in all")
    found = look(world)
    assert found.vms[0].needs == ["2 of its 5 moments were dropped: everywhen prune --undo web1"]
    assert found.check is Exit.LESS_THAN_ASKED


def test_a_clock_that_runs_behind_is_named(world: World) -> None:
    world.backup("web1", [b"a"])
    world.now -= DAY + MINUTE
    assert "is the clock right?" in look(world).vms[0].needs[0]


def test_who_is_at_work(world: World) -> None:
    began = world.now
    for name, refreshed in (("sessions/p-000000000001", began), ("leases/x", began + HOUR)):
        who = Holder("kvm9", "boot", 812, "ann")
        presence = Presence(name, who, "backup web1", ["p-000000000001"], began, refreshed)
        world.repository.documents.put(name, presence.to_json())
    world.now += HOUR
    found = look(world)
    assert [(work.alive, work.silent_ns) for work in (*found.sessions, *found.leases)] == [(False, HOUR), (True, 0)]
    assert found.needs == ["1 unfinished, silent for 1 h: run the backup again, or everywhen gc clears it"]
    assert found.check is Exit.LESS_THAN_ASKED


def test_a_session_whose_point_is_there_is_no_work(world: World) -> None:
    """A crash between the commit and the end of the session leaves such a one until the next gc."""
    kept, dropped = world.backup("web1", [b"a"]), world.backup("web1", [b"b"])
    drop(world.repository, [dropped], "test")
    open_ = "p-000000000001"
    for point in (kept, dropped, open_):
        who = Holder("kvm9", "boot", 812, "ann")
        presence = Presence(f"sessions/{point}", who, "backup web1", [point], world.now, world.now)
        world.repository.documents.put(presence.name, presence.to_json())
    world.now += HOUR
    found = look(world)
    assert [work.presence.points for work in found.sessions] == [[open_]]
    assert found.needs == ["1 unfinished, silent for 1 h: run the backup again, or everywhen gc clears it"]
    world.repository.documents.delete(f"sessions/{open_}")
    assert look(world).needs == []


@pytest.mark.parametrize(("goes_on", "needed"), [("following", False), ("detached", False), (KILLED, True), (FAILED, True)])
def test_what_a_capture_lost_and_begins_again_needs_nobody(world: World, goes_on: str, *, needed: bool) -> None:
    """A watchdog on a busy host that takes a sink away while a gap is closed leaves a session until the next gc."""
    world.backup("web1", [b"a"])
    who = Holder("kvm9", "boot", 812, "ann")
    presence = Presence("sessions/p-000000000001", who, work_of("web1"), ["p-000000000001"], world.now, world.now)
    world.repository.documents.put(presence.name, presence.to_json())
    world.now += HOUR
    found = look(world, {"web1": Captured(goes_on, world.now, "the sink ended")})
    assert any("unfinished" in need for need in found.needs) == needed
    assert any("unfinished" in need for need in look(world).needs), "nobody captures it here"


def test_damage_unreadable_moments_and_little_room_need_somebody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.backup("web1", [noise()])
    second = world.backup("web1", [noise()])
    damage.record(world.repository.documents, damage.PackDamage(PackId(os.urandom(16)), {12: "checksum"}, world.now))
    for name in (f"points/{second}", f"twins/points/{second}"):
        world.store.put(name, [b"nonsense"])
    world.repository.close()
    (world.repository.cache / "points.sqlite").unlink()
    world.open()
    monkeypatch.setattr(PosixStore, "space", lambda _: Space(1000, 49))
    found = look(world)
    assert len(found.unreadable) == 1
    assert found.needs == [
        "only 4.9 % of the medium is free: everywhen policy preview --free 50GB",
        "1 moments or records cannot be read: everywhen verify",
        "damage was found in 1 packs: everywhen verify",
    ]
