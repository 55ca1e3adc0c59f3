# SPDX-License-Identifier: AGPL-3.0-or-later
"""A store that remembers every change, so that a crash test can cut after each of them [I-9].

A run on a RecordingStore gives a list of changes in the order in which they took effect. For each prefix of it, `replay`
makes the state that a crash at that moment leaves: in any store a put that was cut short leaves no object. The store for
file systems also keeps what `leave_torn` writes: the temporary file, with any part of the content.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from everywhen.storage.base import Buffer, ObjectStore, check_name
from everywhen.storage.forwarding import ForwardingStore
from everywhen.storage.posix import TEMPORARY


@dataclass(frozen=True, slots=True)
class Put:
    """An object that was stored: the first of its name if `if_absent`."""

    name: str
    content: bytes
    if_absent: bool


@dataclass(frozen=True, slots=True)
class Delete:
    """An object that was removed, if it was there."""

    name: str


Change: TypeAlias = Put | Delete


class RecordingStore(ForwardingStore):
    """`changes` has what succeeded, in order; changes are made one at a time, so that there is an order.

    `len(changes)` when a call returned is the number of changes that must survive for what the call promised.
    """

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.changes: list[Change] = []
        self._lock = threading.Lock()

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        """See ObjectStore."""
        content = b"".join(parts)
        with self._lock:
            self.inner.put(name, [content], if_absent=if_absent)
            self.changes.append(Put(name, content, if_absent))

    def delete(self, name: str) -> None:
        """See ObjectStore."""
        with self._lock:
            self.inner.delete(name)
            self.changes.append(Delete(name))


def replay(changes: Iterable[Change], store: ObjectStore) -> None:
    """Make the same changes in `store`, which holds what the recorded store held at first."""
    for change in changes:
        if isinstance(change, Put):
            store.put(change.name, [change.content], if_absent=change.if_absent)
        else:
            store.delete(change.name)


def leave_torn(put: Put, root: str | os.PathLike[str], *, length: int) -> None:
    """What a put into the PosixStore at `root` leaves when it is cut after `length` bytes: a temporary file."""
    folder = os.path.dirname(os.path.join(root, *check_name(put.name).split("/")))
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"{TEMPORARY}0-{length}"), "wb") as file:
        file.write(put.content[:length])
