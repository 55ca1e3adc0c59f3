# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where a point of a common instant is made: of exactly that instant, or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self, cast

import pytest

from everywhen.block.patched import Patches
from everywhen.capture.freezing import NotFrozen
from everywhen.nbd.connection import NbdError
from everywhen.services.ages import SECOND
from everywhen.services.protect.capture_order import CaptureLost, MissedInstant, Time
from everywhen.services.protect.instants import Cut, Instants
from everywhen.services.protect.quieting import CRASH
from everywhen.services.replay import Replay
from tests.records import group, write


def replayed(cut: Cut) -> Replay:
    """Records 4, 5 and 6, of 4,000, 4,001 and 4,002 ns, fed up to a cut."""
    replay = Replay([Patches()], 4, following=True)
    replay.feed(group(4, *(write(0, 0, b"x") for _ in range(3))), until=cut.until, until_ns=cut.at_ns)
    return replay


def test_all_records_up_to_the_instant() -> None:
    cut = Cut(7, CRASH, 4001, begun=5)
    replay = replayed(cut)
    assert replay.sequence == 6
    cut.demand(replay, 3999)
    Cut(7, CRASH).demand(replayed(Cut(7, CRASH)), 5000)  # a point of no instant is one of whatever there is


@pytest.mark.parametrize(
    ("cut", "parent_ns"),
    [
        (Cut(7, CRASH, 4000, begun=6), 3999),  # the bitmaps lack record 5, which is later than the instant
        (Cut(7, CRASH, 4002, begun=5), 3999),  # no record shows that there is nothing more up to it
        (Cut(7, CRASH, 4001, begun=5), 4001),  # there is a point of it
    ],
)
def test_what_is_none_of_that_instant(cut: Cut, parent_ns: int) -> None:
    with pytest.raises(MissedInstant):
        cut.demand(replayed(cut), parent_ns)


def test_a_record_after_a_mark_that_came_too_early_shows_nothing() -> None:
    """The clock was set back, the mark stamped before the instant, and so was a write that is beyond the number alone."""
    replay, cut = Replay([Patches()], 10, following=True), Cut(12, CRASH, 10_100, begun=10)
    replay.feed(group(10, *(write(0, 0, b"x") for _ in range(3))), until=cut.until, until_ns=cut.at_ns)
    assert (replay.sequence, replay.beyond) == (12, True)
    with pytest.raises(MissedInstant, match="set back"):
        cut.demand(replay, 9_000)


@dataclass
class Sink:
    """A sink that takes one record for each mark, and what the guest writes with it. Also the connection to it."""

    taken: int = 0
    alive: bool = True
    lets_go: bool = False
    beside: list[int] = field(default_factory=list)

    def send(self, _offset: int, _data: bytes) -> int:
        self.taken += 1 + (self.beside.pop(0) if self.beside else 0)
        return 0

    def answer(self, _cookie: int) -> None:
        """It has it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Hung up."""


@dataclass
class Clock:
    """Time that passes by sleeping; the wall clock may be set."""

    now: float = 0.0
    wall: float = 1000.0
    stands: bool = False

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.wall += 0 if self.stands else seconds

    def __call__(self) -> int:
        return int(self.wall * SECOND)


def instants(sink: Sink, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Instants:
    made = Instants(cast("Any", sink), None, Time(lambda: clock.now, clock.sleep), clock)
    monkeypatch.setattr(Instants, "_connection", lambda _: sink)
    return made


def test_marks_of_ours_are_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Sink(taken=10)
    there = instants(sink, Clock(), monkeypatch)
    assert there.is_news(9, quiet=False)
    assert not there.is_news(10, quiet=False)
    for number in (11, 12):
        assert there.witness() == number
        assert not there.is_news(10, quiet=False)
    assert there.is_news(9, quiet=False), "the point lacks a write"
    sink.taken += 1
    assert there.is_news(10, quiet=False)
    there.witness()
    assert there.is_news(10, quiet=False), "a write between marks"
    assert not there.is_news(13, quiet=False)


@pytest.mark.parametrize("beside", [1, 2])
def test_a_write_beside_a_mark_is_news(monkeypatch: pytest.MonkeyPatch, beside: int) -> None:
    sink = Sink(taken=10, beside=[beside])
    there = instants(sink, Clock(), monkeypatch)
    there.witness()
    assert there.is_news(10, quiet=False)


def test_the_mark_comes_after_the_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, clock = Sink(taken=10), Clock()
    cut = instants(sink, clock, monkeypatch).cut(quiet=True, at_ns=1002 * SECOND)
    assert clock() > 1002 * SECOND
    assert (cut.begun, cut.until, cut.at_ns) == (10, 11, 1002 * SECOND)


def test_nobody_is_frozen_for_an_instant_that_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    marking = instants(Sink(), clock, monkeypatch)._marking(1002 * SECOND)
    clock.sleep(2.0)  # hooks
    with pytest.raises(NotFrozen, match="had passed"):
        marking.__enter__()


def test_a_sink_that_is_slow_to_answer_costs_an_instant_and_no_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(_: object) -> None:
        raise NbdError("timed out")

    there = instants(Sink(), Clock(), monkeypatch)
    monkeypatch.setattr(Instants, "_connection", late)
    with pytest.raises(MissedInstant, match="timed out"):
        there.witness()


def test_nobody_waits_for_an_instant_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    there = instants(Sink(), clock, monkeypatch)
    with pytest.raises(MissedInstant):
        there.witness(1100 * SECOND)
    assert clock.now == 0
    clock.stands = True
    with pytest.raises(MissedInstant):
        there.witness(1001 * SECOND)
    with pytest.raises(CaptureLost):
        instants(Sink(alive=False), clock, monkeypatch).witness(1001 * SECOND)
