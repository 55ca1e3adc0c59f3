# SPDX-License-Identifier: AGPL-3.0-or-later
"""When a point is made where these alone are captured, and what becomes of wishes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everywhen.formats.point import Gap
from everywhen.repository.ledger import Vm
from everywhen.services.ages import SECOND
from everywhen.services.protect import interval
from everywhen.services.protect.capture_order import CaptureLost, CaptureOrder, Figures, Paused, Time, Told
from everywhen.services.protect.interval import LATE, Interval
from everywhen.services.protect.wishes import Mark, Pause, Resume, Ship, Wish

VM = Vm("a" * 32, "web1", "web1", "", "", 1, group="shop")
APART = 60.0
ROUND = 7.0


@dataclass
class Made:
    """A point; what stands in for one."""

    point: str
    number: int
    time_ns: int
    asked: str = "crash"
    reached: str = "crash"
    why: str = ""


@dataclass
class World:
    """Time that passes by waiting and by rounds, wishes that come at their times, and all that was done."""

    wishes: list[tuple[float, Wish | None]]
    """None: the end."""
    fails: Exception | None = None
    fails_after: Exception | None = None
    """When the point is made."""
    round_s: float = ROUND
    deaf: bool = False
    """A round in which nothing is read looks for no wishes."""
    now: float = 0.0
    ending: bool = False
    end_wish: None = None
    interval_s: float = APART
    rounds: list[tuple[float, str | None, Gap | None, dict[str, int]]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    demanded: list[object] = field(default_factory=list)

    def wait(self, seconds: float) -> Wish | None:
        due = self.wishes[0][0] if self.wishes else self.now + seconds
        self.now = max(self.now, min(self.now + seconds, due))
        if not self.wishes or self.now < due:
            return None
        wish = self.wishes.pop(0)[1]
        self.ending = self.ending or wish is None
        return wish

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in vars(Told):
            raise AttributeError(name)
        return lambda *_: self.told.append(name)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round takes some time, looks for wishes meanwhile, and makes a point unless it fails."""

    class Round:
        stood = False
        epoch = 0
        wish: Mark | None = None

        def __init__(self, recipient: Any, order: World, told: Any, time: Time, wishes: Any) -> None:
            self._world, self._told, self._wishes = order, told, wishes
            self.parent: Made | None = None

        def run(self, vm: Vm, parent: Made | None, known: dict[str, int], gap: Gap | None) -> None:
            assert not vm.group
            world = self._world
            world.rounds.append((world.now, self.wish.text if self.wish else None, gap, known))
            self.epoch = len(world.rounds)
            self.parent = parent
            self._told.attached(["vda"], {})
            end = world.now + world.round_s
            while world.now < end:
                wish = None if world.deaf else self._wishes.wait(0)
                if isinstance(wish, Pause):
                    raise Paused(wish)
                assert wish is None
                assert not self._wishes.ending
                self._told.copying(1, 2)
                world.now += 1
            if world.fails is not None and parent is not None:
                raise world.fails
            number = parent.number + 1 if parent else 1
            self.parent, self.stood = Made(f"p-{number}", number, int(world.now * SECOND)), True
            if world.fails_after is not None and parent is not None:
                raise world.fails_after
            for _ in range(2):
                self._told.measured(Figures(9, 9, 9, 9, 9, 9, 9, 1, 2, 3))
                self._told.sealed(self.parent, 9)

    monkeypatch.setattr(interval, "_Round", Round)


def run(world: World) -> Interval:
    anything = cast("Any", world)
    recipient = SimpleNamespace(surroundings=SimpleNamespace(randomness=bytes))
    recipient.demand_turn = lambda _, epoch: world.demanded.append(epoch)
    recipient.demand_parent = lambda parent: world.demanded.append(parent.point)
    capture = Interval(
        cast("Any", recipient), cast("CaptureOrder", world), anything, Time(lambda: world.now, lambda _: None), anything
    )
    capture.run(VM, None, {}, None)
    return capture


def answers(wish: Callable[[Callable[[Any], None]], Wish]) -> tuple[Wish, list[Any]]:
    """A wish, and what it will be answered."""
    heard: list[Any] = []
    return wish(heard.append), heard


@pytest.mark.usefixtures("rounds")
def test_points_lie_so_far_apart_from_begin_to_begin() -> None:
    world = World([(150, None)])
    capture = run(world)
    assert [at for at, *_ in world.rounds] == [0, 60, 120, 150], "the end makes a last one"
    assert [gap for _, _, gap, _ in world.rounds] == [None, *(Gap(int(at * SECOND), LATE) for at in (7, 67, 127))]
    assert [known for *_, known in world.rounds] == [{}, {"p-1": 1}, {"p-2": 2}, {"p-3": 3}]
    assert world.demanded == [1, "p-1", 2, "p-2", 3, "p-3"], "before each further one: is it still our turn, on that point?"
    assert (capture.stood, capture.covered_ns, capture.complete) == (True, 157 * SECOND, False)
    told = [one for one in world.told if one != "alive"]
    assert told == ["attached", *["copying"] * 7, *["sealed", "measured", "sealed"] * 4], (
        "each round is measured when it is over"
    )


@pytest.mark.usefixtures("rounds")
def test_an_end_in_a_round_waits_for_its_point_and_makes_another() -> None:
    world = World([(63, None)])
    run(world)
    assert [at for at, *_ in world.rounds] == [0, 60, 67]


@pytest.mark.usefixtures("rounds")
def test_a_mark_is_a_point_at_once_and_each_has_its_own() -> None:
    wishes = [answers(lambda reply, text=text: Mark(text, reply)) for text in "abc"]  # type: ignore[misc]
    at = (10, 12, 20)  # the second one while the first one's point is made
    world = World([*zip(at, [wish for wish, _ in wishes], strict=True), (100, None)])
    run(world)
    assert [(at, mark) for at, mark, *_ in world.rounds] == [
        (0, None),
        (10, "a"),
        (17, "b"),
        (24, "c"),
        (84, None),
        (100, None),
    ]
    assert [heard[0]["point"] for _, heard in wishes] == ["p-2", "p-3", "p-4"]


@pytest.mark.usefixtures("rounds")
def test_what_there_is_nothing_to_do_for_is_answered() -> None:
    ship, shipped = answers(Ship)
    resume, resumed = answers(Resume)
    run(World([(10, ship), (11, resume), (20, None)]))
    assert (shipped, resumed) == ([{}], [{"resumed": False}])


@pytest.mark.usefixtures("rounds")
@pytest.mark.parametrize(("at", "rounds_begun"), [(10, 1), (62, 2)])
def test_a_pause_between_points_or_in_a_round(at: float, rounds_begun: int) -> None:
    pause, heard = answers(lambda reply: Pause(5.0, reply))
    world = World([(at, pause)])
    with pytest.raises(Paused):
        run(world)
    assert len(world.rounds) == rounds_begun
    assert heard == ([{"paused": 5.0}] if at == 10 else []), "in a round the capture answers when its taps are off"


@pytest.mark.usefixtures("rounds")
def test_a_pause_is_heard_where_each_point_takes_longer_than_an_interval() -> None:
    pause, heard = answers(lambda reply: Pause(5.0, reply))
    world = World([(3 * ROUND, pause)], interval_s=1.0, deaf=True)
    with pytest.raises(Paused):
        run(world)
    assert heard == [{"paused": 5.0}]


@pytest.mark.usefixtures("rounds")
def test_a_loss_ends_it_and_marks_are_refused() -> None:
    first, heard = answers(lambda reply: Mark("a", reply))
    second, heard_too = answers(lambda reply: Mark("b", reply))
    world = World([(10, first), (12, second)], CaptureLost("the sink ended"))
    with pytest.raises(CaptureLost):
        run(world)
    assert heard == heard_too == [{"error": "capture was lost just now (the sink ended)"}]


@pytest.mark.usefixtures("rounds")
def test_a_mark_that_nobody_waits_for_any_more_is_none() -> None:
    """It would be the name of a state after what it was to come before."""
    wishes = [answers(lambda reply, at=at: Mark(f"at {at}", reply, asked=at)) for at in (101.0, 190.0)]  # type: ignore[misc]
    world = World([(101, wishes[0][0]), (190, wishes[1][0]), (215, None)], round_s=100)
    run(world)
    assert [mark for _, mark, *_ in world.rounds] == [None, None, "at 190.0", None]
    assert ["error" in heard[0] for _, heard in wishes] == [True, False]


@pytest.mark.parametrize(("now", "name"), [(119.0, "before"), (121.0, None)])
def test_a_point_that_is_made_too_late_has_not_the_name(now: float, name: str | None) -> None:
    capture = object.__new__(interval._Round)
    capture.time, capture.wish = Time(lambda: now, lambda _: None), Mark("before", lambda _: None, asked=0.0)
    assert capture._first_mark() == name


@pytest.mark.usefixtures("rounds")
def test_a_mark_of_a_group_is_refused() -> None:
    """A point of another time would have the name of the group's instant."""
    wish, heard = answers(lambda reply: Mark("a", reply, 11 * SECOND))
    world = World([(10, wish), (20, None)])
    run(world)
    assert [mark for _, mark, *_ in world.rounds] == [None, None]
    assert "has no points of its group's instants" in heard[0]["error"]


@pytest.mark.usefixtures("rounds")
def test_a_round_that_is_lost_after_its_point_has_granted_the_mark() -> None:
    first, heard = answers(lambda reply: Mark("a", reply))
    second, heard_too = answers(lambda reply: Mark("b", reply))
    with pytest.raises(CaptureLost):
        run(World([(10, first), (12, second)], fails_after=CaptureLost("the sink ended")))
    assert heard[0]["point"] == "p-2"
    assert heard_too == [{"error": "capture was lost just now (the sink ended)"}]


def test_a_gap_is_where_a_point_is_missing() -> None:
    order = CaptureOrder(cast("Any", None), cast("Any", None), 0, 0, 0, interval_s=APART)
    gap = Gap(1000, "paused")
    assert order.gap(gap, 1000 + 90 * SECOND) is None
    assert order.gap(gap, 1001 + 90 * SECOND) is gap
    every_write = CaptureOrder(cast("Any", None), cast("Any", None), 0, 0, 0)
    assert (every_write.gap(gap, 1001), every_write.gap(None, 5)) == (gap, None)
