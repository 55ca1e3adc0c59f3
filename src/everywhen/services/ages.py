# SPDX-License-Identifier: AGPL-3.0-or-later
"""Spans of time: read (`72h`, `2h30m`), shown (`6 min 20 s`), and shown as ages (`4 min`, `21 d`). All in nanoseconds.

Units, in this order, each at most once: w, d, h, m (minutes), s. A day is 24 hours and a week 7 of them: spans of
elapsed time know no calendar. Months and years exist only in retention policies, where `m` never stands alone.
"""

from __future__ import annotations

import re

from everywhen.services.failures import WrongUsage

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
WEEK = 7 * DAY

_UNITS = {"w": WEEK, "d": DAY, "h": HOUR, "m": MINUTE, "s": SECOND}
_SPAN = re.compile("".join(rf"(?:([0-9]{{1,6}}){unit})?" for unit in _UNITS), re.ASCII | re.IGNORECASE)
_SHOWN = ((DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (SECOND, "s"))


def parse_span(text: str) -> int:
    """Nanoseconds meant by `text`, at least 0. Raises WrongUsage."""
    match = _SPAN.fullmatch(text.strip())
    if match is None or not match[0]:
        raise WrongUsage(f'"{text}" is not a span of time. Spans look like 10m, 2h30m, 72h or 3d.', on=text)
    return sum(int(count) * unit for count, unit in zip(match.groups(), _UNITS.values(), strict=True) if count)


def span(ns: int) -> str:
    """`ns` in at most two units, rounded to the smaller: `0.6 s`, `36 s`, `6 min 20 s`, `1 h 25 min`, `3 d 4 h`."""
    if ns < 0:
        return "-" + span(-ns)
    if ns < 10 * SECOND:
        return f"{ns / SECOND:.1f} s"
    seconds = _rounded(ns, SECOND)
    if seconds < MINUTE:
        return f"{seconds // SECOND} s"
    if seconds < HOUR:
        return _two(seconds, (MINUTE, "min"), (SECOND, "s"))
    minutes = _rounded(ns, MINUTE)
    if minutes < DAY:
        return _two(minutes, (HOUR, "h"), (MINUTE, "min"))
    return _two(_rounded(ns, HOUR), (DAY, "d"), (HOUR, "h"))


def _rounded(ns: int, unit: int) -> int:
    return (ns + unit // 2) // unit * unit


def _two(ns: int, large: tuple[int, str], small: tuple[int, str]) -> str:
    whole, rest = divmod(ns, large[0])
    return f"{whole} {large[1]}" + (f" {rest // small[0]} {small[1]}" if rest else "")


def age(ns: int) -> str:
    """How long ago, in one unit and rounded down, for a column: `now` (under a second), `8 s`, `4 min`, `1 h`, `21 d`.

    What lies ahead (a clock that differs) is shown with `in`: `in 4 min`.
    """
    if ns < 0:
        return "in " + age(-ns) if -ns >= SECOND else "now"
    for unit, name in _SHOWN:
        if ns >= unit:
            return f"{ns // unit} {name}"
    return "now"
