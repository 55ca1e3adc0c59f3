# SPDX-License-Identifier: AGPL-3.0-or-later
"""A timeline drawn in characters (ux 4.3): what was changed, of when every write is kept, gaps, points, and events.

One column is an equal part of the time. A gap however short takes a whole column; so does a point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from math import log2

from everywhen.formats.point import CONSISTENCIES, RecoveryPoint
from everywhen.services.ages import DAY, HOUR, MINUTE, SECOND
from everywhen.services.timeline import Cell

LABEL = 8
_STEPS = [SECOND * n for n in (1, 5, 15, 30)] + [MINUTE * n for n in (1, 5, 15, 30)] + [HOUR * n for n in (1, 3, 6, 12)]
_DAYS = [DAY * n for n in (1, 2, 7, 30, 91, 365, 1826)]
_LETTERS = {"none": "n", "crash": "c", "filesystem": "f", "application": "A"}


@dataclass(frozen=True, slots=True)
class Signs:
    """The characters: bars from low to high; every write, a gap, a gap until now."""

    bars: str
    covered: str
    gap: str
    goes_on: str


BLOCKS = Signs("▁▂▃▄▅▆▇█", "█", "░", "▒")
ASCII = Signs(".:-=+*#@", "#", "x", "?")


def picture(
    parts: Sequence[Cell], from_ns: int, to_ns: int, zone: tzinfo, signs: Signs, held: Callable[[RecoveryPoint], bool]
) -> list[str]:
    """The rows, without trailing blanks; none wider than LABEL and the number of parts and the last time's digits."""
    rows = [
        ("", _axis(from_ns, to_ns, len(parts), zone)),
        ("changed", _bars(parts, signs)),
        ("writes", "".join(_write_sign(part, signs) for part in parts)),
        ("points", "".join(_point_sign(part.points) for part in parts)),
        ("events", "".join(_event_sign(part.points, held) for part in parts)),
    ]
    return [f"{label:{LABEL}}{row}".rstrip() for label, row in rows if row.strip()]


def legend(parts: Sequence[Cell], signs: Signs, held: Callable[[RecoveryPoint], bool]) -> str:
    """What those of the characters mean that are in the picture."""
    points = [point for part in parts for point in part.points]
    meanings = [
        (any(part.covered and not part.gap for part in parts), f"{signs.covered} every write"),
        (any(part.gap and not part.goes_on for part in parts), f"{signs.gap} gap"),
        (any(part.goes_on for part in parts), f"{signs.goes_on} gap until now"),
        *((any(point.reached == word for point in points), f"{letter} {word}") for word, letter in _LETTERS.items()),
        (any(point.mark for point in points), "M mark"),
        (any(held(point) for point in points), "H held"),
    ]
    return "   ".join(meaning for there, meaning in meanings if there)


def _bars(parts: Sequence[Cell], signs: Signs) -> str:
    """On a logarithmic scale, of which a bar is a factor of four: most minutes are small beside the largest one."""
    most = max((part.size for part in parts), default=0)
    if most < 1:
        return ""
    top = len(signs.bars) - 1
    return "".join(signs.bars[max(0, round(top - log2(most / part.size) / 2))] if part.size >= 1 else " " for part in parts)


def _write_sign(part: Cell, signs: Signs) -> str:
    return signs.goes_on if part.goes_on else signs.gap if part.gap else signs.covered if part.covered else " "


def _point_sign(points: Sequence[RecoveryPoint]) -> str:
    """The most consistent one's."""
    best = max((point.reached for point in points), key=CONSISTENCIES.index, default=None)
    return _LETTERS[best] if best else " "


def _event_sign(points: Sequence[RecoveryPoint], held: Callable[[RecoveryPoint], bool]) -> str:
    return "M" if any(point.mark for point in points) else "H" if any(held(point) for point in points) else " "


def _axis(from_ns: int, to_ns: int, count: int, zone: tzinfo) -> str:
    """Times at round places, each beginning in its column."""
    room = count / (to_ns - from_ns)
    step = next((step for step in (*_STEPS, *_DAYS) if len(_label(0, step, UTC)) < step * room), _DAYS[-1])
    row = ""
    for at in _round_instants(from_ns, to_ns, step, zone):
        column = min(int((at - from_ns) / (to_ns - from_ns) * count), count - 1)
        if not row or column > len(row):
            row = row.ljust(column) + _label(at, step, zone)
    return row


def _round_instants(from_ns: int, to_ns: int, step: int, zone: tzinfo) -> list[int]:
    """Multiples of `step` in local time."""
    offset = datetime.fromtimestamp(from_ns // SECOND, zone).utcoffset()
    shift = round(offset.total_seconds()) * SECOND if offset else 0
    first = -(-(from_ns + shift) // step) * step - shift
    return list(range(first, to_ns + 1, step))


def _label(at: int, step: int, zone: tzinfo) -> str:
    # A midnight in winter is 23:00 or 1:00 in summer.
    local = datetime.fromtimestamp((at + (2 * HOUR if step >= DAY else 0)) // SECOND, zone)
    if step >= DAY:
        return f"{local:%d %b}" if step < 365 * DAY else f"{local:%Y}"
    return f"{local:%H:%M}" if step >= MINUTE else f"{local:%H:%M:%S}"
