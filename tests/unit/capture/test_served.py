# SPDX-License-Identifier: AGPL-3.0-or-later
"""How long requests took, from the counts in the shared page."""

from __future__ import annotations

import pytest

from everywhen.capture.counters import TAP, Counters, within


@pytest.fixture
def counters() -> Counters:
    return Counters.create()


def test_shares_of_requests_over_all_connections(counters: Counters) -> None:
    assert counters.served_within(0.5) == 0
    for connection, took_ns, requests in ((0, 20_000, 900), (1, 90_000, 95), (1, 5_000_000, 5)):
        counters.received(connection, 1, requests, 1)
        counters.answered(connection, requests, took_ns)
    assert 20_000 <= counters.served_within(0.5) <= 27_000
    assert 90_000 <= counters.served_within(0.99) <= 120_000
    assert counters.served_within(0.999) == 5_000_000, "no more than the longest took, however it was counted"
    assert counters.worst_ns() == 5_000_000
    counters.clear(1)
    assert counters.worst_ns() == 20_000
    counters.close()


@pytest.mark.parametrize("took_ns", [0, 1, 2, 3, 1 << 50])
def test_odd_times(counters: Counters, took_ns: int) -> None:
    counters.received(0, 1, 1, 1)
    counters.answered(0, 1, took_ns)
    assert counters.served_within(0.5) == counters.served_within(1)
    assert bool(took_ns) <= counters.served_within(1) <= took_ns
    counters.close()


def test_of_each_tap(counters: Counters) -> None:
    for connection, disk in ((4, 1), (7, 0)):
        counters.put_of(connection, TAP, disk + 1)
        counters.received(connection, 1, 3, 1)
        counters.answered(connection, 3, 1000 * connection)
    counters.received(5, 1, 1, 1)
    counters.answered(5, 1, 1 << 30)
    found = [(connection, disk, sum(counts), worst) for connection, disk, counts, worst in counters.taps()]
    assert found == [(4, 1, 3, 4000), (7, 0, 3, 7000)]
    assert [4000 <= within(counts, 1) <= 5400 for _, _, counts, _ in counters.taps()] == [True, False]
    counters.close()
