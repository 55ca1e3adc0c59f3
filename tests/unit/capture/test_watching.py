# SPDX-License-Identifier: AGPL-3.0-or-later
"""When the watchdog takes the sink away: when work waits and nothing moves for longer than the limit, and only then."""

from __future__ import annotations

from everywhen.capture.watching import LIMIT_NS, Seen, look

STEP = 20_000_000


def test_an_idle_connection_never_stalls() -> None:
    seen = Seen()
    assert not any(look(seen, now, 0, 5, 5, 0) for now in range(STEP, 100 * LIMIT_NS, LIMIT_NS))


def test_unread_bytes_that_nobody_reads() -> None:
    seen = Seen()
    looks = [look(seen, now, 28, 7, 7, 0) for now in range(STEP, 2 * LIMIT_NS, STEP)]
    assert looks.index(True) * STEP == LIMIT_NS + STEP


def test_a_slow_sink_that_moves_is_left_alone() -> None:
    seen = Seen()
    assert not any(look(seen, now, 28, now, 7, 0) for now in range(STEP, 20 * LIMIT_NS, STEP))


def test_a_request_unanswered_for_too_long_although_bytes_come_in() -> None:
    seen = Seen()
    looks = [look(seen, now, 28, now, 7, STEP) for now in range(STEP, 3 * LIMIT_NS, STEP)]
    assert looks.index(True) * STEP == LIMIT_NS + STEP


def test_waiting_begins_anew_after_rest() -> None:
    seen = Seen()
    assert not look(seen, STEP, 28, 1, 1, 0)
    assert not look(seen, LIMIT_NS, 0, 1, 1, 0)
    assert not look(seen, 3 * LIMIT_NS, 28, 1, 1, 0)
    assert look(seen, 5 * LIMIT_NS, 28, 1, 1, 0)
