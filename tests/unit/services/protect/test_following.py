# SPDX-License-Identifier: AGPL-3.0-or-later
"""When a capture ships and seals, and that a repository that takes nothing does not end it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from everywhen.capture.qmp import MonitorBusy
from everywhen.formats.errors import Corrupt
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.errors import Damaged, Fenced, LowOnSpace
from everywhen.services.ages import SECOND
from everywhen.services.protect.capture_order import CaptureOrder, Figures, MissedInstant, Paused, Time, Told
from everywhen.services.protect.following import follow
from everywhen.services.protect.wishes import Mark, Pause, Ship, Wish
from everywhen.storage.base import Unavailable

NOTHING = Figures(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass
class World:
    """A capture whose time passes by looking, and whoever is told of it."""

    steps: list[Callable[[World], None]]
    now: float = 0.0
    ending: bool = False
    figures: Figures = NOTHING
    parent: RecoveryPoint | None = None
    fails: Exception | None = None
    done: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    wish: Wish | None = None
    end_wish: None = None
    in_group: bool = False
    wall_ns: int = 0
    unseen: str = ""

    def wait(self, seconds: float) -> Wish | None:
        self.now += seconds
        self.wish = None
        if self.steps:
            self.steps.pop(0)(self)
        else:
            self.ending = True
        return self.wish

    def look(self) -> None:
        """Nothing is lost."""

    def ship(self) -> None:
        self._do("ship")

    def make_point(self, mark: str | None, *, quiet: bool, at_ns: int | None = None) -> None:
        at = f" at {at_ns // SECOND}" if at_ns is not None else ""
        self._do(f"point{' quiet' if quiet else ''}{' ' + mark if mark else ''}{at}")

    @property
    def common_clock(self) -> Callable[[], int] | None:
        return (lambda: int(self.now * SECOND) + self.wall_ns) if self.in_group else None

    def witness(self) -> None:
        self._do("witness")
        if self.unseen:
            raise MissedInstant(self.unseen)

    def _do(self, what: str) -> None:
        self.done.append(what)
        if self.fails is not None and not self.ending:
            raise self.fails
        if what.startswith("point"):
            self.figures = replace(self.figures, sealed=self.figures.taken)

    def measured(self, _: Figures) -> None:
        """Not of interest here."""

    def waiting(self, why: str) -> None:
        self.said.append(why)


def run(world: World, seal_s: float = 1e6) -> list[str]:
    order = cast("CaptureOrder", type("Order", (), {"seal_s": seal_s})())
    follow(world, order, cast("Told", world), Time(lambda: world.now, lambda _: None), world)
    return world.done


def later(seconds: float, **figures: int) -> Callable[[World], None]:
    """Time passes, and figures change."""

    def step(world: World) -> None:
        world.now += seconds
        world.figures = replace(world.figures, **figures)

    return step


def wishing(wish: Wish) -> Callable[[World], None]:
    def step(world: World) -> None:
        world.wish = wish

    return step


def test_a_quiet_vm_ships_and_seals_by_time() -> None:
    assert run(World([later(61), later(61)])) == ["ship", "point"], "nothing new: only the end"
    assert run(World([later(61, spool_bytes=9), later(61)])) == ["ship", "ship", "point"]
    assert run(World([later(11), later(9), later(3)]), seal_s=10) == ["point quiet", "point quiet", "ship", "point"]


def test_a_busy_vm_ships_and_seals_by_amount() -> None:
    assert run(World([later(1, spool_bytes=17 << 20)])) == ["ship", "ship", "point"]
    assert run(World([later(1, work_bytes=300 << 20), later(1, work_bytes=310 << 20)])) == ["point", "ship", "point"]
    assert run(World([later(1, taken=100_001)])) == ["point", "ship", "point"]


@pytest.mark.parametrize(
    "fails",
    [
        *(Unavailable("x", "away"), LowOnSpace("full"), Damaged("a chunk"), Fenced("dead"), Corrupt("bytes")),
        MonitorBusy("libvirt migrates it just now"),
    ],
)
def test_what_takes_no_point_now_ends_no_capture(fails: Exception) -> None:
    world = World([later(1, taken=100_001), *[later(1)] * 30], fails=fails)
    run(world)
    assert 2 <= world.done.count("point") <= 5, "tried again, but not at each look"
    assert str(fails) in world.said


def test_wishes_are_granted_and_answered() -> None:
    answers: list[object] = []
    world = World([wishing(Ship(answers.append)), wishing(Mark("now", answers.append))])
    assert run(world) == ["ship", "point quiet now", "ship", "point"]
    assert answers[0] == {}
    with pytest.raises(Paused):
        run(world := World([wishing(Pause(5, answers.append))]))
    assert world.done == ["ship", "point"]


def test_what_cannot_be_granted_is_said() -> None:
    answers: list[dict[str, object]] = []
    run(World([wishing(Ship(answers.append))], fails=LowOnSpace("full")))
    assert answers == [{"error": "full"}]


def test_a_pause_that_comes_too_late_is_none() -> None:
    """A point is made first, and by then whoever asked has been told that there was no answer."""

    class Slow(World):
        def make_point(self, mark: str | None, *, quiet: bool, at_ns: int | None = None) -> None:
            super().make_point(mark, quiet=quiet, at_ns=at_ns)
            self.now += 130

    answers: list[dict[str, object]] = []
    run(Slow([wishing(Pause(5, answers.append, asked=0.0))]))
    assert [list(answer) for answer in answers] == [["error"]]
    with pytest.raises(Paused):
        run(Slow([wishing(Pause(5, answers.append, asked=100.0))]))


def at(seconds: float) -> Callable[[World], None]:
    """It is so late, by both clocks."""

    def step(world: World) -> None:
        world.now = seconds

    return step


def test_vms_of_a_group_make_points_at_the_same_instants() -> None:
    for began in (0.0, 3.2):  # whenever their captures began
        world = World([at(7), at(8.1), at(8.6), at(10.1), at(17.9), at(18.2), at(18.9)], now=began, in_group=True)
        assert run(world, seal_s=10) == ["point quiet at 10", "point quiet at 20", "ship", "point"]


def test_one_that_looks_too_late_makes_no_point_of_that_instant() -> None:
    world = World([at(8.5), at(33), at(38.5)], in_group=True)
    assert run(world, seal_s=10) == ["point quiet at 10", "point quiet at 40", "ship", "point"]


def test_instants_follow_the_wall_clock() -> None:
    def set_back(world: World) -> None:
        world.wall_ns = -5 * SECOND

    world = World([at(8.5), set_back, at(13.5), at(18.5), at(23.5)], in_group=True)
    assert run(world, seal_s=10) == ["point quiet at 10", "point quiet at 20", "ship", "point"]


def test_a_mark_of_a_group_has_the_instant_that_was_asked_for() -> None:
    answers: list[dict[str, object]] = []
    world = World([wishing(Mark("now", answers.append, 7 * SECOND)), wishing(Ship(answers.append))], in_group=True)
    assert run(world) == ["point quiet now at 7", "witness", "ship", "ship", "point"]
    assert run(World([wishing(Ship(answers.append))])) == ["ship", "ship", "point"], "nobody else needs a witness"


def test_what_cannot_be_witnessed_is_said_and_shipped() -> None:
    answers: list[dict[str, object]] = []
    world = World([wishing(Ship(answers.append)), later(1)], in_group=True, unseen="the sink was late")
    assert run(world) == ["witness", "ship", "ship", "point"]
    assert (answers, world.said) == ([{"error": "the sink was late"}], ["the sink was late"])


def test_an_instant_that_was_missed_ends_no_capture() -> None:
    answers: list[dict[str, object]] = []
    world = World([wishing(Mark("now", answers.append, SECOND)), later(1)], fails=MissedInstant("too late"), in_group=True)
    run(world)
    assert answers == [{"error": "too late"}]
    assert world.said == ["too late"]
