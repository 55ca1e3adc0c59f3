# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a policy keeps, in cases that a person can check by hand."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

from everywhen.services.ages import DAY, HOUR, MINUTE, SECOND
from everywhen.services.keep.retention import DEFAULT, Policy, parse_terms
from everywhen.services.keep.thinning import Hold, Plan, plan
from everywhen.services.moments import Moment

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, consistency: str = "crash") -> Moment:
    local = datetime.fromisoformat(text)
    aware = local if local.tzinfo else local.replace(tzinfo=BERLIN)
    return Moment(text, int(aware.timestamp()) * SECOND, consistency)


def thin(line: str, *moments: Moment, holds: tuple[Hold, ...] = (), now: str = "", by_calendar: bool = False) -> Plan:
    now_ns = at(now).time_ns if now else max(moment.time_ns for moment in moments)
    return plan(Policy(parse_terms(line), BERLIN, by_calendar), moments, holds=holds, now_ns=now_ns)


def kept(found: Plan) -> dict[str, tuple[str, ...]]:
    return {decision.moment.id: decision.kept_as for decision in found.decisions if decision.kept_as}


def test_terms_add_up_and_each_is_named() -> None:
    found = thin(
        "all 1h, hourly 3h, daily 7d",
        at("2026-11-20 23:50"),
        at("2026-11-21 10:10"),
        at("2026-11-21 10:50"),
        at("2026-11-21 12:00"),
    )
    assert kept(found) == {
        "2026-11-21 12:00": ("all", "hourly", "daily"),
        "2026-11-21 10:50": ("hourly",),
        "2026-11-20 23:50": ("daily",),
    }
    assert [moment.id for moment in found.dropped] == ["2026-11-21 10:10"]


def test_the_best_consistency_of_a_period_wins_then_the_newest() -> None:
    morning, noon = at("2026-11-20 08:00", "application"), at("2026-11-20 12:00", "application")
    evening = at("2026-11-20 20:00", "filesystem")
    found = thin("daily 9d", morning, noon, evening, at("2026-11-21 00:00", "none"))
    assert list(kept(found)) == ["2026-11-21 00:00", "2026-11-20 12:00"]


def test_an_instant_that_a_group_has_in_common_wins_over_later_ones_that_are_no_better() -> None:
    common = replace(at("2026-11-20 12:00"), common=True), replace(at("2026-11-20 12:05"), common=True)
    alone, newest = at("2026-11-20 12:06"), at("2026-11-21 00:00")
    assert list(kept(thin("daily 9d", *common, alone, newest))) == ["2026-11-21 00:00", "2026-11-20 12:05"]
    better = at("2026-11-20 11:00", "filesystem")
    assert list(kept(thin("daily 9d", *common, alone, better, newest))) == ["2026-11-21 00:00", "2026-11-20 11:00"]


def test_days_without_a_moment_shift_nothing() -> None:
    found = thin("daily 30d", at("2026-10-25 10:00"), at("2026-10-26 10:00"), at("2026-11-21 10:00"))
    assert len(kept(found)) == 3


def test_ages_count_from_the_newest_moment_not_from_the_clock() -> None:
    old = at("2025-11-20 10:00"), at("2025-11-21 10:00")
    assert not thin("all 2d", *old, now="2026-11-21 10:00").dropped
    by_law = thin("all 2d", *old, now="2026-11-21 10:00", by_calendar=True)
    assert kept(by_law) == {"2025-11-21 10:00": ("newest",)}


def test_exactly_as_old_as_the_age_is_within_it() -> None:
    newest = at("2026-11-21 10:00")
    edge, beyond = Moment("edge", newest.time_ns - 24 * HOUR), Moment("beyond", newest.time_ns - 24 * HOUR - 1)
    assert [m.id for m in thin("every-write 24h", newest, edge, beyond).dropped] == ["beyond"]


def test_months_are_counted_on_the_calendar() -> None:
    found = thin("all 1mo", at("2026-03-31 10:00"), at("2026-02-28 10:00"), at("2026-02-28 09:59"))
    assert [m.id for m in found.dropped] == ["2026-02-28 09:59"]
    found = thin("all 1y", at("2028-02-29 10:00"), at("2027-02-28 10:00"), at("2027-02-28 09:59"))
    assert [m.id for m in found.dropped] == ["2027-02-28 09:59"]


def test_a_month_ago_is_exact_to_the_nanosecond_and_takes_the_first_of_two_readings() -> None:
    newest, edge = at("2026-03-31 10:00"), at("2026-02-28 10:00")
    half = Moment("newest", newest.time_ns + 500), Moment("edge", edge.time_ns + 500), Moment("beyond", edge.time_ns + 499)
    assert [m.id for m in thin("all 1mo", *half).dropped] == ["beyond"]
    second = at("2026-10-25T02:30:00+01:00")
    first = at("2020-10-25T02:30:00+02:00")  # clocks were put back that night, too
    assert thin("all 6y", second, first).dropped == []


def test_days_end_in_the_zone_of_the_policy_and_weeks_begin_on_monday() -> None:
    before, after = at("2026-11-20T22:59:00+00:00"), at("2026-11-20T23:01:00+00:00")  # midnight in Berlin between them
    assert len(kept(thin("daily 9d", before, after))) == 2
    saturday, sunday, monday = at("2026-11-21 12:00"), at("2026-11-22 12:00"), at("2026-11-23 12:00")
    assert list(kept(thin("weekly 9w", saturday, sunday, monday))) == ["2026-11-23 12:00", "2026-11-22 12:00"]


def test_the_hour_that_occurs_twice_is_two_hours() -> None:
    first, second = at("2026-10-25T02:10:00+02:00"), at("2026-10-25T02:10:00+01:00")
    assert len(kept(thin("hourly 9d", first, second))) == 2


def test_last_keeps_by_number_and_the_newest_stays_in_any_case() -> None:
    found = thin("last 2", at("2020-01-01 10:00"), at("2021-01-01 10:00"), at("2026-01-01 10:00"))
    assert list(kept(found)) == ["2026-01-01 10:00", "2021-01-01 10:00"]
    assert thin("daily 1d", at("2026-01-01 10:00"), by_calendar=True, now="2036-01-01 10:00").dropped == []


def test_a_hold_keeps_until_its_end() -> None:
    moments = at("2024-01-01 10:00"), at("2026-11-21 10:00")
    end = at("2027-01-01 00:00").time_ns
    hold = (Hold("2024-01-01 10:00", "audit", end), Hold("p-gone", "of another VM", None))
    assert kept(thin("last 1", *moments, holds=hold, now="2026-12-31 23:59"))["2024-01-01 10:00"] == ("held",)
    assert len(thin("last 1", *moments, holds=hold, now="2027-01-01 00:00").dropped) == 1


def test_no_moments_no_decisions() -> None:
    assert plan(Policy(parse_terms(DEFAULT), BERLIN), [], now_ns=0).decisions == ()


def test_a_hundred_thousand_moments_take_well_under_a_second() -> None:
    start = at("2020-01-01 00:00").time_ns
    moments = [Moment(f"p-{number:012}", start + number * 35 * MINUTE) for number in range(100_000)]
    policy = Policy(
        parse_terms("every-write 24h, all 3d, hourly 7y, daily 7y, weekly 260w, monthly 84mo, yearly 9y, last 3"), BERLIN
    )
    began = time.process_time()
    found = plan(policy, moments, now_ns=moments[-1].time_ns)
    seconds = time.process_time() - began
    assert len(found.kept) > 58_000
    assert moments[-1].time_ns - moments[0].time_ns > 6 * 365 * DAY
    assert seconds < 2  # 0.5 s alone on a machine of 2026; the margin is for a busy one


def test_the_moment_that_names_a_branch_stays_as_long_as_anything_of_it() -> None:
    goal, left, end = at("2026-11-20 10:00"), at("2026-11-20 11:00"), at("2026-11-20 12:00")
    turn = replace(at("2026-11-20 12:01"), left_ns=goal.time_ns)
    newest = at("2026-11-21 12:00")
    found = kept(thin("hourly 3h", goal, left, end, turn, newest))
    assert found == {"2026-11-21 12:00": ("hourly",)}
    held = (Hold(left.id, "invoice"),)
    found = kept(thin("hourly 3h", goal, left, end, turn, newest, holds=held))
    assert found == {"2026-11-21 12:00": ("hourly",), "2026-11-20 12:01": ("branch",), "2026-11-20 11:00": ("held",)}
    found = kept(thin("hourly 3h", goal, left, end, turn, newest, holds=(Hold(goal.id, "before"),)))
    assert "2026-11-20 12:01" not in found, "what was gone back to is not left"
