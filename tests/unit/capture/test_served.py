# SPDX-License-Identifier: AGPL-3.0-or-later
"""How long requests took, from the counts in the shared page."""

from __future__ import annotations

import pytest

from everywhen.capture.counters import Counters


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
    assert 5_000_000 <= counters.served_within(0.999) <= 6_700_000
    assert counters.worst_ns() == 5_000_000
    counters.clear(1)
    assert counters.worst_ns() == 20_000
    counters.close()


@pytest.mark.parametrize("took_ns", [0, 1, 2, 3, 1 << 50])
def test_odd_times(counters: Counters, took_ns: int) -> None:
    counters.received(0, 1, 1, 1)
    counters.answered(0, 1, took_ns)
    assert counters.served_within(1) > 0
    counters.close()
