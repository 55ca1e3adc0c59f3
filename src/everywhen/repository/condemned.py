# SPDX-License-Identifier: AGPL-3.0-or-later
"""What gc is going to delete: `condemned/<run>` documents with `packs` (hex), `points` (ids), `run`, `published_ns`.

Condemnation is irrevocable: nobody uses a condemned pack as the place of a chunk again, and nobody begins to read or to
build upon a condemned point (docs/locking.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import text, texts, whole
from everywhen.formats.ids import PackId
from everywhen.repository.documents import Documents
from everywhen.storage.base import ObjectNotFound

PREFIX = "condemned/"


@dataclass(frozen=True, slots=True)
class Condemnation:
    """What one gc run published."""

    run: str
    packs: frozenset[PackId]
    points: frozenset[str]
    published_ns: int


def publish(documents: Documents, condemnation: Condemnation) -> None:
    """Condemn packs and points; from now on, for ever."""
    value = {
        "kind": "condemned",
        "run": condemnation.run,
        "packs": sorted(pack.hex() for pack in condemnation.packs),
        "points": sorted(condemnation.points),
        "published_ns": condemnation.published_ns,
    }
    documents.put(PREFIX + condemnation.run, value, if_absent=True)


def withdraw(documents: Documents, run: str) -> None:
    """Remove the document of a run when all that it named is deleted."""
    documents.delete(PREFIX + run)


def list_condemned(documents: Documents) -> list[Condemnation]:
    """All that is condemned now. Raises FormatError when one cannot be read: then nothing may be written."""
    found = []
    for run in documents.names(PREFIX):
        try:
            value = documents.get(PREFIX + run)
        except ObjectNotFound:
            continue  # that run ended since the listing, its packs are gone
        try:
            packs = frozenset(PackId(bytes.fromhex(pack)) for pack in texts(value, "packs"))
        except ValueError as error:
            raise Corrupt(f"{PREFIX}{run}: a pack's id is not hex") from error
        points = frozenset(texts(value, "points"))
        found.append(Condemnation(text(value, "run"), packs, points, whole(value, "published_ns")))
    return found
