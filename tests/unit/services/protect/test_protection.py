# SPDX-License-Identifier: AGPL-3.0-or-later
"""What follows when a stretch of capture ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everywhen.capture.qmp import VmOff
from everywhen.formats.point import Gap, JournalPosition
from everywhen.repository.errors import LowOnSpace
from everywhen.repository.ledger import Vm
from everywhen.services.protect import protection
from everywhen.services.protect.capture_order import CaptureLost, CaptureOrder, Stopped, Time
from everywhen.services.protect.capture_states import NOT_RUNNING
from everywhen.services.protect.wishes import End, Wish
from tests.deaf import Deaf

POINT = "a point"
VM = Vm("7" * 32, "web1", "web1", "", "", 0)


@dataclass
class World(Deaf):
    """A VM that ends once and is off then, and whoever waits for it. Time passes by waiting."""

    in_order: bool
    now: float = 0.0
    ending: bool = False
    end_wish: None = None
    interval_s: float = 0.0
    ended: bool = False
    absent_at: list[tuple[float, object]] = field(default_factory=list)

    def wait(self, seconds: float) -> Wish | None:
        self.now += seconds
        return None

    def beginning(self, *_: object) -> tuple[Vm, None, dict[str, int], int]:
        return VM, None, {}, 0

    def demand_turn(self, *_: object) -> None:
        """It is its turn."""


@pytest.mark.parametrize(("in_order", "after"), [(True, 0.0), (False, 2.0)])
def test_a_vm_that_ended_in_order_is_looked_after_at_once(
    monkeypatch: pytest.MonkeyPatch, *, in_order: bool, after: float
) -> None:
    """What its images are like is seen when its absence begins: who writes to them before that is never noticed."""
    world = World(in_order)

    class Stretch:
        parent, stood, covered_ns, images, epoch = POINT, True, 1, (), 0

        def __init__(self, *_: object) -> None:
            self.complete = in_order and not world.ended

        def run(self, *_: object) -> None:
            if world.ended:
                raise VmOff("it is off")
            world.ended = True
            raise CaptureLost("its QEMU ended")

    class Absence:
        complete, until_ns = POINT, 1

        def __init__(self, *arguments: object) -> None:
            world.absent_at.append((world.now, arguments[-1]))

        def sit_out(self, _: str) -> None:
            world.ending = True

    monkeypatch.setattr(protection, "Capture", Stretch)
    monkeypatch.setattr(protection, "Absence", Absence)
    time = Time(lambda: world.now, lambda _: None)
    anything = cast("Any", world)
    protection.protect(anything, "web1", cast("CaptureOrder", world), anything, time, anything)
    assert world.absent_at == [(after, POINT if in_order else None)]


def test_a_try_that_ends_before_its_claim_forgets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to ask, before its next try, whether somebody else captures by now."""
    world = World(in_order=False)
    asked: list[int] = []
    claims = [5, 0, 0, 6]

    class Stretch:
        parent, stood, covered_ns, images, complete, epoch = POINT, True, 1, (), False, 0

        def __init__(self, *_: object) -> None:
            """Nothing."""

        def run(self, *_: object) -> None:
            self.epoch = claims.pop(0)
            world.ending = not claims
            raise CaptureLost("the repository was away")

    monkeypatch.setattr(protection, "Capture", Stretch)
    monkeypatch.setattr(world, "demand_turn", lambda _vm, epoch: asked.append(epoch))
    anything = cast("Any", world)
    time = Time(lambda: world.now, lambda _: None)
    protection.protect(anything, "web1", cast("CaptureOrder", world), anything, time, anything)
    assert asked == [0, 5, 5, 5]


@dataclass
class Ended:
    """A capture at intervals or of every write whose stretches end one after the other, by these."""

    ends: list[Exception]
    now: float = 0.0
    interval_s: float = 60.0
    ending: bool = False
    end_wish: End | None = None
    gaps: list[Gap | None] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    hypervisor: None = None
    sink: None = None
    folder: Path = Path("/nowhere")
    waits: bool = False

    def wait(self, _: float) -> None:
        self.now += 1

    def beginning(self, *_: object) -> tuple[Vm, None, dict[str, int], int]:
        return VM, None, {}, 0

    def demand_turn(self, *_: object) -> None:
        """It is its turn."""

    def lost(self, why: str) -> None:
        self.told.append(f"lost: {why}")

    def left_behind(self, what: str) -> None:
        self.told.append(what)

    def alive(self) -> None:
        """Nothing to tell."""


def protected(world: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stretch:
        parent, stood, covered_ns, images, epoch, complete = POINT, True, 77, (), 0, False

        def __init__(self, *_: object) -> None:
            pass

        def run(self, _vm: object, _parent: object, _known: object, gap: Gap | None) -> None:
            world.gaps.append(gap)
            world.ending = len(world.ends) == 1
            raise world.ends.pop(0)

    class Absence:
        complete, until_ns = None, 1

        def __init__(self, *_: object) -> None:
            pass

        def sit_out(self, _: str) -> None:
            """It is on again."""

    monkeypatch.setattr(protection, "Interval", Stretch)
    monkeypatch.setattr(protection, "Absence", Absence)
    monkeypatch.setattr(protection, "withdraw", lambda *_: 3)
    anything = cast("Any", world)
    protection.protect(anything, "web1", anything, anything, Time(lambda: world.now, lambda _: None), anything)


def test_a_vm_that_is_shut_down_between_two_points_is_why_the_next_one_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Ended([CaptureLost("the sink ended"), VmOff("it is off"), Stopped()])
    protected(world, monkeypatch)
    assert world.gaps == [None, Gap(77, "the sink ended"), Gap(77, "it is off")]


def test_an_end_whose_last_point_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = []
    protected(world := Ended([LowOnSpace("full")], end_wish=End(answers.append)), monkeypatch)
    assert answers == [{"taken_off": 3, "not_in_a_point": "full"}]
    assert world.told == ["the last recovery point could not be made (full)"], "it does not begin again by itself"
    protected(world := Ended([Stopped()], end_wish=End(answers.append)), monkeypatch)
    assert (answers[1], world.told) == ({"taken_off": 3}, [])


def test_a_gap_begins_where_capture_ended_not_at_a_backup_within_it() -> None:
    position = JournalPosition("a" * 32, 1, ("vda",))
    captured, backup = (cast("Any", SimpleNamespace(time_ns=at, journal=of)) for at, of in ((10, position), (20, None)))
    assert protection._gap_after(captured, None, 12) == Gap(12, NOT_RUNNING)
    assert protection._gap_after(captured, Gap(7, "lost"), 0) == Gap(10, "lost"), "what was spooled reaches further"
    assert protection._gap_after(backup, Gap(15, "lost"), 0) == Gap(15, "lost")
    assert protection._gap_after(backup, None, 0) is None
    assert protection._gap_after(None, None, 0) is None
