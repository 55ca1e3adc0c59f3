# SPDX-License-Identifier: AGPL-3.0-or-later
"""A capture's figures, for people and for programs."""

from __future__ import annotations

from everywhen.services.ages import SECOND, span
from everywhen.services.protect.captured import Captured
from everywhen.services.sizes import size
from everywhen.services.times import rfc3339

_PROCESSES = ("sink", "watchdog", "protect")


def load_words(found: Captured) -> str:
    """How much is written, and what that costs the guest and the host."""
    number = found.number
    if found.interval_ns:
        return _interval_words(found)
    parts = [f"{number('writes_per_s'):,} writes/s, {size(number('bytes_per_s'))}/s"]
    if number("worst_ns"):
        parts.append(f"a write waits for us {_waits(found)}")
    return "; ".join([*parts, f"{size(number('spool_bytes_per_s'))}/s to the spool", *_busy(found)])


def capture_words(found: Captured) -> str:
    """The same, and what is not in the repository yet."""
    number = found.number
    if found.interval_ns:
        return "; ".join([load_words(found), *_left_out(found)])
    parts = [load_words(found)]
    if found.following:
        parts.append(f"{found.unshipped:,} writes are only on this host" if found.unshipped else "all are in the repository")
    parts += _left_out(found)
    if number("waiting_bytes"):
        parts.append(f"{size(number('waiting_bytes'))} wait on this host")
    return "; ".join(parts)


def _interval_words(found: Captured) -> str:
    parts = [f"points every {span(found.interval_ns)}, and only bitmaps on its disks in between"]
    if (tapped := _tapped_s(found)) is not None:
        waited = f", and a write waited for us {_waits(found)}" if found.number("worst_ns") else ""
        parts.append(f"the newest took {span(round(tapped * SECOND))}{waited}")
    return "; ".join([*parts, *_busy(found)])


def _busy(found: Captured) -> list[str]:
    busy = sum(found.number(f"{name}_ns_per_s") for name in _PROCESSES)
    return [f"capture takes {100 * busy / SECOND:.1f} % of a processor"] if busy else []


def _left_out(found: Captured) -> list[str]:
    return [f"not captured: {', '.join(found.left_out)}"] if found.left_out else []


def _tapped_s(found: Captured) -> float | None:
    """For how many seconds the newest point's taps stood, where they come off again."""
    tapped = found.raw.get("tapped_s") if found.raw and found.interval_ns else None
    return tapped if isinstance(tapped, float) else None


def _waits(found: Captured) -> str:
    figures = [_ms(found.number(name)) for name in ("median_ns", "p99_ns", "worst_ns")]
    return "{} (median), {} (99 of 100), {} (longest)".format(*figures)


def capture_document(found: Captured, now_ns: int) -> dict[str, object]:
    """The same for programs. `processor_share`: of one processor. That and all that is by the second: over the last half a
    minute; where points are made at intervals, over the last 30 of them."""
    number = found.number
    durable, sealed = found.lag_ns(now_ns), found.sealed_lag_ns(now_ns)
    return {
        "state": found.state,
        "interval_seconds": found.interval_ns / SECOND or None,
        "since": rfc3339(found.since_ns) if found.since_ns else None,
        "why": found.why,
        "until": rfc3339(found.until_ns) if found.until_ns else None,
        "waiting": found.waiting,
        "left_out": found.left_out,
        "copied_bytes": number("copied"),
        "to_copy_bytes": number("to_copy"),
        "lag": {
            "captured_seconds": None if durable is None else 0.0,  # before its guest hears that a write is done
            "durable_seconds": None if durable is None else round(durable / SECOND, 3),
            "durable_writes": number("taken") - number("durable"),
            "repository_writes": found.unshipped,
            "sealed_seconds": None if sealed is None else round(sealed / SECOND, 3),
            "sealed_writes": number("taken") - number("sealed"),
        },
        # At intervals only some of the writes are seen.
        "writes_per_second": None if found.interval_ns else number("writes_per_s"),
        "bytes_per_second": None if found.interval_ns else number("bytes_per_s"),
        "added_latency_ns": {"median": number("median_ns"), "p99": number("p99_ns"), "worst": number("worst_ns")},
        "tapped_seconds": _tapped_s(found),
        "spool_bytes": number("waiting_bytes"),
        "spool_bytes_per_second": number("spool_bytes_per_s"),
        "processor_share": {name: number(f"{name}_ns_per_s") / SECOND for name in _PROCESSES},
    }


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.2g} ms"
