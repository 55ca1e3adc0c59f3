# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names in folders, found without reading the folder again for each: who asks for one name asks for its neighbours too.

Without it 600 names of one folder took 14 s, a name at a time, on FAT.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Generic, TypeVar

from everywhen.guest.errors import GuestError
from everywhen.guest.tree import Entry

_T = TypeVar("_T")

_MOST_NAMES = 200_000
"""Of all folders that are kept: some 30 MB. One with more names is read again for each."""


class Lookups(Generic[_T]):
    """What `listing` gives for folders, by key. Where two have a key, the first counts."""

    def __init__(self, listing: Callable[[Entry], Iterator[tuple[Sequence[Hashable], _T]]]) -> None:
        self._listing = listing
        self._folders: OrderedDict[tuple[int, int], dict[Hashable, _T]] = OrderedDict()
        self._names = 0

    def find(self, folder: Entry, *keys: Hashable) -> _T | None:
        """What has the first of these keys that is there at all. Raises what the listing raises before its first entry."""
        known = self._folders.get(folder.identity)
        if known is None:
            known = self._read(folder)
        else:
            self._folders.move_to_end(folder.identity)
        return next((known[key] for key in keys if key in known), None)

    def _read(self, folder: Entry) -> dict[Hashable, _T]:
        known: dict[Hashable, _T] = {}
        try:
            for keys, value in self._listing(folder):
                for key in keys:
                    known.setdefault(key, value)
        except GuestError:
            if not known:
                raise
            return known  # what follows the damage is not found; its listing says so
        if len(known) <= _MOST_NAMES:
            self._folders[folder.identity] = known
            self._names += len(known)
            while self._names > _MOST_NAMES:
                self._names -= len(self._folders.popitem(last=False)[1])
        return known
