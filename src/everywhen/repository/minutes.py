# SPDX-License-Identifier: AGPL-3.0-or-later
"""What was written to a VM's disks minute by minute: `minutes/<vm>/<day>-<stream>`, kept when the moments are long gone.

What was not recorded cannot be looked up later: growth, forecasts and the search for the minute in which something began to
write need it. One document for a day (whole days since 1970, UTC) and a capture's stream, so that two captures of one VM do
not overwrite each other's. It is rewritten with each recovery point, before that is committed: after a crash in between, the
minutes of that point may be counted twice.

Fields: `disks`, by disk name columns of equal length: `minute` (of the day, ascending), `writes`, `bytes`, `blocks`
(different ones of 64 KiB; one that a minute's two points share counts twice), `stored` (bytes that the point which was made
in that minute has added); `gaps`: pairs of times in ns between which nothing was captured, before the stream's first moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from everywhen.formats.errors import Corrupt, FormatError
from everywhen.formats.fields import Json, mapping
from everywhen.repository.documents import Documents
from everywhen.storage.base import ObjectNotFound

PREFIX = "minutes/"
PER_DAY = 1440
COLUMNS = ("minute", "writes", "bytes", "blocks", "stored")

Row = tuple[int, int, int, int]
"""writes, bytes, blocks, stored"""


@dataclass(slots=True)
class DayOfMinutes:
    """One document: `disks` by name, rows by minute of the day; `gaps` in ns since 1970."""

    disks: dict[str, dict[int, Row]] = field(default_factory=dict)
    gaps: list[tuple[int, int]] = field(default_factory=list)

    def add(self, disk: str, minute: int, row: Row) -> None:
        """Add to what is there."""
        rows = self.disks.setdefault(disk, {})
        before = rows.get(minute, (0, 0, 0, 0))
        rows[minute] = (before[0] + row[0], before[1] + row[1], before[2] + row[2], before[3] + row[3])

    def to_json(self) -> Json:
        disks = {}
        for name, rows in self.disks.items():
            columns = zip(*((minute, *rows[minute]) for minute in sorted(rows)), strict=True)
            disks[name] = dict(zip(COLUMNS, map(list, columns), strict=True))
        return {"kind": "minutes", "disks": disks, "gaps": [list(gap) for gap in self.gaps]}

    @classmethod
    def from_json(cls, value: Json) -> DayOfMinutes:
        """Raises Corrupt."""
        day = cls()
        for name in mapping(value, "disks"):
            found = mapping(mapping(value, "disks"), name)
            columns = [_wholes(found.get(column)) for column in COLUMNS]
            if len(set(map(len, columns))) != 1:
                raise Corrupt(f"minutes of {name!r}: columns of different lengths")
            for minute, *row in zip(*columns, strict=True):
                if minute >= PER_DAY:
                    raise Corrupt(f"minutes of {name!r}: a day has no minute {minute}")
                day.add(name, minute, (row[0], row[1], row[2], row[3]))
        gaps = value.get("gaps")
        for pair in map(_wholes, gaps if isinstance(gaps, list) else [None]):
            if len(pair) != 2:
                raise Corrupt("minutes: a gap has two ends")
            day.gaps.append((pair[0], pair[1]))
        return day


def add_minutes(documents: Documents, vm: str, stream: str, days: dict[int, DayOfMinutes]) -> None:
    """Add to what is kept of these days. Raises StorageError."""
    for number, new in days.items():
        name = f"{PREFIX}{vm}/{number}-{stream}"
        try:
            kept = DayOfMinutes.from_json(documents.get(name))
        except (ObjectNotFound, FormatError):
            kept = DayOfMinutes()  # what cannot be read is lost; a recovery point is worth more than its statistics
        for disk, rows in new.disks.items():
            for minute, row in rows.items():
                kept.add(disk, minute, row)
        kept.gaps = sorted({*kept.gaps, *new.gaps})
        documents.put(name, kept.to_json())


def kept_minutes(documents: Documents, vm: str, since_day: int = 0) -> Iterator[tuple[int, DayOfMinutes]]:
    """What is kept of a VM from a day on, by day; what cannot be read is left out. Raises StorageError."""
    for name in sorted(documents.names(f"{PREFIX}{vm}/")):
        day = name.partition("-")[0]
        if day.isdecimal() and int(day) >= since_day:
            with suppress(ObjectNotFound, FormatError):  # no moment depends on it
                yield int(day), DayOfMinutes.from_json(documents.get(f"{PREFIX}{vm}/{name}"))


def _wholes(value: object) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(one, int) and 0 <= one < 1 << 63 for one in value):
        raise Corrupt("minutes: no list of whole numbers")
    return value
