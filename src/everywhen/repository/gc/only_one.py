# SPDX-License-Identifier: AGPL-3.0-or-later
"""One gc at a time: step G1 of docs/locking.md. Politeness, not safety."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from everywhen.repository.alone import alone_in_need
from everywhen.repository.errors import Busy
from everywhen.repository.presence import Attendance, Presence, list_presences
from everywhen.repository.repository import Repository
from everywhen.repository.space import has_reserve, make_reserve, with_reserve
from everywhen.storage.base import AlreadyExists

LOCK = "lock/gc"


@contextmanager
def only_one(repository: Repository, *, dry_run: bool) -> Iterator[None]:
    """G1. Raises Busy, StorageError.

    Also gives up the reserve when there is no room for the lock, and makes it again at the end.
    With `dry_run` only if it was there before: where nothing is to be done, gigabytes must not be written.
    """
    remake = not dry_run or has_reserve(repository.store)
    now = repository.surroundings.clock()
    presence = Presence(LOCK, repository.surroundings.holder, "gc", [], now, now)
    attendance = Attendance(repository.documents, presence, repository.surroundings.clock)
    with_reserve(repository.store, lambda: _take(repository, attendance))
    try:
        with alone_in_need(repository, "gc"):
            yield
    finally:
        attendance.end()
        if remake:
            make_reserve(repository.store)


def _take(repository: Repository, attendance: Attendance) -> None:
    try:
        attendance.begin(if_absent=True)
    except AlreadyExists:
        for other in list_presences(repository.documents, "lock/"):
            if other.name == LOCK and not other.expired(repository.surroundings.holder, repository.surroundings.clock()):
                raise Busy(
                    f"gc is running {other.where}. Backups and restores are not affected; a second gc cannot start."
                ) from None
        attendance.begin()
