# SPDX-License-Identifier: AGPL-3.0-or-later
"""Instants as the program's documents and command lines have them: RFC 3339 in UTC, to the nanosecond."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(time_ns: int) -> str:
    """Of nanoseconds since 1970. A digit less would name ten instants, of which a capture may know several."""
    return f"{datetime.fromtimestamp(time_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{time_ns % 10**9:09d}Z"


def nanoseconds(text: str) -> int:
    """Since 1970."""
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{seconds}+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0"))
