# SPDX-License-Identifier: AGPL-3.0-or-later
"""Putting what nobody else can have put: an object with a fresh random salt or id in it.

A store that tries again by itself, because the answer to its first try was lost, says AlreadyExists about our own bytes.
That is a success. A writer that took it for a tombstone would believe that it was fenced.
"""

from __future__ import annotations

from collections.abc import Sequence

from everywhen.storage.base import AlreadyExists, Buffer, ObjectNotFound, ObjectStore


def put_once(store: ObjectStore, name: str, parts: Sequence[Buffer]) -> None:
    """Put `parts` if absent; durable on return. Raises AlreadyExists when other bytes stand there."""
    try:
        store.put(name, parts, if_absent=True)
    except AlreadyExists as error:
        try:
            ours = store.get(name) == b"".join(parts)
        except ObjectNotFound:
            ours = False
        if not ours:
            raise AlreadyExists(name, "there is another object of that name") from error
