# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who counts as still being there: by time, by process on this host, never by guessing about another one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from everywhen.repository.presence import (
    LEASE_EXPIRY,
    SECOND,
    SESSION_EXPIRY,
    Holder,
    Presence,
    list_presences,
)
from everywhen.storage.base import AlreadyExists
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World

HERE = Holder("kvm1", "boot-2", os.getpid(), "root", "pid:[1]")
NOW = 10**18


def presence(name: str, holder: Holder, age_ns: int = 0) -> Presence:
    return Presence(name, holder, "backup", [], NOW - age_ns, NOW - age_ns)


def ended_process() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(("name", "limit"), [("sessions/p", SESSION_EXPIRY), ("leases/x", LEASE_EXPIRY)])
def test_by_time(name: str, limit: int) -> None:
    foreign = Holder("kvm2", "boot-9", 1, "")
    assert not presence(name, foreign, limit).expired(HERE, NOW)
    assert presence(name, foreign, limit + 1).expired(HERE, NOW)
    # A clock that went back, or another host's that is ahead, kills nobody.
    assert not presence(name, foreign, -3600 * SECOND).expired(HERE, NOW)


def test_by_process() -> None:
    gone = ended_process()
    assert Holder("kvm1", "boot-2", gone, "", "pid:[1]").is_dead(HERE)
    assert Holder("kvm1", "boot-1", HERE.pid, "").is_dead(HERE), "the host was started anew since"
    assert not Holder("kvm1", "boot-2", os.getppid(), "", "pid:[1]").is_dead(HERE)
    assert not Holder("kvm1", "boot-2", 1, "", "pid:[1]").is_dead(HERE), "somebody else's process is alive"
    assert not HERE.is_dead(HERE)
    assert not Holder("kvm2", "boot-2", gone, "", "pid:[1]").is_dead(HERE), "of another host nothing is known"
    assert not Holder("kvm1", "", gone, "", "pid:[1]").is_dead(HERE), "without a boot id the number may be of another boot"
    assert presence("sessions/p", Holder("kvm1", "boot-2", gone, "", "pid:[1]")).expired(HERE, NOW)


@pytest.mark.parametrize("theirs", ["pid:[2]", ""])
def test_a_number_of_another_namespace_says_nothing(theirs: str) -> None:
    """Containers may have the host's name and its boot; what an earlier program wrote names no namespace."""
    elsewhere = Holder("kvm1", "boot-2", ended_process(), "", theirs)
    assert not elsewhere.is_dead(HERE)
    assert not elsewhere.is_dead(replace(HERE, pids="")), "where it is not known here, either"
    assert presence("sessions/p", elsewhere, SESSION_EXPIRY + 1).expired(HERE, NOW), "the time counts"


def test_what_an_earlier_program_wrote_is_read() -> None:
    old = {"host": "kvm1", "boot": "boot-2", "pid": 7, "user": "ann"}
    assert Holder.from_json(old) == Holder("kvm1", "boot-2", 7, "ann", "")
    assert Holder.from_json(HERE.to_json()) == HERE


def test_listed_torn_and_ended(tmp_path: Path) -> None:
    world, store = World(tmp_path), MemoryStore(clock_ns=lambda: NOW)
    with world.open(store, world.create(store, encrypted=False)) as repository:
        attendance = repository.attend("sessions/p-1", "backup web1", ["p-1"])
        attendance.begin(if_absent=True)
        with pytest.raises(AlreadyExists):
            repository.attend("sessions/p-1", "backup web1", ["p-1"]).begin(if_absent=True)
        (found,) = list_presences(repository.documents, "sessions/")
        assert (found.what, found.points, found.holder) == ("backup web1", ["p-1"], repository.surroundings.holder)
        store.put("sessions/p-2", [b"torn"])
        torn = {one.name: one for one in list_presences(repository.documents, "sessions/")}["sessions/p-2"]
        assert not torn.expired(HERE, NOW), "whoever is alive puts it again"
        assert torn.expired(HERE, NOW + SESSION_EXPIRY + 1), "nobody has"
        attendance.end()
        assert [one.name for one in list_presences(repository.documents, "sessions/")] == ["sessions/p-2"]
        left = repository.attend("leases/x", "restore", [])
        left.begin()
        left.abandon()
        assert [one.name for one in list_presences(repository.documents, "leases/")] == ["leases/x"]
