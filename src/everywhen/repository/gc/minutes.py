# SPDX-License-Identifier: AGPL-3.0-or-later
"""Making hours of minutes, and days of hours, when nobody will ask for the minute any more (`repository/minutes.py`).

Each document is replaced whole by a smaller one that says the same by the hour: whatever is interrupted, the next run makes
the same of what it finds. Ages count back from the newest day that the VM has minutes of, or from today, whichever is
earlier: a clock that runs ahead makes nothing coarse too early, unless it is that of the host which captures and of the one
which collects, which may be the same. Sums by the hour are left then, too.

`minutes/<vm>/thinned` says how far that has come (`hours`, `days`: the first days that are finer), so that the next run
need not read years of documents to find that nothing is to be done. Lost, it is found anew. What is written late of a day
for which that was done (a spool that was brought in after so long) stays fine until the days are made of hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from everywhen.formats.errors import FormatError
from everywhen.formats.fields import Json, whole
from everywhen.repository.documents import Documents
from everywhen.repository.minutes import PER_DAY, PREFIX, DayOfMinutes, day_of
from everywhen.repository.presence import SECOND
from everywhen.repository.repository import Repository
from everywhen.storage.base import ObjectNotFound, OutOfSpace

HOURS_AFTER, DAYS_AFTER = 90, 730
"""Days. A disk that is written to in each minute takes about 36 KB for a day, 0.9 KB as one of hours, 0.2 KB as one row."""
REACHED = "thinned"
_DAY_NS = 86_400 * SECOND


@dataclass(frozen=True, slots=True)
class Reached:
    """What lies before day `hours` has rows of an hour, what lies before day `days` of a day."""

    hours: int = 0
    days: int = 0

    def to_json(self) -> Json:
        return {"kind": "minutes thinned", "hours": self.hours, "days": self.days}

    @classmethod
    def from_json(cls, value: Json) -> Reached:
        """Raises Corrupt."""
        return cls(whole(value, "hours"), whole(value, "days"))

    def per(self, day: int) -> int:
        """Minutes in a row of that day."""
        return PER_DAY if day < self.days else 60 if day < self.hours else 1


def thin_minutes(repository: Repository, *, dry_run: bool) -> int:
    """How many documents were made coarser (or would be at most: some may be already). Raises StorageError."""
    documents = repository.documents
    today = repository.surroundings.clock() // _DAY_NS
    by_vm: dict[str, dict[str, int]] = {}
    for one in repository.store.list(PREFIX):
        vm, _, name = one.name.removeprefix(PREFIX).partition("/")
        if (day := day_of(name)) is not None:
            by_vm.setdefault(vm, {})[name] = day
    count = 0
    for vm, days in by_vm.items():
        newest = min(today, max(days.values()))
        wanted = Reached(max(0, newest - HOURS_AFTER), max(0, newest - DAYS_AFTER))
        before = _reached(documents, vm)
        due = {name: wanted.per(day) for name, day in days.items() if wanted.per(day) > before.per(day)}
        if dry_run:
            count += len(due)
            continue
        # A full medium is no reason for a gc to fail that has freed what it could: the next one goes on.
        with suppress(OutOfSpace):
            for made in _thin(documents, vm, due):
                count += made
            if due:
                documents.put(f"{PREFIX}{vm}/{REACHED}", wanted.to_json())
    return count


def _thin(documents: Documents, vm: str, due: dict[str, int]) -> Iterator[int]:
    """Make each of them coarser; 1 for what was changed."""
    for name, per in sorted(due.items()):
        try:
            day = DayOfMinutes.from_json(documents.get(f"{PREFIX}{vm}/{name}"))
        except (ObjectNotFound, FormatError):
            continue  # for verify to judge
        if day.per < per:
            documents.put(f"{PREFIX}{vm}/{name}", day.thinned(per).to_json())
            yield 1


def _reached(documents: Documents, vm: str) -> Reached:
    try:
        return Reached.from_json(documents.get(f"{PREFIX}{vm}/{REACHED}"))
    except (ObjectNotFound, FormatError):
        return Reached()
