# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is drawn of a history, character by character."""

from __future__ import annotations

from datetime import UTC
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from everywhen.formats.ids import PointId
from everywhen.formats.point import RecoveryPoint
from everywhen.interfaces.cli.timeline_picture import ASCII, BLOCKS, LABEL, legend, picture
from everywhen.services.ages import DAY, HOUR, MINUTE, SECOND
from everywhen.services.timeline import Change, Coverage, Missing, Timeline, cells

NOON = 1_795_348_800 * SECOND
"""2026-11-22 12:00 UTC."""


def point(time_ns: int, reached: str = "crash", mark: str | None = None) -> RecoveryPoint:
    return RecoveryPoint(PointId("p-" + "a" * 12), "a" * 32, time_ns, 1, 1, None, reached, reached, "", {}, mark=mark)


LINE = Timeline(
    [point(NOON), point(NOON + 10 * MINUTE, "application", "x"), point(NOON + 10 * MINUTE + 1)],
    [Coverage(NOON, NOON + 5 * MINUTE), Coverage(NOON + 5 * MINUTE + SECOND, NOON + 15 * MINUTE)],
    [
        Missing(NOON + 5 * MINUTE, NOON + 5 * MINUTE + SECOND, "a cause"),
        Missing(NOON + 15 * MINUTE, None, "another one"),
    ],
    [Change(NOON, NOON + MINUTE, 400), Change(NOON + MINUTE, NOON + 2 * MINUTE, 100)],
)


def drawn(line: Timeline, begin: int, end: int, count: int = 20) -> list[str]:
    return picture(cells(line, begin, end, count), begin, end, UTC, ASCII, lambda point: point.reached == "crash")


def test_rows() -> None:
    assert drawn(LINE, NOON, NOON + 20 * MINUTE) == [
        "        12:00          12:15",
        "changed @#",
        "writes  #####x#########?????",
        "points  c         A",
        "events  H         M",
    ]


def test_what_is_not_there_takes_no_row() -> None:
    assert drawn(Timeline([point(NOON)], [], [], []), NOON - HOUR, NOON + HOUR)[1:] == [
        "points            c",
        "events            H",
    ]
    assert drawn(Timeline([], [], [], []), NOON, NOON + HOUR) == ["        12:00     12:30    13:00"]


def test_the_legend_explains_what_is_there() -> None:
    parts = cells(LINE, NOON, NOON + 20 * MINUTE, 20)
    told = legend(parts, BLOCKS, lambda point: False)
    assert told == "█ every write   ░ gap   ▒ gap until now   c crash   A application   M mark"
    assert legend([], BLOCKS, lambda point: True) == ""


@pytest.mark.parametrize("length", [SECOND, 7 * SECOND, 90 * SECOND, HOUR, DAY, 20 * DAY, 400 * DAY, 36_525 * DAY])
@pytest.mark.parametrize("count", [20, 86, 300])
def test_times_of_the_axis_do_not_touch(length: int, count: int) -> None:
    end = 36_525 * DAY + NOON
    (axis,) = drawn(Timeline([], [], [], []), end, end + length, count)
    labels = axis[LABEL:].split()
    assert labels
    assert len(axis) <= LABEL + count + 10
    assert len(set(map(len, labels))) <= 2, "none runs into the next"


def test_days_begin_at_midnight_also_when_the_clocks_were_changed() -> None:
    zone = ZoneInfo("Europe/Berlin")
    begin = NOON - 60 * DAY  # in summer
    (axis,) = picture(cells(Timeline([], [], [], []), begin, NOON, 100), begin, NOON, zone, ASCII, lambda _: False)
    days = axis.split()[0::2]
    assert [int(later) - int(earlier) for earlier, later in pairwise(days)].count(-1) == 0
