# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a capture makes of what it sees when it looks at its taps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from everywhen.capture import bitmaps
from everywhen.capture.counters import FINE
from everywhen.capture.qmp import MonitorBusy
from everywhen.services.ages import SECOND
from everywhen.services.protect import capturing
from everywhen.services.protect.capture_order import CaptureLost, Time
from everywhen.services.protect.capturing import Capture
from everywhen.services.protect.instants import Cut
from everywhen.services.protect.quieting import CRASH


class World:
    """A repository's clock, a sink that is well, a hypervisor, and whoever is told."""

    def __init__(self) -> None:
        self.now = 100
        self.away: str | Exception | None = None
        self.said: list[str] = []
        self.taken = self.durable = 7
        self.alive, self.state, self.silent_s, self.lets_go = True, FINE, 0.0, False
        self.counters = SimpleNamespace(taps=lambda: ())

    def clock(self) -> int:
        return self.now * SECOND

    def why_away(self, _: object) -> str | None:
        if isinstance(self.away, Exception):
            raise self.away
        return self.away

    def waiting(self, why: str) -> None:
        self.said.append(why)

    def gap(self, *_: object) -> None:
        """None is told."""

    def definition(self) -> dict[str, bytes]:
        return {}

    def sealed(self, *_: object) -> None:
        """Nothing to tell."""


def capture(world: World) -> Capture:
    surroundings = SimpleNamespace(clock=world.clock, randomness=bytes)
    recipient, order = SimpleNamespace(surroundings=surroundings), SimpleNamespace(hypervisor=world, gap=world.gap)
    made = Capture(cast("Any", recipient), cast("Any", order), cast("Any", world), cast("Time", None), cast("Any", None))
    made.stood = True
    made._stretch = cast("Any", SimpleNamespace(reception=world, monitor=None, taps=[]))
    return made


def look(one: Capture, world: World) -> int:
    """A second later; until when it then knows that nothing is missing, in seconds."""
    world.now += 1
    one.look()
    return one.covered_ns // SECOND


def test_a_monitor_that_is_busy_ends_no_capture_and_shows_nothing() -> None:
    world = World()
    one = capture(world)
    assert [look(one, world) for _ in range(3)] == [0, 101, 102]
    world.away = MonitorBusy("it saves its memory")
    assert [look(one, world) for _ in range(3)] == [102, 102, 102]
    assert world.said == ["it saves its memory"] * 3
    world.away = None
    assert look(one, world) == 103, "what was seen when it was looked at last"
    assert look(one, world) == 107
    world.away = "its guest was migrated"
    with pytest.raises(CaptureLost, match="migrated"):
        look(one, world)


def sealed(one: Capture, world: World) -> None:
    laid = SimpleNamespace(sequence=7, time_ns=5, writes=1, ended=False, is_moment=True, beyond=False)
    point = SimpleNamespace(point="p-1", number=1, time_ns=5, journal=None)
    told: list[Any] = []
    making = SimpleNamespace(point="p-1", laid=laid, lay=lambda alive, *_: told.append(alive), commit=lambda *_: point)
    one._seal(cast("Any", making), None, quiet=True, at_ns=9)
    assert told == [world.alive], "whoever waits hears that it goes on"


@pytest.fixture
def sealing(monkeypatch: pytest.MonkeyPatch) -> tuple[Capture, World]:
    """One whose VM has a disk with a bitmap, and which is about to make its first point."""
    world = World()
    one = capture(world)
    one.stood, one.vm, one._gap = False, cast("Any", SimpleNamespace(vm="a" * 32)), None
    one.time = Time(lambda: 0.0, lambda _: None)
    one._spool = cast("Any", SimpleNamespace(groups=lambda _: ()))
    instants = SimpleNamespace(cut=lambda **_: Cut(7, CRASH, 9, begun=7))
    disk = SimpleNamespace(node="node0")
    stretch = {"reception": world, "monitor": None, "taps": [], "nodes": [disk], "names": ["vda"], "instants": instants}
    one._stretch = cast("Any", SimpleNamespace(**stretch))
    monkeypatch.setattr(capturing, "all_stand", lambda *_: True)
    monkeypatch.setattr(Cut, "demand", lambda *_: None)
    for name, found in (("recordings", [SimpleNamespace(name="old")]), ("begin", None), ("begun", {}), ("remove", None)):
        monkeypatch.setattr(bitmaps, name, lambda *_, found=found: found)
    return one, world


def test_a_guest_that_left_before_the_instant_has_no_point_of_it(sealing: tuple[Capture, World]) -> None:
    """It runs elsewhere, and its taps here stand: what it wrote up to the instant is in no journal."""
    one, world = sealing
    world.away = "its guest was migrated"
    with pytest.raises(CaptureLost, match="migrated"):
        sealed(one, world)
    assert not one.stood


def test_what_was_answered_and_taken_by_nobody_is_in_no_point(sealing: tuple[Capture, World]) -> None:
    """A sink that has let go of its taps still answers: QEMU's jobs look as they always do."""
    one, world = sealing
    world.lets_go = True
    with pytest.raises(CaptureLost, match="a tap ended"):
        sealed(one, world)
    assert not one.stood


def test_a_point_is_there_though_an_older_bitmap_stays(sealing: tuple[Capture, World], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wished for it would read that capture was lost. The next point removes it."""
    one, world = sealing
    kept = list[str]()

    def busy(_monitor: object, node: str, *names: str) -> None:
        kept.extend([node, *names])
        raise MonitorBusy("it saves its memory")

    monkeypatch.setattr(bitmaps, "remove", busy)
    sealed(one, world)
    assert (one.stood, one.parent is not None, kept) == (True, True, ["node0", "old"])
