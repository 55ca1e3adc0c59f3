# SPDX-License-Identifier: AGPL-3.0-or-later
"""Addresses, times, sizes and spans: what is printed is read back, and any text is read or refused with the typed error."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everywhen.services.addresses import Address, parse_address
from everywhen.services.ages import SECOND, parse_span, span
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.moments import Moment
from everywhen.services.sizes import parse_size, size
from everywhen.services.times import Stretch, local_time, parse_time, rfc3339
from everywhen.services.whens import Latest, Marked, PointNamed, parse_when, resolve
from tests.long_forms import SOAK

THOROUGH = settings(max_examples=3_000 if SOAK else 100)
NOW = 1_795_000_000 * SECOND
zones = st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/Havana"]).map(ZoneInfo)
instants = st.integers(0, 4_000_000_000 * SECOND)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)


def quoted(mark: str) -> str:
    """A mark as a WHEN."""
    return f'"{quote(mark, safe="")}"'


whens = st.one_of(st.just("latest"), st.just("-2h30m~3"), texts.map(quoted), instants.map(rfc3339))
branches = st.none() | st.integers(1, 999_999)
paths = st.text(max_size=30).map(lambda path: "/" + path)
pieces = st.lists(
    st.sampled_from(
        [
            "web1",
            "/",
            "@",
            ":/",
            ":",
            "%",
            "%41",
            "%ff",
            '"',
            "~1",
            "-10m",
            "p-",
            "10:32",
            " ",
            "yesterday",
            "2026-10-25",
            "02:30",
        ]
    )
)
hostile = st.text(max_size=40) | pieces.map("".join)


@THOROUGH
@given(st.builds(Address, texts | texts.map("{}~7".format), st.none() | names, st.none() | whens, st.none() | paths, branches))
def test_addresses_are_read_back(address: Address) -> None:
    assert parse_address(str(address)) == address


@THOROUGH
@given(hostile)
def test_any_address_is_read_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except WrongUsage:
        return
    if not any(0xD800 <= ord(char) < 0xE000 for char in address.vm):
        assert parse_address(str(address)) == address


@THOROUGH
@given(hostile, zones)
def test_any_when_is_read_or_refused(text: str, zone: ZoneInfo) -> None:
    moments = [Moment("p-aaaaaaaaaaaa", NOW, mark="web1"), Moment("p-aaaaaaaaaaab", NOW - 1)]
    try:
        found = resolve("web1", parse_when(text, now_ns=NOW, zone=zone), moments, zone=zone)
    except (WrongUsage, NotFound):
        return
    assert found.moment in moments


@THOROUGH
@given(texts, zones)
def test_quoted_marks_are_read_back(mark: str, zone: ZoneInfo) -> None:
    address = parse_address(f"web1@{quoted(mark)}:/etc")
    assert address.when is not None
    assert parse_when(address.when, now_ns=NOW, zone=zone).target == Marked(mark)


@THOROUGH
@given(instants, zones)
def test_exact_times_are_read_back(time_ns: int, zone: ZoneInfo) -> None:
    stretch = parse_time(rfc3339(time_ns), now_ns=NOW, zone=zone)
    assert stretch.earliest_ns <= time_ns <= stretch.latest_ns
    assert parse_time(rfc3339(time_ns).replace("T", "_").replace(":", "."), now_ns=NOW, zone=zone) == stretch
    assert (stretch.earliest_ns == time_ns) or time_ns % SECOND == 0


@THOROUGH
@given(instants, zones)
def test_a_time_copied_from_a_listing_reaches_its_moment(time_ns: int, zone: ZoneInfo) -> None:
    shown = local_time(time_ns, zone)
    try:
        stretch = parse_time(shown, now_ns=NOW, zone=zone)
    except WrongUsage as refusal:
        readings = [parse_time(reading, now_ns=NOW, zone=zone) for reading in refusal.do]
        assert any(reading.earliest_ns <= time_ns <= reading.latest_ns for reading in readings)
    else:
        assert stretch == Stretch(time_ns // SECOND * SECOND, time_ns // SECOND * SECOND + SECOND - 1)


@THOROUGH
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(0, 50))
def test_the_latest_one_not_after(times: list[int], asked: int) -> None:
    zone = ZoneInfo("UTC")
    moments = [Moment(f"p-{number:012}", time * SECOND) for number, time in enumerate(times)]
    when = parse_when(rfc3339(asked * SECOND), now_ns=NOW, zone=zone)
    before = [time for time in times if time <= asked]
    if not before:
        with pytest.raises(NotFound, match="no moment before"):
            resolve("web1", when, moments, zone=zone)
        return
    found = resolve("web1", when, moments, zone=zone)
    assert found.moment.time_ns == max(before) * SECOND
    assert found.exact == (asked in times)


@THOROUGH
@given(st.from_regex(r"p-[0-9a-z]{1,12}", fullmatch=True), zones)
def test_ids_are_ids(text: str, zone: ZoneInfo) -> None:
    assert parse_when(text, now_ns=NOW, zone=zone).target == PointNamed(text)
    assert parse_when("latest", now_ns=NOW, zone=zone).target == Latest()


@THOROUGH
@given(hostile | st.from_regex(r"[0-9]{1,20}(\.[0-9]{1,12})? ?[kKMGTPEiB%]{0,3}", fullmatch=True))
def test_any_size_and_span_is_read_or_refused(text: str) -> None:
    for parse in (parse_size, parse_span):
        with suppress(WrongUsage):
            assert parse(text) >= 0


@THOROUGH
@given(st.integers(0, 10**20))
def test_a_shown_size_is_near(count: int) -> None:
    assert abs(parse_size(size(count)) - count) * 1000 <= max(51 * count, 0)


@THOROUGH
@given(st.integers(0, 999 * 86400 * SECOND))
def test_a_shown_span_is_near(ns: int) -> None:
    shown = span(ns)
    if ns >= 10 * SECOND:
        read = parse_span(shown.replace("min", "m").replace(" ", ""))
        assert abs(read - ns) <= max(SECOND // 2, ns // 40)
