# SPDX-License-Identifier: AGPL-3.0-or-later
"""Fields of a recovery point that not every point has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from everywhen.formats.errors import Corrupt
from everywhen.formats.ids import PointId
from everywhen.formats.point import ClockStep, GuestClock, JournalPosition, RecoveryPoint, RolledBack

POINT = RecoveryPoint(PointId("p-0123456789ab"), "a" * 32, 5, 1, 1, None, "filesystem", "filesystem", "", {})


def test_a_guests_clock_stands_where_it_is_known() -> None:
    assert "guest_clock" not in POINT.to_json(), "as it was written before"
    known = replace(POINT, guest_clock=GuestClock(2_000, 500))
    assert known.guest_clock is not None
    assert known.guest_clock.ahead_ns == -1_500
    assert [RecoveryPoint.from_json(one.to_json()) for one in (POINT, known)] == [POINT, known]
    for clock in (None, 5, {}, {"host_ns": 1, "guest_ns": -1}):
        with pytest.raises(Corrupt):
            RecoveryPoint.from_json(POINT.to_json() | {"guest_clock": clock})


def test_a_rollback_stands_where_there_was_one() -> None:
    assert "rolled_back" not in POINT.to_json(), "as it was written before"
    back = replace(POINT, rolled_back=RolledBack(PointId("p-0123456789aa"), 3, 1))
    assert RecoveryPoint.from_json(back.to_json()) == back
    for wrong in ({}, {"point": "p-0123456789aa", "time_ns": -1, "branch": 1}, {"point": "x", "time_ns": 3, "branch": 1}, "x"):
        with pytest.raises(Corrupt):
            RecoveryPoint.from_json({**back.to_json(), "rolled_back": wrong})


def test_steps_of_the_hosts_clock_stand_where_there_were_any() -> None:
    without = JournalPosition("b" * 32, 5, ("vda",))
    assert "clock_steps" not in without.to_json(), "as it was written before"
    stepped = replace(without, clock_steps=(ClockStep(5, 40, 3), ClockStep(6, 4, 64)))
    assert [step.by_ns for step in stepped.clock_steps] == [-37, 60]
    assert [JournalPosition.from_json(one.to_json()) for one in (without, stepped)] == [without, stepped]
    wrong: tuple[object, ...] = (None, 5, [1], [{}], [{"at_ns": 1, "from_ns": 2}], [{"at_ns": 1, "from_ns": 2, "to_ns": -1}])
    for steps in wrong:
        with pytest.raises(Corrupt):
            JournalPosition.from_json(without.to_json() | {"clock_steps": steps})
