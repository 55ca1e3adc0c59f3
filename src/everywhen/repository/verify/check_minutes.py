# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checks of `minutes/` (rule 4.10.6): each document can be read. There is one copy of each; statistics are lost, no moment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

from everywhen.formats.errors import FormatError
from everywhen.repository.minutes import PREFIX, DayOfMinutes, day_of
from everywhen.repository.repository import Repository
from everywhen.repository.verify.findings import Finding, Remedy
from everywhen.storage.base import ObjectNotFound

_PARALLEL_READS = 8
_EPOCH = date(1970, 1, 1)
_LAST_DAY = (date.max - _EPOCH).days


def check_minutes(repository: Repository) -> list[Finding]:
    """What cannot be read. Raises StorageError."""
    names = sorted(one.name for one in repository.store.list(PREFIX))
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        found = pool.map(lambda name: _finding(repository, name), names)
        return [finding for finding in found if finding is not None]


def forget_minutes(repository: Repository, name: str) -> bool:
    """Remove a document that cannot be read; False where a capture has written it anew meanwhile. Raises StorageError."""
    if _finding(repository, name) is None:
        return False
    repository.documents.delete(name)
    return True


def _finding(repository: Repository, name: str) -> Finding | None:
    day = day_of(name.rpartition("/")[2])
    if day is None:
        return None  # how far thinning has come is found anew; what else has another name is none of ours
    try:
        DayOfMinutes.from_json(repository.documents.get(name))
    except ObjectNotFound:
        return None
    except FormatError as error:
        when = f"{_EPOCH + timedelta(day)}" if day <= _LAST_DAY else f"day {day}"
        why = f"{error}. What was written on {when}, by the minute, is not known any more; no moment needs it"
        return Finding("4.10.6", name, why, remedy=Remedy.FORGET)
    return None
