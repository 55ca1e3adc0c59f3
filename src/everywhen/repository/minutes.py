# SPDX-License-Identifier: AGPL-3.0-or-later
"""What was written to a VM's disks minute by minute: `minutes/<vm>/<day>-<stream>`, kept when the moments are long gone.

What was not recorded cannot be looked up later: growth, forecasts and the search for the minute in which something began to
write need it (design 4.10.6). One document for a day (whole days since 1970, UTC) and a capture's stream, so that two captures
of one VM do not overwrite each other's. It is rewritten with each recovery point, before that is committed: where there is no
point in the end (a crash, a store that takes this and not the point), its minutes count, and once more with each further try.

| field | meaning |
|---|---|
| disks | by disk name, columns of equal length: see below |
| points | columns of equal length, of points made of the journal alone (not a stream's first): see below. Absent: none known |
| gaps | pairs of times in ns between which nothing was captured, before the stream's first moment |
| per | how many minutes a row is of: 1 (also where it is absent), 60 or 1440. gc makes hours of minutes, and days of hours |

Columns of a disk; those from `zeroes` on may be absent, and 0 in `journal`, `median` and `worst` means: not measured.

| column | meaning | in an hour or day |
|---|---|---|
| minute | of the day, the first that the row is of; ascending | |
| writes | how many | sum |
| bytes | of all writes, zeroes included | sum |
| blocks | different ones of 64 KiB; one that a minute's two points share counts twice | sum: each counted once a minute |
| stored | bytes added by the point that was made then, without block map and second copies | sum |
| zeroes | bytes of the writes that were written as zeroes, and hold no data | sum |
| compressed | bytes that the other data took in the journal: incompressible data as many as it has. A group of the journal is \
compressed as one (at most 1 MiB, or a quarter of a second); each write has its share by length | sum |
| journal | bytes that the writes took in the journal: `compressed`, and a share of the group's columns, frame and tag | sum |
| median | within how many ns the sink answered half of the requests, up to a third more; with points at intervals, of the \
last of the minute's points that saw any | median of the minutes', by writes, where none were counted each as one |
| worst | the longest that one of them took | largest |

Columns of `points`: `minute`; `points`, how many; `different`, bytes of the disks that were written since the point before,
each byte counted once, without what was written as zeroes; `sealed`, bytes of the packs put for the points, second copies
included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from everywhen.formats.errors import Corrupt, FormatError
from everywhen.formats.fields import Json, mapping, whole
from everywhen.repository.documents import Documents
from everywhen.storage.base import ObjectNotFound

PREFIX = "minutes/"
PER_DAY = 1440
_COLUMNS = ("minute", "writes", "bytes", "blocks", "stored", "zeroes", "compressed", "journal", "median", "worst")
_ALWAYS = 5
"""So many columns were there from the beginning."""
_OF_POINTS = ("minute", "points", "different", "sealed")


class Row(NamedTuple):
    """A disk's minute; `size` is the column `bytes`."""

    writes: int = 0
    size: int = 0
    blocks: int = 0
    stored: int = 0
    zeroes: int = 0
    compressed: int = 0
    journal: int = 0
    median: int = 0
    worst: int = 0

    @property
    def data(self) -> int:
        """Bytes that were written and are not zeroes by the way they were written."""
        return self.size - self.zeroes


class PointRow(NamedTuple):
    """Of the points that were made in a minute."""

    points: int = 0
    different: int = 0
    sealed: int = 0


R = TypeVar("R", Row, PointRow)


@dataclass(slots=True)
class DayOfMinutes:
    """One document: rows by minute of the day, of disks by name, and of points; `gaps` in ns since 1970."""

    disks: dict[str, dict[int, Row]] = field(default_factory=dict)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    points: dict[int, PointRow] = field(default_factory=dict)
    per: int = 1

    def add(self, disk: str, minute: int, row: Row) -> None:
        """Add to what is there. Of the two medians the one that comes later counts: it is of more requests of that minute (with
        points at intervals: of the later point's)."""
        rows, at = self.disks.setdefault(disk, {}), minute // self.per * self.per
        before = rows.get(at, Row())
        rows[at] = _sums((before, row))._replace(median=row.median or before.median, worst=max(before.worst, row.worst))

    def add_points(self, minute: int, row: PointRow) -> None:
        """Add to what is there."""
        at = minute // self.per * self.per
        self.points[at] = PointRow(*map(sum, zip(self.points.get(at, PointRow()), row, strict=True)))

    def merge(self, other: DayOfMinutes) -> None:
        """Add all of another one of the same day and stream, in rows of as many minutes as they have here."""
        for disk, rows in other.disks.items():
            for minute, row in rows.items():
                self.add(disk, minute, row)
        for minute, of_points in other.points.items():
            self.add_points(minute, of_points)
        self.gaps = sorted({*self.gaps, *other.gaps})

    def thinned(self, per: int) -> DayOfMinutes:
        """The same in rows of so many minutes; not finer than it is."""
        coarse = DayOfMinutes(gaps=self.gaps, per=max(per, self.per))
        for disk, rows in self.disks.items():
            together: dict[int, list[Row]] = {}
            for minute in sorted(rows):
                together.setdefault(minute // coarse.per * coarse.per, []).append(rows[minute])
            coarse.disks[disk] = {minute: _together(found) for minute, found in together.items()}
        for minute, row in self.points.items():
            coarse.add_points(minute, row)
        return coarse

    def to_json(self) -> Json:
        disks = {name: _columns(_COLUMNS, rows) for name, rows in self.disks.items()}
        points = _columns(_OF_POINTS, self.points)
        gaps = [list(gap) for gap in self.gaps]
        return {"kind": "minutes", "disks": disks, "points": points, "gaps": gaps, "per": self.per}

    @classmethod
    def from_json(cls, value: Json) -> DayOfMinutes:
        """Raises Corrupt."""
        day = cls(per=whole(value, "per", 1))
        if day.per not in (1, 60, PER_DAY):
            raise Corrupt(f"minutes: rows of {day.per} minutes")
        for name in mapping(value, "disks"):
            day.disks[name] = _rows(f"minutes of {name!r}", mapping(mapping(value, "disks"), name), _COLUMNS, _ALWAYS, Row)
        if points := mapping(value, "points"):
            day.points = _rows("minutes of points", points, _OF_POINTS, len(_OF_POINTS), PointRow)
        gaps = value.get("gaps")
        for pair in map(_wholes, gaps if isinstance(gaps, list) else [None]):
            if len(pair) != 2:
                raise Corrupt("minutes: a gap has two ends")
            day.gaps.append((pair[0], pair[1]))
        return day


def add_minutes(documents: Documents, vm: str, stream: str, days: Mapping[int, DayOfMinutes]) -> None:
    """Add to what is kept of these days. Raises StorageError."""
    for number, new in days.items():
        name = f"{PREFIX}{vm}/{number}-{stream}"
        try:
            kept = DayOfMinutes.from_json(documents.get(name))
        except (ObjectNotFound, FormatError):
            kept = DayOfMinutes()  # what cannot be read is lost; a recovery point is worth more than its statistics
        kept.merge(new)
        documents.put(name, kept.to_json())


def kept_minutes(documents: Documents, vm: str, since_day: int = 0) -> Iterator[tuple[int, DayOfMinutes]]:
    """What is kept of a VM from a day on, by day; what cannot be read is left out. Raises StorageError."""
    for name in sorted(documents.names(f"{PREFIX}{vm}/")):
        day = day_of(name)
        if day is not None and day >= since_day:
            with suppress(ObjectNotFound, FormatError):  # no moment depends on it
                yield day, DayOfMinutes.from_json(documents.get(f"{PREFIX}{vm}/{name}"))


def day_of(name: str) -> int | None:
    """The day that a document's name (without what is before the last '/') is of; None for what is no day's."""
    day, _, stream = name.partition("-")
    return int(day) if stream and day.isdecimal() and day.isascii() else None


def median_of(rows: Iterable[Row]) -> int:
    """The median of the rows' medians, each as often as it has writes, in ns; 0 where none was measured. With points at
    intervals writes are not counted: there each counts once."""
    measured = sorted((row.median, max(row.writes, 1)) for row in rows if row.median)
    left = sum(writes for _, writes in measured) / 2
    for median, writes in measured:
        left -= writes
        if left <= 0:
            return median
    return 0


def _together(rows: list[Row]) -> Row:
    return _sums(rows)._replace(median=median_of(rows), worst=max(row.worst for row in rows))


def _sums(rows: Iterable[Row]) -> Row:
    return Row(*map(sum, zip(*rows, strict=True)))


def _columns(names: tuple[str, ...], rows: Mapping[int, tuple[int, ...]]) -> Json:
    columns = zip(*((minute, *rows[minute]) for minute in sorted(rows)), strict=True)
    return dict(zip(names, map(list, columns), strict=True)) if rows else {}


def _rows(what: str, found: Json, names: tuple[str, ...], always: int, row: Callable[..., R]) -> dict[int, R]:
    """Rows by minute, of columns of which only the first ones must be there. Raises Corrupt."""
    minutes = _wholes(found.get(names[0]))
    optional: dict[str, Any] = dict.fromkeys(names[always:], [0] * len(minutes))
    columns = [_wholes((optional | found).get(name)) for name in names]
    if len(set(map(len, columns))) != 1:
        raise Corrupt(f"{what}: columns of different lengths")
    if minutes and max(minutes) >= PER_DAY:
        raise Corrupt(f"{what}: a day has no minute {max(minutes)}")
    if len(set(minutes)) != len(minutes):
        raise Corrupt(f"{what}: a minute stands there twice")
    return {minute: row(*figures) for minute, *figures in zip(*columns, strict=True)}


def _wholes(value: object) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(one, int) and 0 <= one < 1 << 63 for one in value):
        raise Corrupt("minutes: no list of whole numbers")
    return value
