# SPDX-License-Identifier: AGPL-3.0-or-later
"""A hive of Windows' registry, as far as one key's values are wanted (layouts: formats/registry.py).

Its transaction logs are not replayed: a Windows that runs may have in them what it changed in the last hour.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from everywhen.formats.registry import (
    HEAD_BYTES,
    LONGEST_VALUE,
    HiveKey,
    cell_bytes,
    decode_head,
    decode_key,
    decode_places,
    decode_subkeys,
    decode_value,
)
from everywhen.guest.errors import GuestDamaged, GuestLimit, NoSuchPath
from everywhen.guest.reading import piece
from everywhen.guest.tree import Content

_MOST_CELLS = 1 << 16
"""Read in all: a hive is asked for one key, whose parents have a few dozen others beside it."""
_MOST_BYTES = 64 << 20
"""Of these cells together: many keys may be the same cell, of a MiB."""


class Hive:
    """Reads keys and values. Raises GuestError, FormatError."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._head = decode_head(piece(content, 0, HEAD_BYTES, "the head of the registry"))
        self._cells = self._bytes = 0

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it is in its logs alone."""
        return self._head.whole

    def values(self, path: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of all values of a key, by its path below the root; longer ones than any that is wanted left out."""
        key = decode_key(self._cell(self._head.root))
        for name in path:
            found = next((one for one in self._subkeys(key) if one.name.upper() == name.upper()), None)
            if found is None:
                raise NoSuchPath(name, key.name)
            key = found
        if not key.values:
            return
        for place in decode_places(self._cell(key.values_place), key.values):
            value = decode_value(self._cell(place))
            if value.here is not None:
                yield value.name, value.here
            elif value.length <= LONGEST_VALUE:
                content = self._cell(value.place)
                if value.length > len(content):
                    raise GuestDamaged(f"the value {value.name!r} of the registry is longer than its cell")
                yield value.name, content[: value.length]

    def _subkeys(self, key: HiveKey) -> Iterator[HiveKey]:
        if not key.subkeys:
            return
        places, of_lists = decode_subkeys(self._cell(key.subkeys_place))
        for place in places:
            if not of_lists:
                yield decode_key(self._cell(place))
                continue
            inner, _deeper = decode_subkeys(self._cell(place))
            for one in inner:
                yield decode_key(self._cell(one))

    def _cell(self, place: int) -> bytes:
        if place + 4 > self._head.length:
            raise GuestDamaged(f"the registry has nothing at {place}, where a cell must be")
        length = cell_bytes(piece(self._content, HEAD_BYTES + place, 4, "a cell of the registry"))
        self._cells, self._bytes = self._cells + 1, self._bytes + length
        if self._cells > _MOST_CELLS or self._bytes > _MOST_BYTES:
            raise GuestLimit("the registry: more keys beside one another than any has")
        return piece(self._content, HEAD_BYTES + place + 4, length, "a cell of the registry")
