# SPDX-License-Identifier: AGPL-3.0-or-later
"""A capture's figures, for people and for programs."""

from __future__ import annotations

from everywhen.services.ages import SECOND
from everywhen.services.protect.captured import Captured
from everywhen.services.sizes import size
from everywhen.services.times import rfc3339


def capture_words(found: Captured) -> str:
    """How much is written, what that costs the guest, and what is not in the repository yet."""
    number = found.number
    rate = f"{number('writes_per_s'):,} writes/s, {size(number('bytes_per_s'))}/s"
    # The two are known to half a power of two.
    figures = [_ms(min(number(name), number("worst_ns"))) for name in ("median_ns", "p99_ns", "worst_ns")]
    adds = "a write waits for us {} (median), {} (99 of 100), {} (longest)".format(*figures)
    parts = [rate, adds] if number("worst_ns") else [rate]
    parts.append(f"{found.unshipped:,} writes are only on this host" if found.unshipped else "all are in the repository")
    if found.left_out:
        parts.append(f"not captured: {', '.join(found.left_out)}")
    if number("waiting_bytes"):
        parts.append(f"{size(number('waiting_bytes'))} wait on this host")
    return "; ".join(parts)


def capture_document(found: Captured, now_ns: int) -> dict[str, object]:
    """The same for programs."""
    number = found.number
    lag = found.lag_ns(now_ns)
    return {
        "state": found.state,
        "since": rfc3339(found.since_ns) if found.since_ns else None,
        "why": found.why,
        "until": rfc3339(found.until_ns) if found.until_ns else None,
        "waiting": found.waiting,
        "left_out": found.left_out,
        "copied_bytes": number("copied"),
        "to_copy_bytes": number("to_copy"),
        "lag": {
            "durable_seconds": None if lag is None else round(lag / SECOND, 3),
            "durable_writes": number("taken") - number("durable"),
            "repository_writes": found.unshipped,
            "sealed_writes": number("taken") - number("sealed"),
        },
        "writes_per_second": number("writes_per_s"),
        "bytes_per_second": number("bytes_per_s"),
        "added_latency_ns": {"median": number("median_ns"), "p99": number("p99_ns"), "worst": number("worst_ns")},
        "spool_bytes": number("waiting_bytes"),
    }


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.2g} ms"
