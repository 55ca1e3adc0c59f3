# SPDX-License-Identifier: AGPL-3.0-or-later
"""How long requests took, from the counts in the shared page."""

from __future__ import annotations

import pytest

from everywhen.capture.counters import REQUESTS, WORST_NS, Counters


@pytest.fixture
def counters() -> Counters:
    return Counters.create()


def test_shares_of_requests_over_all_connections(counters: Counters) -> None:
    assert counters.served_within(0.5) == 0
    for connection, took_ns, requests in ((0, 20_000, 900), (1, 90_000, 95), (1, 5_000_000, 5)):
        counters.count_served(connection, took_ns, requests)
        counters.put_of(connection, REQUESTS, counters.of(connection, REQUESTS) + requests)
        counters.put_of(connection, WORST_NS, took_ns)
    assert 20_000 <= counters.served_within(0.5) <= 27_000
    assert 90_000 <= counters.served_within(0.99) <= 120_000
    assert 5_000_000 <= counters.served_within(0.999) <= 6_700_000
    assert counters.worst_ns() == 5_000_000
    counters.clear(1)
    assert counters.worst_ns() == 20_000
    counters.close()


@pytest.mark.parametrize("took_ns", [0, 1, 2, 3, 1 << 50])
def test_odd_times(counters: Counters, took_ns: int) -> None:
    counters.count_served(0, took_ns, 1)
    counters.put_of(0, REQUESTS, 1)
    assert counters.served_within(1) > 0
    counters.close()
