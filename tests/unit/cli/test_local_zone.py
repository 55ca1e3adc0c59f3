# SPDX-License-Identifier: AGPL-3.0-or-later
"""The terminal's time zone: names with rules, and what only the C library understands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest

from everywhen.interfaces.cli.context import local_zone


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], tzinfo]]:
    def of(name: str) -> tzinfo:
        monkeypatch.setenv("TZ", name)
        time.tzset()
        return local_zone({"TZ": name})

    yield of
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("name", "hours"),
    [("UTC0", 0), ("<+03>-3", 3), ("XYZ5", -5), ("Foo/Bar", 0), ("../etc/passwd", 0), ("Europe", 0), ("\N{SNOWMAN}", 0)],
)
def test_what_is_no_name_of_a_zone_is_an_offset(name: str, hours: int, zone: Callable[[str], tzinfo]) -> None:
    assert datetime.now(zone(name)).utcoffset() == timedelta(hours=hours)


def test_rules_that_only_the_c_library_knows_are_todays_offset(zone: Callable[[str], tzinfo]) -> None:
    found = datetime.now(zone("CET-1CEST,M3.5.0,M10.5.0/3")).utcoffset()
    assert found in (timedelta(hours=1), timedelta(hours=2))


def test_a_name_brings_its_rules(zone: Callable[[str], tzinfo]) -> None:
    assert zone(":Europe/Berlin") == zone("Europe/Berlin") == ZoneInfo("Europe/Berlin")
