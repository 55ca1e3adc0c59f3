# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where in a store a repository's objects are (docs/architecture.md): what lies beside these is somebody else's.

A repository may have been made in a folder or bucket that holds other files. They are neither counted nor touched.
"""

from __future__ import annotations

from contextlib import suppress

from everywhen.formats.superblock import SUPERBLOCK_NAME
from everywhen.storage.base import ObjectNotFound, ObjectReader

FOLDERS = (
    "condemned",
    "damage",
    "drops",
    "epochs",
    "holds",
    "journals",
    "keys",
    "leases",
    "lock",
    "minutes",
    "packs",
    "points",
    "probe",
    "reserve",
    "sessions",
    "settings",
    "twins",
    "undone",
    "vms",
)
"""First components of all names but the superblock's. `probe` is `init`'s, which tries there what the store can do."""


def stored_bytes(store: ObjectReader) -> int:
    """What the repository takes in its store, without the reserve. Raises StorageError."""
    total = 0
    with suppress(ObjectNotFound):  # its twin is enough
        total = store.size(SUPERBLOCK_NAME)
    return total + sum(found.size for folder in FOLDERS if folder != "reserve" for found in store.list(folder + "/"))
