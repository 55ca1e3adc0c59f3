# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a capture says of itself, in words; and what of that needs a person."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

import pytest

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json
from everywhen.interfaces.cli.capture_words import capture_document, capture_words
from everywhen.services.ages import MINUTE, SECOND
from everywhen.services.protect.capture_order import Figures
from everywhen.services.protect.capture_state import CaptureState
from everywhen.services.protect.captured import SILENT, Captured
from tests.deaf import Deaf


class Clock:
    def __init__(self) -> None:
        self.now = 1000 * SECOND

    def __call__(self) -> int:
        return self.now


def figures(taken: int, covered_ns: int = 0) -> Figures:
    processor = (taken * 2_000_000, taken * 100_000, taken * 3_000_000)
    return Figures(taken, taken - 1, 0, 512 * taken, 100 * taken, 70, covered_ns, 1000, 2000, 3000, *processor)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> CaptureState:
    return CaptureState(Deaf(), clock, {"vm": "web1", "repository": "ab"})


def heard(state: CaptureState) -> Captured:
    return Captured.from_json(state.document())


def following(state: CaptureState, clock: Clock) -> None:
    state.attached(["vda"], {})
    state.copying(1, 2)
    state.sealed(type("Point", (), {"point": "p-1", "time_ns": 5})(), 0)
    for seconds in range(11):
        clock.now += SECOND
        state.measured(figures(10 * seconds, clock.now - SECOND // 2))


def test_from_attaching_to_a_loss(state: CaptureState, clock: Clock) -> None:
    assert (heard(state).words(UTC), heard(state).reach.lost) == ("starting", "capture was not running")
    state.attached(["vda"], {})
    state.copying(41, 100)
    assert (heard(state).words(UTC), heard(state).needs(clock.now)) == ("copying 41 %", [])
    assert "repository" not in capture_words(heard(state)), "there is no moment yet"
    following(state, clock)
    found = heard(state)
    assert (found.words(UTC), found.following, found.lag_ns(clock.now)) == ("every write", True, SECOND // 2)
    assert (found.number("writes_per_s"), found.number("bytes_per_s"), found.unshipped) == (10, 5120, 100)
    assert found.number("spool_bytes_per_s") == 1000
    assert [found.number(f"{name}_ns_per_s") for name in ("sink", "watchdog", "protect")] == [20_000_000, 1_000_000, 30_000_000]
    words = capture_words(found)
    assert "a write waits for us 0.001 ms (median), 0.002 ms (99 of 100), 0.003 ms (longest); 1.0 kB/s to the spool" in words
    assert "capture takes 5.1 % of a processor" in words
    assert capture_document(found, clock.now)["processor_share"] == {"sink": 0.02, "watchdog": 0.001, "protect": 0.03}
    assert found.reach.covered_ns == clock.now - SECOND // 2
    state.shipped()
    assert heard(state).unshipped == 0
    state.waiting("the repository is full")
    assert heard(state).needs(clock.now) == ["no recovery point could be made: the repository is full"]
    state.lost("the sink ended")
    clock.now += 6 * MINUTE
    found = heard(state)
    assert (found.words(UTC), found.lag_ns(clock.now), found.reach.lost) == ("DETACHED", None, "the sink ended")
    assert found.needs(clock.now) == ["not captured for 6 min (the sink ended); it begins again by itself"]


def test_writes_that_wait_for_their_capture_need_a_person() -> None:
    """One in a hundred, once there are enough to say so."""
    slow = {"state": "following", "since_ns": 1, "p99_ns": 30_000_000, "worst_ns": 50_000_000, "taken": 1000}
    assert ["20 ms" in need for need in Captured.from_json(slow).needs(1)] == [True]
    assert Captured.from_json(slow | {"taken": 999}).needs(1) == []
    assert Captured.from_json(slow | {"p99_ns": 10_000_000}).needs(1) == []


def test_a_pause_says_its_end(state: CaptureState, clock: Clock) -> None:
    following(state, clock)
    state.paused(60.0)
    found = heard(state)
    assert found.words(UTC) == "paused until 00:17:51"
    assert (found.needs(clock.now), found.reach.lost) == ([], "paused")
    state.attached(["vda"], {})
    assert heard(state).until_ns is None
    assert heard(state).number("shipped") == 0, "another journal is counted from its begin"


def test_rates_are_of_the_last_measurements_of_one_stretch(state: CaptureState, clock: Clock) -> None:
    following(state, clock)
    for _ in range(40):
        clock.now += SECOND
        state.measured(figures(100))
    assert heard(state).number("writes_per_s") == 0
    state.attached(["vda"], {})
    state.measured(figures(7))
    assert heard(state).number("writes_per_s") == 0, "one measurement is no rate"
    state.measured(replace(figures(8), sink_ns=0))
    assert heard(state).number("sink_ns_per_s") == 0, "a process that has ended takes nothing"


def test_points_at_intervals(clock: Clock) -> None:
    state = CaptureState(Deaf(), clock, {"vm": "web1", "repository": "ab", "interval_ns": 60 * SECOND})
    state.attached(["vda"], {})
    assert heard(state).words(UTC) == "copying 0 %"
    state.sealed(type("Point", (), {"point": "p-1", "time_ns": clock.now})(), 0)
    state.measured(Figures(0, 0, 0, 0, 0, 0, 0, 1000, 2000, 3000, tapped_s=1.5))
    found = heard(state)
    assert (found.words(UTC), found.lag_ns(clock.now), found.needs(clock.now + 180 * SECOND)) == ("every 1 min", None, [])
    assert (found.reach.covered_ns, found.reach.lost) == (None, None), "there is no moment after the newest point"
    assert "every 1 min" in found.needs(clock.now + 181 * SECOND)[0]


def test_one_that_does_not_answer() -> None:
    found = Captured(SILENT, 0, "timed out")
    assert found.needs(5) == ["its capture does not answer (timed out)"]
    assert (found.reach.lost, found.unshipped) == (None, 0)


@pytest.mark.parametrize("answer", [{}, {"state": 3, "since_ns": 1}, {"state": "following"}, {"state": "x", "since_ns": -1}])
def test_an_answer_that_is_none(answer: Json) -> None:
    with pytest.raises(Corrupt):
        Captured.from_json(answer)
