# SPDX-License-Identifier: AGPL-3.0-or-later
"""Instants as people write and read them: local to the reader, meant exactly (ux R12). Stored and in JSON: UTC.

Understood: `2026-11-21`, `2026-11-21 10:32[:05[.912]]` (or with a `T`), `10:32[:05]` (today), `yesterday [10:32[:05]]`,
each time with an offset (`Z`, `+02:00`) or without, and the form of folder names, `2026-11-21_10.32[.05[.912]][Z]`.

Decided here, where the texts leave it open:

- What is written names a stretch, and `latest_ns` is its end. A time names the whole of its last digit, at least a second
  (`10:32` is `10:32:00`): listings show whole seconds, and a time copied from one must reach that moment, taken at
  10:00:00.3. A date alone, or `yesterday` alone, names the whole day: its latest moment is meant.
- A time without a date that is still to come today is refused, not silently taken as "the newest".
- A local time that occurs twice or never is refused with both readings (RFC 5545 would silently take one).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from everywhen.services.ages import SECOND
from everywhen.services.failures import WrongUsage

_CLOCK = r"(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,9}))?)?"
_OFFSET = r"(?:\ ?(?P<offset>z|[+-][0-9]{2}:?[0-9]{2}))?"
_DAY = r"(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2}|yesterday)"
_TIME = re.compile(rf"{_DAY}(?:(?:t|\ +){_CLOCK}{_OFFSET})?", re.ASCII)
_TODAY = re.compile(_CLOCK + _OFFSET, re.ASCII)
_FOLDER = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})_([0-9]{2})\.([0-9]{2})(?:\.([0-9]{2}(?:\.[0-9]{1,9})?))?(z?)", re.ASCII)
_HINT = "Times look like 2026-11-21 10:32:05, 10:32, yesterday 18:00 or 2026-11-21T10:32:05Z."


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a written time names: from `earliest_ns` to `latest_ns`, both included, in ns since 1970 UTC."""

    earliest_ns: int
    latest_ns: int


def zone_named(name: str) -> ZoneInfo:
    """The time zone of an IANA name like `Europe/Berlin`. Raises WrongUsage."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        text = f'No time zone "{name}" on this machine. Zones have names like UTC or Europe/Berlin.'
        raise WrongUsage(text, on=name) from error


def rfc3339(time_ns: int) -> str:
    """`2026-11-21T10:32:05.912Z`: UTC, with as many digits as there are."""
    return f"{_utc(time_ns):%Y-%m-%dT%H:%M:%S}{_fraction(time_ns)}Z"


def folder_time(time_ns: int, *, exact: bool = False) -> str:
    """`2026-11-21_10.32.05Z`: UTC, of characters that no file system, SMB or WebDAV forbids.

    `exact`: with all nine digits after the second, since a time with fewer names all instants that begin so.
    """
    return f"{_utc(time_ns):%Y-%m-%d_%H.%M.%S}{f'.{time_ns % SECOND:09}' if exact else ''}Z"


def local_time(time_ns: int, zone: tzinfo) -> str:
    """`2026-11-21 11:32:05`: for a column; the zone belongs in its head line, by `zone_label`."""
    return f"{datetime.fromtimestamp(time_ns // SECOND, zone):%Y-%m-%d %H:%M:%S}"


def zone_label(time_ns: int, zone: tzinfo) -> str:
    """`CET, UTC+1`: the zone's name and offset at that instant."""
    local = datetime.fromtimestamp(time_ns // SECOND, zone)
    hours = _offset_text(local).replace(":00", "")
    short = f"UTC{hours[0]}{hours[1:].removeprefix('0')}" if local.utcoffset() else "UTC"
    name = local.tzname() or ""
    return f"{name}, {short}" if name.isalpha() and name != "UTC" else short


def parse_time(text: str, *, now_ns: int, zone: tzinfo) -> Stretch:
    """What `text` names to a reader in `zone` whose clock says `now_ns`. Raises WrongUsage."""
    plain = text.strip().lower()
    if folder := _FOLDER.fullmatch(plain):
        plain = f"{folder[1]} {folder[2]}:{folder[3]}{f':{folder[4]}' if folder[4] else ''}{folder[5]}"
    today = datetime.fromtimestamp(now_ns // SECOND, zone).date()
    if match := _TODAY.fullmatch(plain):
        stretch = _clock_on(today, match, zone, text)
        if stretch.earliest_ns > now_ns:
            now = local_time(now_ns, zone)
            raise WrongUsage(f"{text} is still to come (it is {now}).", on=text, do=[f'Say "yesterday {text}" or latest.'])
        return stretch
    match = _TIME.fullmatch(plain)
    if match is None:
        raise WrongUsage(f'"{text}" is not a time.', on=text, do=[_HINT])
    day = today - timedelta(days=1) if match["day"] == "yesterday" else _date(match["day"], text)
    if match["hour"] is not None:
        return _clock_on(day, match, zone, text)
    return Stretch(_midnight(day, zone), _midnight(day + timedelta(days=1), zone) - 1)


def _date(word: str, text: str) -> date:
    try:
        day = date.fromisoformat(word)
    except ValueError as error:
        raise WrongUsage(f'"{text}": there is no day {word}.', on=text, do=[_HINT]) from error
    if not 1900 <= day.year < 9999:
        raise WrongUsage(f'"{text}" lies outside of the years 1900 to 9998.', on=text, do=[_HINT])
    return day


def _midnight(day: date, zone: tzinfo) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * SECOND


def _clock_on(day: date, match: re.Match[str], zone: tzinfo, text: str) -> Stretch:
    hour, minute, second = (int(match[name] or 0) for name in ("hour", "minute", "second"))
    if hour > 23 or minute > 59 or second > 59:
        raise WrongUsage(f'"{text}": there is no such time of day.', on=text, do=[_HINT])
    at = datetime(day.year, day.month, day.day, hour, minute, second, tzinfo=_offset(match["offset"], text) or zone)
    if match["offset"] is None:
        _refuse_unclear(at)
    digits = match["fraction"] or ""
    first = int(at.timestamp()) * SECOND + int(digits.ljust(9, "0"))
    return Stretch(first, first + 10 ** (9 - len(digits)) - 1)


def _offset(word: str | None, text: str) -> tzinfo | None:
    if word is None or word == "z":
        return UTC if word else None
    hours, minutes = int(word[1:3]), int(word[-2:])
    if hours > 23 or minutes > 59:
        raise WrongUsage(f'"{text}": there is no offset {word}.', on=text, do=[_HINT])
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if word[0] == "-" else offset)


def _refuse_unclear(at: datetime) -> None:
    """Raises WrongUsage when the local time `at` occurs twice or never in its zone (PEP 495)."""
    first, second = at.replace(fold=0), at.replace(fold=1)
    before, after = first.utcoffset(), second.utcoffset()
    if before is None or after is None or before == after:
        return
    said = f"{at:%Y-%m-%d %H:%M:%S}".removesuffix(":00")
    options = [f"{said}{_offset_text(reading)}" for reading in (first, second)]
    if before > after:
        raise WrongUsage(f"{said} happened twice. Say {options[0]} (first) or {options[1]} (second).", on=said, do=options)
    shown = [f"{reading.astimezone(UTC).astimezone(at.tzinfo):%H:%M}" for reading in (first, second)]
    raise WrongUsage(
        f"{said} did not happen: the clocks were put forward. "
        f"Say {options[0]} (shown as {shown[0]}) or {options[1]} (shown as {shown[1]}).",
        on=said,
        do=options,
    )


def _offset_text(at: datetime) -> str:
    word = f"{at:%z}"
    return f"{word[:3]}:{word[3:5]}"


def _utc(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns // SECOND, UTC)


def _fraction(time_ns: int) -> str:
    digits = f"{time_ns % SECOND:09}".rstrip("0")
    return f".{digits}" if digits else ""
