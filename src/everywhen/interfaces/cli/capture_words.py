# SPDX-License-Identifier: AGPL-3.0-or-later
"""A capture's figures, for people and for programs."""

from __future__ import annotations

from everywhen.services.ages import SECOND
from everywhen.services.protect.captured import Captured
from everywhen.services.sizes import size
from everywhen.services.times import rfc3339

_PROCESSES = ("sink", "watchdog", "protect")


def load_words(found: Captured) -> str:
    """How much is written, and what that costs the guest and the host."""
    number = found.number
    parts = [f"{number('writes_per_s'):,} writes/s, {size(number('bytes_per_s'))}/s"]
    if number("worst_ns"):
        # The two are known to half a power of two.
        figures = [_ms(min(number(name), number("worst_ns"))) for name in ("median_ns", "p99_ns", "worst_ns")]
        parts.append("a write waits for us {} (median), {} (99 of 100), {} (longest)".format(*figures))
    parts.append(f"{size(number('spool_bytes_per_s'))}/s to the spool")
    if busy := sum(number(f"{name}_ns_per_s") for name in _PROCESSES):
        parts.append(f"capture takes {100 * busy / SECOND:.1f} % of a processor")
    return "; ".join(parts)


def capture_words(found: Captured) -> str:
    """The same, and what is not in the repository yet."""
    number = found.number
    parts = [load_words(found)]
    if found.following:
        parts.append(f"{found.unshipped:,} writes are only on this host" if found.unshipped else "all are in the repository")
    if found.left_out:
        parts.append(f"not captured: {', '.join(found.left_out)}")
    if number("waiting_bytes"):
        parts.append(f"{size(number('waiting_bytes'))} wait on this host")
    return "; ".join(parts)


def capture_document(found: Captured, now_ns: int) -> dict[str, object]:
    """The same for programs. `processor_share`: of one processor, over the last half a minute, as all that is by the second."""
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
        "spool_bytes_per_second": number("spool_bytes_per_s"),
        "processor_share": {name: number(f"{name}_ns_per_s") / SECOND for name in _PROCESSES},
    }


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.2g} ms"
