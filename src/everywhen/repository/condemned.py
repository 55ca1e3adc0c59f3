# SPDX-License-Identifier: AGPL-3.0-or-later
"""Condemned packs: `condemned/<run>` documents, `{"kind": "condemned", "run": …, "packs": [hex, …], "published_ns": …}`.

Condemnation is irrevocable: nobody uses a condemned pack as the place of a chunk again (docs/locking.md).
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
    published_ns: int


def publish(documents: Documents, condemnation: Condemnation) -> None:
    """Condemn the packs; from now on, for ever."""
    packs = sorted(pack.hex() for pack in condemnation.packs)
    value = {"kind": "condemned", "run": condemnation.run, "packs": packs, "published_ns": condemnation.published_ns}
    documents.put(PREFIX + condemnation.run, value, if_absent=True)


def withdraw(documents: Documents, run: str) -> None:
    """Remove the document of a run whose packs are all deleted."""
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
        found.append(Condemnation(text(value, "run"), packs, whole(value, "published_ns")))
    return found


def condemned_packs(documents: Documents) -> set[PackId]:
    """The ids of all condemned packs."""
    return {pack for condemnation in list_condemned(documents) for pack in condemnation.packs}
