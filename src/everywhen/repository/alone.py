# SPDX-License-Identifier: AGPL-3.0-or-later
"""One writer at a time, where the store cannot keep two apart [design 4.9.1, docs/locking.md].

Without put-if-absent a commit and a tombstone replace one another, so gc cannot fence; without consistent listing it
cannot know whom to wait for. `init` finds that out, and the superblock's feature `one-writer` keeps it. There each point
and each gc is made in a turn: an object `lock/alone-<random>`, refreshed like a session. It is put first, and the others
are listed afterwards, so of two that begin at once at least one sees the other, and gives up; perhaps both do.

A turn whose holder is dead or silent for ten minutes is over. Whoever wakes up after that finds, before its commit, that
the turn is another one's, or its point's name taken. That look and the commit are two steps: such a store has no one step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from everywhen.formats.ids import PointId, random_word
from everywhen.repository.errors import Busy, Fenced
from everywhen.repository.presence import Presence, list_presences
from everywhen.repository.repository import Repository

PREFIX = "lock/alone-"


@dataclass(frozen=True, slots=True)
class Turn:
    """To write; `name` is the object's, '' where writers need not take turns."""

    repository: Repository
    name: str

    def demand(self, point: PointId) -> None:
        """Before `point` is committed. Raises Fenced when the turn is over, StorageError."""
        if self.name and (_others(self.repository, self.name) or self.repository.points.is_decided(point)):
            raise Fenced(
                f"{point}: this backup was silent for too long, and another writer began; nothing was committed. Run it again."
            )


@contextmanager
def alone(repository: Repository, what: str) -> Iterator[Turn]:
    """A turn, over when the body ends. Raises Busy, StorageError."""
    if not repository.unlocked.superblock.one_writer:
        yield Turn(repository, "")
        return
    name = PREFIX + random_word(repository.surroundings.randomness, 16)
    attendance = repository.attend(name, what, [])
    attendance.begin()
    try:
        for other in _others(repository, name):
            raise Busy(
                f"{other.what} on {other.holder.host} (pid {other.holder.pid}) is writing to {repository.store.url}, and this "
                "store cannot keep two writers apart: they take turns. Nothing was touched."
            )
        yield Turn(repository, name)
    finally:
        attendance.end()


def _others(repository: Repository, own: str) -> list[Presence]:
    """The turns of others; those that are over are cleared away."""
    here, now = repository.surroundings.holder, repository.surroundings.clock()
    others = []
    for found in list_presences(repository.documents, "lock/"):
        if not found.name.startswith(PREFIX) or found.name == own:
            continue
        if found.expired(here, now):
            repository.documents.delete(found.name)
        else:
            others.append(found)
    return others
