# SPDX-License-Identifier: AGPL-3.0-or-later
"""Retention against a naive reference, and what must hold for every policy and history."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everywhen.formats.point import CONSISTENCIES
from everywhen.services.ages import DAY, HOUR, SECOND
from everywhen.services.failures import WrongUsage
from everywhen.services.keep.retention import KINDS, UNITS, Policy, Term, nearest_term, parse_terms
from everywhen.services.keep.thinning import Hold, plan
from everywhen.services.moments import Moment
from tests.long_forms import SOAK

THOROUGH = settings(max_examples=2_000 if SOAK else 80)
ZONES = ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Havana"]
LABELS = {
    "hourly": "%Y-%m-%d %H {fold}",
    "daily": "%Y-%m-%d",
    "weekly": "%G-%V",
    "monthly": "%Y-%m",
    "yearly": "%Y",
}
START = int(datetime(2026, 10, 25, tzinfo=UTC).timestamp()) * SECOND  # clocks are put back in Europe at 01:00 UTC

terms = st.builds(
    lambda kind, amount, unit: Term(kind, amount, "" if kind == "last" else unit),
    st.sampled_from(KINDS),
    st.integers(1, 9999) | st.integers(1, 5),
    st.sampled_from(list(UNITS)),
)
term_lists = st.lists(terms, min_size=1, max_size=5, unique_by=lambda term: term.kind).map(
    lambda found: tuple(sorted(found, key=lambda term: KINDS.index(term.kind)))
)
policies = st.builds(Policy, term_lists, st.sampled_from(ZONES).map(ZoneInfo), st.booleans())
distances = st.one_of(
    st.integers(-3 * HOUR, 6 * HOUR),
    st.integers(-40, 200).map(lambda n: n * HOUR // 2),
    st.integers(-2000, 900).map(lambda n: n * DAY),
)
jitter = st.sampled_from([0, 0, 1, SECOND - 1])
histories = st.lists(st.tuples(st.builds(int.__add__, distances, jitter), st.sampled_from(CONSISTENCIES)), max_size=25).map(
    lambda found: [Moment(f"p-{number:012}", START + distance, grade) for number, (distance, grade) in enumerate(found)]
)
rolled_back = st.tuples(histories, st.sets(st.integers(0, 24), max_size=3)).map(
    lambda found: [
        replace(moment, left_ns=moment.time_ns - 5 * HOUR) if number in found[1] else moment
        for number, moment in enumerate(found[0])
    ]
)
clocks = st.integers(-3, 400).map(lambda days: START + days * DAY)


def label(kind: str, moment: Moment, zone: ZoneInfo) -> str:
    local = datetime.fromtimestamp(moment.time_ns // SECOND, UTC).astimezone(zone)
    return local.strftime(LABELS[kind]).format(fold=local.fold)


def too_old(term: Term, moment: Moment, start_ns: int, zone: ZoneInfo) -> bool:
    """Months one by one, so that the arithmetic differs from the one under test."""
    if term.unit in ("h", "d", "w"):
        return start_ns - moment.time_ns > term.amount * {"h": HOUR, "d": DAY, "w": 7 * DAY}[term.unit]
    local = datetime.fromtimestamp(start_ns // SECOND, zone).replace(fold=0)
    wanted_day, first = local.day, local.replace(day=1)
    for _ in range(term.amount * (12 if term.unit == "y" else 1)):
        if first.year < 3:
            return False
        first = (first - timedelta(days=1)).replace(day=1)
    local = first
    while local.day < wanted_day and (local + timedelta(days=1)).month == first.month:
        local += timedelta(days=1)
    local = local.replace(fold=0)
    return moment.time_ns < round(local.timestamp()) * SECOND + start_ns % SECOND


def rank(moment: Moment) -> tuple[int, int, str]:
    return CONSISTENCIES.index(moment.consistency), moment.time_ns, moment.id


def reference(policy: Policy, moments: list[Moment], now_ns: int) -> dict[str, set[str]]:
    """Quadratic: a moment stays for a term when no other one of its period beats it."""
    newest = max(moments, key=lambda m: (m.time_ns, m.id))
    start = now_ns if policy.by_calendar else newest.time_ns
    kept: dict[str, set[str]] = {moment.id: set() for moment in moments}
    for term in policy.terms:
        if term.kind == "last":
            for moment in moments:
                if sum((m.time_ns, m.id) > (moment.time_ns, moment.id) for m in moments) < term.amount:
                    kept[moment.id].add(term.kind)
            continue
        young = [m for m in moments if not too_old(term, m, start, policy.zone)]
        for moment in young:
            rivals = [
                m
                for m in young
                if term.kind in LABELS and label(term.kind, m, policy.zone) == label(term.kind, moment, policy.zone)
            ]
            if not rivals or rank(moment) == max(map(rank, rivals)):
                kept[moment.id].add(term.kind)
    return kept


@THOROUGH
@given(policies, histories, clocks)
def test_the_plan_is_the_reference(policy: Policy, moments: list[Moment], now_ns: int) -> None:
    decided = {d.moment.id: set(d.kept_as) for d in plan(policy, moments, now_ns=now_ns).decisions}
    if not moments:
        assert decided == {}
        return
    expected = reference(policy, moments, now_ns)
    newest = max(moments, key=lambda m: (m.time_ns, m.id)).id
    expected[newest] = expected[newest] or {"newest"}
    assert decided == expected


@THOROUGH
@given(policies, histories, clocks, terms)
def test_one_more_term_never_drops_more(policy: Policy, moments: list[Moment], now_ns: int, term: Term) -> None:
    more = Policy((*(t for t in policy.terms if t.kind != term.kind), term), policy.zone, policy.by_calendar)
    less = Policy(tuple(t for t in more.terms if t is not term), policy.zone, policy.by_calendar)
    assert {m.id for m in plan(more, moments, now_ns=now_ns).dropped} <= {
        m.id for m in plan(less, moments, now_ns=now_ns).dropped
    }


@THOROUGH
@given(policies, histories | rolled_back, clocks, st.randoms(use_true_random=False))
def test_thinning_twice_is_thinning_once(policy: Policy, moments: list[Moment], now_ns: int, shuffle: object) -> None:
    first = plan(policy, moments, now_ns=now_ns)
    again = plan(policy, first.kept[::-1], now_ns=now_ns)
    assert again.dropped == []
    assert [d for d in first.decisions if d.kept_as] == list(again.decisions)


@THOROUGH
@given(policies, histories, clocks, st.data())
def test_held_and_newest_always_stay(policy: Policy, moments: list[Moment], now_ns: int, data: st.DataObject) -> None:
    held = data.draw(st.lists(st.sampled_from(moments), unique=True)) if moments else []
    ends = st.none() | st.integers(now_ns + 1, now_ns + 10**18)
    holds = [Hold(moment.id, "audit", data.draw(ends)) for moment in held]
    kept = plan(policy, moments, holds=holds, now_ns=now_ns).kept
    assert set(held) <= set(kept)
    assert not moments or max(moments, key=lambda m: m.order) in kept
    assert set(plan(policy, moments, now_ns=now_ns).kept) <= set(kept)


@THOROUGH
@given(term_lists)
def test_printed_terms_are_read_back(found: tuple[Term, ...]) -> None:
    line = ", ".join(map(str, found))
    assert parse_terms(line) == found
    assert parse_terms(line.upper().replace(", ", " ,  ")) == found


@THOROUGH
@given(st.text(max_size=40) | st.text(alphabet="hourlydaitnmewks -,0123456789", max_size=60))
def test_any_line_is_read_or_refused(line: str) -> None:
    try:
        found = parse_terms(line)
    except WrongUsage:
        return
    assert parse_terms(", ".join(map(str, found))) == found


@THOROUGH
@given(st.text(max_size=30) | st.from_regex(r"[a-z-]{0,8} ?[0-9]{0,6} ?[a-z]{0,7}", fullmatch=True))
def test_the_nearest_term_is_a_right_one(text: str) -> None:
    suggestion = nearest_term(text)
    assert parse_terms(str(suggestion)) == (suggestion,)


@pytest.mark.parametrize(
    "right", ["every-write 24h", "all 3d", "hourly 14d", "weekly 26w", "monthly 24mo", "yearly 5y", "last 3"]
)
def test_the_nearest_of_a_right_term_is_itself(right: str) -> None:
    assert str(nearest_term(right)) == right
