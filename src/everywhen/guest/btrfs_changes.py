# SPDX-License-Identifier: AGPL-3.0-or-later
"""Changes of a tree of Btrfs, laid over its items where they are read; the tree itself stays as it is on the disk."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator

from everywhen.formats.filesystems.btrfs import Key

Items = Iterator[tuple[Key, bytes]]


class Changes:
    """Items that are other ones, new, or gone."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._items: dict[Key, bytes | None] = {}
        self.bytes = 0
        """Of all items, also those that were replaced."""

    def put(self, key: Key, data: bytes) -> None:
        """This item is there, and so."""
        self._note(key)
        self._items[key] = data
        self.bytes += len(data)

    def remove(self, key: Key) -> None:
        """There is no such item."""
        self._note(key)
        self._items[key] = None

    def _note(self, key: Key) -> None:
        if key not in self._items:
            insort(self._keys, key)

    def over(self, below: Items, first: Key) -> Items:
        """The items of the tree with the changes; `below` begins with the last one that is not behind `first`."""
        at = max(0, bisect_right(self._keys, first) - 1)
        while at and self._items[self._keys[at]] is None:
            at -= 1  # to the last one that is there: an extent that begins there may go on over those that are gone
        for key, data in below:
            while at < len(self._keys) and self._keys[at] < key:
                yield from self._changed(self._keys[at])
                at += 1
            if at < len(self._keys) and self._keys[at] == key:
                yield from self._changed(key)
                at += 1
            elif key not in self._items:
                yield key, data
        for key in self._keys[at:]:
            yield from self._changed(key)

    def _changed(self, key: Key) -> Items:
        data = self._items[key]
        if data is not None:
            yield key, data
