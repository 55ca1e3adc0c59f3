# SPDX-License-Identifier: AGPL-3.0-or-later
"""I-11: what makes a run stop and ask, and how long dropped moments come back."""

from __future__ import annotations

import pytest

from everywhen.services.ages import DAY, HOUR
from everywhen.services.keep.brakes import DEFAULT_DELAY, DelaySetting, brakes, delay_in_force, gone_at
from everywhen.services.moments import Moment

NEWEST = 1_795_000_000 * 1_000_000_000
MOMENTS = [Moment(f"p-{number}", NEWEST - number * HOUR) for number in range(9)]


def codes(dropped: list[Moment], now_ns: int = NEWEST) -> list[str]:
    return [brake.code for brake in brakes("web1", MOMENTS, dropped, now_ns=now_ns)]


def test_a_third_passes_and_more_stops() -> None:
    assert codes(MOMENTS[-3:]) == []
    assert codes(MOMENTS[-4:]) == ["third"]


def test_the_last_moment_stops() -> None:
    assert codes(MOMENTS) == ["third", "last"]


@pytest.mark.parametrize(("off", "expected"), [(DAY, []), (DAY + 1, ["clock"]), (-DAY, []), (-DAY - 1, ["clock"])])
def test_a_clock_more_than_a_day_off_stops(off: int, expected: list[str]) -> None:
    assert codes(MOMENTS[-1:], NEWEST + off) == expected


def test_where_nothing_would_go_nothing_asks() -> None:
    assert codes([], NEWEST + 400 * DAY) == []


def test_the_words() -> None:
    third, last, clock = brakes("web1", MOMENTS[:1], MOMENTS[:1], now_ns=NEWEST + 400 * DAY)
    assert third.words.startswith("1 of 1 moments of web1 would go, more than a third (from 2026-11-18T")
    assert "nothing of it would be left" in last.words
    assert "400 d after the newest moment of web1. Is the clock right?" in clock.words


def test_the_delay_is_72_hours_until_somebody_sets_it() -> None:
    assert delay_in_force([], NEWEST) == DEFAULT_DELAY == 72 * HOUR
    assert gone_at(NEWEST, [], now_ns=NEWEST) == NEWEST + 72 * HOUR


def test_a_lowered_delay_takes_effect_after_the_old_one() -> None:
    settings = [DelaySetting(NEWEST, HOUR)]
    assert delay_in_force(settings, NEWEST + 72 * HOUR - 1) == 72 * HOUR
    assert delay_in_force(settings, NEWEST + 72 * HOUR) == HOUR
    dropped = NEWEST + 71 * HOUR
    assert gone_at(dropped, settings, now_ns=NEWEST + 100 * HOUR) == dropped + 72 * HOUR


def test_lowering_in_steps_does_not_shorten_it() -> None:
    settings = [DelaySetting(NEWEST, 10 * HOUR), DelaySetting(NEWEST + HOUR, 0)]
    assert delay_in_force(settings, NEWEST + 71 * HOUR) == 72 * HOUR
    assert delay_in_force(settings, NEWEST + 72 * HOUR) == 0


def test_a_raised_delay_protects_at_once_also_what_was_dropped_before() -> None:
    settings = [DelaySetting(NEWEST, 1000 * HOUR)]
    assert delay_in_force(settings, NEWEST) == 1000 * HOUR
    assert gone_at(NEWEST - HOUR, settings, now_ns=NEWEST) == NEWEST + 999 * HOUR
    assert gone_at(NEWEST - HOUR, settings, now_ns=NEWEST - 1) == NEWEST + 71 * HOUR
