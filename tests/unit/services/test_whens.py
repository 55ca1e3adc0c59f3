# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which moment an address means, and what is said when there is none."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from everywhen.services.addresses import Address, parse_address
from everywhen.services.ages import SECOND
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.moments import Moment
from everywhen.services.naming import find_vm
from everywhen.services.times import folder_time, parse_time, rfc3339, zone_label, zone_named
from everywhen.services.whens import Found, Latest, Marked, PointNamed, parse_when, resolve

BERLIN = ZoneInfo("Europe/Berlin")


def ns(text: str) -> int:
    local = datetime.fromisoformat(text)
    aware = local if local.tzinfo else local.replace(tzinfo=BERLIN)
    return int(aware.timestamp()) * SECOND


NOW = ns("2026-11-22 10:04:00")
MOMENTS = [
    Moment("p-6xc2m0000000", ns("2025-12-31 23:00"), "application"),
    Moment("p-7fw0a1000000", ns("2026-11-22 08:41:10"), "application", "before update"),
    Moment("p-7fx4k8000000", ns("2026-11-22 09:00:00") + 300_000_000, "crash"),
    Moment("p-7fx9c2000000", ns("2026-11-22 10:00:00"), "none", "2026 audit"),
]


def find(written: str, *, exact: bool = False, moments: list[Moment] = MOMENTS) -> Found:
    return resolve("web1", parse_when(written, now_ns=NOW, zone=BERLIN), moments, zone=BERLIN, exact=exact)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("web1", Address("web1")),
        ("web1/vda", Address("web1", "vda")),
        ("web1@10:32:05", Address("web1", None, "10:32:05")),
        ("fs1@00:41:23:/srv/files", Address("fs1", None, "00:41:23", "/srv/files")),
        ("vm1/vda@-10m:/p2/etc/passwd", Address("vm1", "vda", "-10m", "/p2/etc/passwd")),
        ("vm1@-10m:/C:/Users/ann@home", Address("vm1", None, "-10m", "/C:/Users/ann@home")),
        ("web1:/", Address("web1", None, None, "/")),
        ('web1@"before update"', Address("web1", None, '"before update"')),
        ("My%20VM%40host/vda", Address("My VM@host", "vda")),
        ("b\u00fcro%3A%2Fx@latest", Address("b\u00fcro:/x", None, "latest")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "@latest", "web1@", "web1/", "web1/VDA", "a/b/c", "my vm", "a@b@latest", "web1:", "100%", "%ff"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(WrongUsage):
        parse_address(text)


@pytest.mark.parametrize(
    ("written", "point", "exact"),
    [
        ("latest", "p-7fx9c2000000", True),
        ("p-7fx9", "p-7fx9c2000000", True),
        ("P-6XC2M0000000", "p-6xc2m0000000", True),
        ('"before update"', "p-7fw0a1000000", True),
        ("before update", "p-7fw0a1000000", True),
        ('"2026 audit"', "p-7fx9c2000000", True),
        ("2026-11-22T09:00:00Z", "p-7fx9c2000000", True),
        ("2026-11-22 09:00", "p-7fx4k8000000", True),  # taken at 09:00:00.3 and listed as 09:00:00
        ("09:00:00.2", "p-7fw0a1000000", False),
        ("2026-11-22 08:59:59", "p-7fw0a1000000", False),
        ("2026-11-22 09:00+02:00", "p-6xc2m0000000", False),
        ("09:59", "p-7fx4k8000000", False),
        ("2026-11-21", "p-6xc2m0000000", False),
        ("2026-11-22", "p-7fx9c2000000", True),
        ("yesterday", "p-6xc2m0000000", False),
        ("yesterday 18:00", "p-6xc2m0000000", False),
        ("-10m", "p-7fx4k8000000", False),
        ("-1h4m", "p-7fw0a1000000", False),
        ("2026-11-22_08.00.00Z", "p-7fx4k8000000", True),
        ("2030-01-01", "p-7fx9c2000000", False),
    ],
)
def test_the_latest_moment_not_after_when(written: str, point: str, exact: bool) -> None:
    found = find(written)
    assert (found.moment.id, found.exact) == (point, exact)


def test_the_answer_says_which_moment_it_was() -> None:
    assert find("-10m").words("web1", BERLIN) == (
        "web1 at 2026-11-22 09:00:00 CET, UTC+1 (recovery point p-7fx4k8000000; crash-consistent)"
    )
    assert '"before update"; application-consistent' in find("before update").words("web1", BERLIN)
    assert "changed while it was read" in find("latest").words("web1", BERLIN)


def test_exact_refuses_another_and_names_the_neighbours() -> None:
    assert find("09:00", exact=True).moment.id == "p-7fx4k8000000"
    with pytest.raises(NotFound, match="no moment at exactly 09:30") as refusal:
        find("09:30", exact=True)
    assert [line.split()[1] for line in refusal.value.do] == ["web1@p-7fx4k8000000", "web1@p-7fx9c2000000"]


def test_before_history() -> None:
    with pytest.raises(NotFound) as refusal:
        find("2025-06-01")
    assert refusal.value.what == (
        "web1 has no moment before 2025-12-31 23:00:00. You asked for 2025-06-01. The oldest is p-6xc2m0000000."
    )


@pytest.mark.parametrize(
    ("written", "close"), [("p-9", ""), ("p-7fx9c3", " Close: p-7fx9c2000000."), ("befor updat", " Close: before update.")]
)
def test_no_such_point_or_mark(written: str, close: str) -> None:
    with pytest.raises(NotFound) as refusal:
        find(written)
    assert refusal.value.what.endswith(f"{written}.{close}")


def test_what_fits_several_is_refused_with_the_choices() -> None:
    with pytest.raises(WrongUsage, match="p-7fx fits 2 moments of web1") as refusal:
        find("p-7fx")
    assert refusal.value.do == [
        "Say web1@p-7fx9c2000000 (2026-11-22 10:00:00 CET, UTC+1).",
        "Say web1@p-7fx4k8000000 (2026-11-22 09:00:00 CET, UTC+1).",
    ]
    with pytest.raises(WrongUsage, match="fits 2 moments"):
        find('"m"', moments=[Moment("p-a", 1, mark="m"), Moment("p-b", 2, mark="m")])


def test_single_writes_are_not_kept_yet_and_the_nearest_point_is_named() -> None:
    with pytest.raises(NotFound, match="no single writes") as refusal:
        find("10:00~3")
    assert "web1@p-7fx9c2000000" in refusal.value.do[0]


def test_no_moments_at_all() -> None:
    with pytest.raises(NotFound, match="no moments yet"):
        find("latest", moments=[])


@pytest.mark.parametrize(
    "written",
    ['""', '"open', "~3", "-", "-10", "25:00", "2026-13-01", "2026-11-22 10", "10:32:05 guest", "p-!", "1", "09:00+99:00"],
)
def test_what_is_no_when(written: str) -> None:
    with pytest.raises(WrongUsage) as refusal:
        parse_when(written, now_ns=NOW, zone=BERLIN)
    assert "look" in str(refusal.value) + "".join(refusal.value.do) or "A moment is" in "".join(refusal.value.do)


def test_a_mark_that_looks_like_something_else_needs_its_quotes() -> None:
    def target(text: str) -> object:
        return parse_when(text, now_ns=NOW, zone=BERLIN).target

    assert target("latest") == Latest()
    assert target('"latest"') == Marked("latest")
    assert target("p-7") == PointNamed("p-7")
    assert target('"p-7"') == Marked("p-7")
    assert target('"100% done"') == Marked("100% done")
    assert target('"50%2520 %22x%22 a:%2Fb %40"') == Marked('50%20 "x" a:/b @')


def test_an_hour_that_occurs_twice_is_refused_with_both_readings() -> None:
    with pytest.raises(WrongUsage) as refusal:
        parse_time("2026-10-25 02:30", now_ns=NOW, zone=BERLIN)
    assert refusal.value.what == (
        "2026-10-25 02:30 happened twice. Say 2026-10-25 02:30+02:00 (first) or 2026-10-25 02:30+01:00 (second)."
    )
    readings = [parse_time(text, now_ns=NOW, zone=BERLIN).earliest_ns for text in refusal.value.do]
    assert readings == [ns("2026-10-25 00:30+00:00"), ns("2026-10-25 01:30+00:00")]
    assert parse_time("2026-10-25 03:00", now_ns=NOW, zone=BERLIN).earliest_ns == ns("2026-10-25 02:00+00:00")


def test_an_hour_that_never_was_is_named() -> None:
    with pytest.raises(WrongUsage) as refusal:
        parse_time("2026-03-29 02:30", now_ns=NOW, zone=BERLIN)
    assert refusal.value.what == (
        "2026-03-29 02:30 did not happen: the clocks were put forward. "
        "Say 2026-03-29 02:30+01:00 (shown as 03:30) or 2026-03-29 02:30+02:00 (shown as 01:30)."
    )


def test_a_time_still_to_come_today_is_not_the_newest_moment() -> None:
    with pytest.raises(WrongUsage, match="still to come"):
        parse_time("10:05", now_ns=NOW, zone=BERLIN)


def test_instants_are_written_exactly() -> None:
    instant = ns("2026-11-21 10:32:05+00:00")
    assert rfc3339(instant) == "2026-11-21T10:32:05Z"
    assert rfc3339(instant + 912_000_000) == "2026-11-21T10:32:05.912Z"
    assert parse_time("2026-11-21_10.32.05Z", now_ns=NOW, zone=BERLIN).earliest_ns == instant
    for exact in (False, True):
        assert parse_time(folder_time(instant, exact=exact), now_ns=NOW, zone=BERLIN).earliest_ns == instant
    precise = parse_time(folder_time(instant + 7, exact=True), now_ns=NOW, zone=BERLIN)
    assert precise.earliest_ns == precise.latest_ns == instant + 7
    assert zone_label(instant, BERLIN) == "CET, UTC+1"
    assert zone_label(instant, ZoneInfo("Asia/Kathmandu")) == "UTC+5:45"
    assert zone_label(instant, UTC) == "UTC"


@pytest.mark.parametrize(
    ("folder", "plain"),
    [
        ("2026-11-21_10.32", "2026-11-21 10:32"),
        ("2026-11-21_10.32Z", "2026-11-21 10:32Z"),
        ("2026-11-21_10.32.05", "2026-11-21 10:32:05"),
        ("2026-11-21_10.32.05.9Z", "2026-11-21 10:32:05.9Z"),
    ],
)
def test_times_as_folder_names(folder: str, plain: str) -> None:
    assert parse_time(folder, now_ns=NOW, zone=BERLIN) == parse_time(plain, now_ns=NOW, zone=BERLIN)


def test_zones_by_name() -> None:
    assert zone_named("Europe/Berlin") == BERLIN
    for wrong in ("Europe/Atlantis", "../etc/passwd", "", "Europe"):
        with pytest.raises(WrongUsage, match="No time zone"):
            zone_named(wrong)


def test_an_unknown_vm_is_named_with_the_nearest_one() -> None:
    vms = {"web1": "Web Server", "db1": "db", "db1-2": "db"}
    assert find_vm("web1", vms, where="Firm") == find_vm("Web Server", vms, where="Firm") == "web1"
    with pytest.raises(NotFound) as unknown:
        find_vm("wbe1", vms, where="Firm")
    assert unknown.value.what == 'No VM "wbe1" in Firm. Close: web1.'
    with pytest.raises(WrongUsage, match='2 VMs are called "db"'):
        find_vm("db", vms, where="Firm")
    with pytest.raises(NotFound, match=r'^No VM "quite other" in Firm\.$'):
        find_vm("quite other", vms, where="Firm")
