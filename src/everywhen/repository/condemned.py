# SPDX-License-Identifier: AGPL-3.0-or-later
"""What gc is going to delete: `condemned/<run>` documents with `packs` (hex), `points` (ids), `run`, `published_ns`.

Condemnation is irrevocable: nobody uses a condemned pack as the place of a chunk again, and nobody begins to read or to
build upon a condemned point (docs/locking.md). So a document counts from its first copy's put until both copies are gone,
and a twin that turns up late, or alone, does no harm: what it names is avoided, and the next gc withdraws it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from everywhen.formats.errors import Corrupt, FormatError
from everywhen.formats.fields import Json, texts, whole
from everywhen.formats.ids import PackId
from everywhen.repository.documents import Documents
from everywhen.repository.errors import Damaged
from everywhen.storage.base import ObjectNotFound

PREFIX = "condemned/"


@dataclass(frozen=True, slots=True)
class Condemnation:
    """What one gc run published."""

    run: str
    packs: frozenset[PackId]
    points: frozenset[str]
    published_ns: int

    def to_json(self) -> Json:
        packs = sorted(pack.hex() for pack in self.packs)
        names = {"packs": packs, "points": sorted(self.points)}
        return {"kind": "condemned", "run": self.run, **names, "published_ns": self.published_ns}

    @classmethod
    def from_json(cls, name: str, value: Json) -> Condemnation:
        try:
            packs = frozenset(PackId(bytes.fromhex(pack)) for pack in texts(value, "packs"))
        except ValueError as error:
            raise Corrupt(f"{PREFIX}{name}: a pack's id is not hex") from error
        return cls(name, packs, frozenset(texts(value, "points")), whole(value, "published_ns"))


def publish(documents: Documents, condemnation: Condemnation) -> None:
    """Condemn packs and points; from now on, for ever."""
    documents.put(PREFIX + condemnation.run, condemnation.to_json(), if_absent=True)


def withdraw(documents: Documents, run: str) -> None:
    """Remove the document of a run when all that it named is deleted."""
    documents.delete(PREFIX + run)


def list_condemned(documents: Documents) -> list[Condemnation]:
    """All that is condemned now. Raises Damaged when one cannot be read: then nothing may be written, nor deleted."""
    found, unreadable = read_condemned(documents)
    if unreadable:
        raise Damaged(f"{unreadable[0]}. What gc is about to delete is not known, so nothing was done")
    return found


def read_condemned(documents: Documents) -> tuple[list[Condemnation], list[str]]:
    """`list_condemned` for who only reads: with a sentence for each document of which neither copy can be read."""
    found, unreadable = [], []
    for run in documents.names(PREFIX):
        try:
            found.append(Condemnation.from_json(run, documents.get(PREFIX + run)))
        except ObjectNotFound:
            continue  # that run ended since the listing, its packs are gone
        except FormatError as error:
            unreadable.append(f"{PREFIX}{run} cannot be read: {error}")
    return found, unreadable


def still_published(documents: Documents, condemned: Iterable[Condemnation]) -> list[Condemnation]:
    """Those of which a copy is there yet. The others were withdrawn by another gc, or given up by a person."""
    there = set(documents.names(PREFIX))
    return [one for one in condemned if one.run in there]
