# SPDX-License-Identifier: AGPL-3.0-or-later
"""Copies of chunks that were found damaged: `damage/<pack>` documents with `offsets` of records and the reasons.

A known bad copy counts as absent: the next backup that meets the same content stores it again, and so heals it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from everywhen.formats.errors import Corrupt, FormatError
from everywhen.formats.fields import whole
from everywhen.formats.ids import PackId
from everywhen.repository.documents import Documents
from everywhen.storage.base import ObjectNotFound

PREFIX = "damage/"


@dataclass(frozen=True, slots=True)
class PackDamage:
    """Byte offsets of bad records in one pack, with the reason."""

    pack: PackId
    offsets: dict[int, str] = field(default_factory=dict)
    found_ns: int = 0


def record(documents: Documents, damage: PackDamage) -> None:
    """Add to what is known of a pack."""
    offsets = {str(offset): why for offset, why in damage.offsets.items()}
    try:
        before = documents.get(PREFIX + damage.pack.hex()).get("offsets", {})
    except ObjectNotFound:
        before = {}
    value = {"kind": "damage", "offsets": {**before, **offsets}, "found_ns": damage.found_ns}
    documents.put(PREFIX + damage.pack.hex(), value)


def forget(documents: Documents, pack: PackId) -> None:
    """The pack is gone, or was found whole again."""
    documents.delete(PREFIX + pack.hex())


def damaged_copies(documents: Documents, unreadable: list[str] | None = None) -> dict[PackId, list[int]]:
    """Offsets of bad records by pack. Raises FormatError where a note cannot be read: who writes, or deletes, might rely on
    what is bad. Who only reads meets the damage itself, and gives `unreadable`: a list that gets a sentence for each."""
    found = {}
    for name in documents.names(PREFIX):
        try:
            value = documents.get(PREFIX + name)
            offsets = value.get("offsets", {})
            found[PackId(bytes.fromhex(name))] = [whole({"offset": int(key)}, "offset") for key in offsets]
        except ObjectNotFound:
            continue
        except (FormatError, ValueError, AttributeError, TypeError) as error:
            if unreadable is None:
                raise Corrupt(f"{PREFIX}{name} cannot be read: {error}") from error
            unreadable.append(f"{PREFIX}{name} cannot be read: {error}")
    return found
