# SPDX-License-Identifier: AGPL-3.0-or-later
"""Copies of chunks that were found damaged: `damage/<pack>` documents with `offsets` of records and the reasons.

A known bad copy counts as absent: the next backup that meets the same content stores it again, and so heals it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from everywhen.formats.errors import Corrupt
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


def damaged_copies(documents: Documents) -> dict[PackId, list[int]]:
    """Offsets of bad records by pack."""
    found = {}
    for name in documents.names(PREFIX):
        try:
            value = documents.get(PREFIX + name)
            offsets = value.get("offsets", {})
            found[PackId(bytes.fromhex(name))] = [whole({"offset": int(key)}, "offset") for key in offsets]
        except ObjectNotFound:
            continue
        except (ValueError, AttributeError, TypeError) as error:
            raise Corrupt(f"{PREFIX}{name}: not a list of offsets") from error
    return found
