# SPDX-License-Identifier: AGPL-3.0-or-later
"""One writer at a time, where the store cannot keep two apart [design 4.9.1, docs/locking.md].

Without put-if-absent a commit and a tombstone replace one another, so gc cannot fence; without consistent listing it
cannot know whom to wait for. `init` finds that out, and the superblock's feature `one-writer` keeps it. There each point,
each gc, each change of keys and each claim of a capture is made in a turn: an object `lock/alone-<random>`, refreshed like
a session. It is put first, and the others are listed afterwards, so of two that begin at once at least one sees the other,
and gives up; perhaps both do.

A turn whose holder is dead or silent for ten minutes is over. Whoever wakes up after that finds, before its commit, that
the turn is another one's, or its point's name taken. That look and the commit are two steps: such a store has no one step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from everywhen.formats.ids import PointId, random_word
from everywhen.formats.pack import CIPHER_AES_256_GCM, CIPHER_NONE
from everywhen.repository.documents import Documents
from everywhen.repository.errors import Busy, Fenced
from everywhen.repository.keys.cipher import Ciphers
from everywhen.repository.keys.keys import Unlocked
from everywhen.repository.points import RecoveryPoints
from everywhen.repository.presence import Attendance, Presence, list_presences
from everywhen.repository.repository import Surroundings
from everywhen.repository.space import with_reserve
from everywhen.storage.base import ObjectStore

PREFIX = "lock/alone-"


class Place(Protocol):
    """A repository, open or merely unlocked."""

    @property
    def documents(self) -> Documents: ...

    @property
    def unlocked(self) -> Unlocked: ...

    @property
    def surroundings(self) -> Surroundings: ...


@dataclass(frozen=True, slots=True)
class Keys:
    """A repository of which only the keys are open. Made by `at_keys`."""

    documents: Documents
    unlocked: Unlocked
    surroundings: Surroundings


def at_keys(store: ObjectStore, unlocked: Unlocked, surroundings: Surroundings) -> Keys:
    """A repository without its caches and its index."""
    ciphers = Ciphers(unlocked.keyset, CIPHER_AES_256_GCM if unlocked.superblock.encrypted else CIPHER_NONE)
    return Keys(Documents(store, unlocked.repository_id, ciphers, surroundings.randomness), unlocked, surroundings)


@dataclass(frozen=True, slots=True)
class Turn:
    """To write; `name` is the object's, '' where writers need not take turns."""

    place: Place
    name: str

    def demand(self, points: RecoveryPoints, point: PointId) -> None:
        """Before `point` is committed. Raises Fenced when the turn is over, StorageError."""
        if self.name and (_others(self.place, self.name) or points.is_decided(point)):
            raise Fenced(
                f"{point}: this backup was silent for too long, and another writer began; nothing was committed. Run it again."
            )


@contextmanager
def alone(place: Place, what: str) -> Iterator[Turn]:
    """A turn, over when the body ends. Raises Busy, StorageError."""
    if not place.unlocked.superblock.one_writer:
        yield Turn(place, "")
        return
    surroundings = place.surroundings
    name, now = PREFIX + random_word(surroundings.randomness, 16), surroundings.clock()
    attendance = Attendance(place.documents, Presence(name, surroundings.holder, what, [], now, now), surroundings.clock)
    attendance.begin()
    try:
        for other in _others(place, name):
            raise Busy(
                f"{other.what} is writing to {place.documents.store.url} {other.where}, and this store cannot keep two writers "
                "apart: they take turns. Nothing was touched."
            )
        yield Turn(place, name)
    finally:
        attendance.end()


@contextmanager
def alone_in_need(place: Place, what: str) -> Iterator[None]:
    """`alone`, at the expense of the reserve where there is no room: for cleaning, and for what people decide."""
    with ExitStack() as turn:
        with_reserve(place.documents.store, lambda: turn.enter_context(alone(place, what)))
        yield


def _others(place: Place, own: str) -> list[Presence]:
    """The turns of others; those that are over are cleared away."""
    here, now = place.surroundings.holder, place.surroundings.clock()
    others = []
    for found in list_presences(place.documents, "lock/"):
        if not found.name.startswith(PREFIX) or found.name == own:
            continue
        if found.expired(here, now):
            place.documents.delete(found.name)
        else:
            others.append(found)
    return others
