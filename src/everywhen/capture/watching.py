# SPDX-License-Identifier: AGPL-3.0-or-later
"""When the sink must be taken away from QEMU: the watchdog's judgement, without I/O.

A connection stalls when work waits and nothing moves: bytes lie unread in its socket, or a request is unanswered, and neither
what the sink received nor what it answered has changed. Healthy sinks showed single outliers of 14 to 63 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

LIMIT_NS = 200_000_000
EVERY_S = 0.02


@dataclass(slots=True)
class Seen:
    """A connection as it was at the last look; `since_ns`: since when work waits without anything moving, 0 for not at all."""

    received: int = 0
    answered: int = 0
    since_ns: int = 0


def look(seen: Seen, now_ns: int, unread: int, received: int, answered: int, oldest_ns: int) -> bool:
    """Take a look at one connection; whether it stalls for longer than the limit.

    `unread`: bytes waiting in its socket; `oldest_ns`: when its oldest unanswered request came, 0 where there is none.
    """
    moved = (received, answered) != (seen.received, seen.answered)
    seen.received, seen.answered = received, answered
    if not unread and not oldest_ns:
        seen.since_ns = 0
        return False
    if moved or not seen.since_ns:
        seen.since_ns = now_ns
    return now_ns - seen.since_ns > LIMIT_NS or (oldest_ns != 0 and now_ns - oldest_ns > LIMIT_NS)
