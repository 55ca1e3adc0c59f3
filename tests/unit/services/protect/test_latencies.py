# SPDX-License-Identifier: AGPL-3.0-or-later
"""Added latency by disk and minute, out of counters that only ever grow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from everywhen.capture.counters import TAP, Counters
from everywhen.repository.minutes import PER_DAY
from everywhen.services.ages import MINUTE, SECOND
from everywhen.services.protect.latencies import Latencies

NAMES = ["vda", "vdb"]
START = (20_000 * PER_DAY + PER_DAY - 1) * MINUTE
"""The last minute of a day."""
Told = dict[tuple[int, int, str], tuple[int, int]]


@pytest.fixture
def counters() -> Iterator[Counters]:
    """Of a sink whose connection 0 is no tap, 1 is vda's and 2 is vdb's."""
    found = Counters.create()
    found.put_of(1, TAP, 1)
    found.put_of(2, TAP, 2)
    yield found
    found.close()


def told(latencies: Latencies) -> Told:
    return {
        (number, minute, name): (row.median, row.worst)
        for number, day in latencies.days(NAMES).items()
        for name, rows in day.disks.items()
        for minute, row in rows.items()
    }


def answer(counters: Counters, connection: int, took_ns: int, requests: int = 1) -> None:
    counters.received(connection, 1, requests, 1)
    counters.answered(connection, requests, took_ns)


def near(found: tuple[int, int], median: int, worst: int) -> bool:
    """Up to a third more."""
    return median <= found[0] <= 1.34 * median and worst <= found[1] <= 1.34 * worst


def test_each_minute_has_its_own(counters: Counters) -> None:
    latencies = Latencies()
    latencies.look(START, counters)
    assert told(latencies) == {}
    answer(counters, 0, 1 << 40)
    answer(counters, 1, 20_000, 9)
    answer(counters, 1, 3_000_000)
    latencies.look(START + SECOND, counters)
    answer(counters, 1, 20_000, 20)
    answer(counters, 2, 50_000)
    latencies.look(START + MINUTE, counters)
    found = told(latencies)
    assert sorted(found) == [(20_000, PER_DAY - 1, "vda"), (20_001, 0, "vda"), (20_001, 0, "vdb")]
    assert near(found[20_000, PER_DAY - 1, "vda"], 20_000, 3_000_000)
    assert found[20_000, PER_DAY - 1, "vda"][1] == 3_000_000, "the worst of all is exact"
    assert near(found[20_001, 0, "vda"], 20_000, 20_000)
    assert near(found[20_001, 0, "vdb"], 50_000, 50_000)


def test_what_was_kept_is_not_said_again_but_a_minute_that_goes_on_is_said_as_a_whole(counters: Counters) -> None:
    latencies = Latencies()
    answer(counters, 1, 20_000)
    latencies.look(START, counters)
    answer(counters, 1, 5_000_000)
    latencies.look(START + MINUTE, counters)
    latencies.forget(START + MINUTE)
    assert list(told(latencies)) == [(20_001, 0, "vda")]
    answer(counters, 1, 1_000, 3)
    latencies.look(START + MINUTE + 59 * SECOND, counters)
    assert near(told(latencies)[20_001, 0, "vda"], 1_000, 5_000_000)
    latencies.forget(START + 2 * MINUTE)
    latencies.look(START + 2 * MINUTE, counters)
    assert told(latencies) == {}


def test_a_connection_that_was_given_away_is_counted_anew(counters: Counters) -> None:
    latencies = Latencies()
    answer(counters, 1, 2_000, 50)
    latencies.look(START, counters)
    counters.clear(1)
    counters.put_of(1, TAP, 2)
    answer(counters, 1, 1_000_000, 7)
    latencies.look(START + MINUTE, counters)
    found = told(latencies)
    assert sorted(name for *_, name in found) == ["vda", "vdb"]
    assert near(found[20_001, 0, "vdb"], 1_000_000, 1_000_000)
