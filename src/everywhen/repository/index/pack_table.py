# SPDX-License-Identifier: AGPL-3.0-or-later
"""The packs that one process knows, by number. Numbers are this process's own and never change while it runs.

The files of the cache number packs too (`cache_manifest`); other processes add to those, so a process translates.
`usable` and `present` may be read by any thread while one thread adds: rows appear whole, before anything refers to them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from everywhen.repository.index.cache_manifest import PACK_LINE


class PackTable:
    """Numbers, sizes and usability of packs."""

    def __init__(self) -> None:
        self._number: dict[bytes, int] = {}
        self._ids: list[bytes] = []
        self._lines = np.zeros(64, dtype=PACK_LINE)
        self._excluded: set[bytes] = set()
        self.present = np.zeros(64, dtype=np.bool_)
        """By number: not removed."""
        self.usable = np.zeros(64, dtype=np.bool_)
        """By number: neither removed nor excluded."""

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, pack: bytes, rows: int, size: int) -> int:
        """A number for a pack that is not known, of `rows` entries and `size` stored bytes."""
        return int(self.extend(np.array([(pack, rows, 0, size)], dtype=PACK_LINE))[0])

    def extend(self, lines: NDArray[np.void]) -> NDArray[np.uint32]:
        """Numbers for the packs of `lines` (PACK_LINE): those they have, or new ones; always new ones when removed."""
        raw, removed = lines["id"].tobytes(), lines["removed"] != 0
        ids = [raw[at : at + 16] for at in range(0, len(raw), 16)]
        numbers = np.array([self._number.get(pack, -1) for pack in ids], dtype=np.int64)
        new = np.nonzero((numbers < 0) | removed)[0]
        first = len(self._ids)
        numbers[new] = np.arange(first, first + len(new))
        self._make_room(first + len(new))
        self._lines[first : first + len(new)] = lines[new]
        self.present[first : first + len(new)] = ~removed[new]
        self._ids.extend(ids[row] for row in new.tolist())
        for row, number in zip(new.tolist(), range(first, len(self._ids)), strict=True):
            if not removed[row]:
                self._number[ids[row]] = number
                self.usable[number] = ids[row] not in self._excluded
        return numbers.astype(np.uint32)

    def _make_room(self, count: int) -> None:
        missing = max(count, 2 * len(self._lines)) - len(self._lines)
        if count > len(self._lines):
            room = np.zeros(missing, dtype=np.bool_)
            self._lines = np.concatenate((self._lines, np.zeros(missing, dtype=PACK_LINE)))
            self.present = np.concatenate((self.present, room))
            self.usable = np.concatenate((self.usable, room))

    def number(self, pack: bytes) -> int | None:
        """The number of a pack that is known, or None."""
        return self._number.get(pack)

    def pack_id(self, number: int) -> bytes:
        """The pack of a number, also when it was removed since."""
        return self._ids[number]

    def known(self) -> set[bytes]:
        """Ids of all packs that are present."""
        return set(self._number)

    def remove(self, number: int) -> None:
        """Forget a pack for good. Its number stays its own; the same id added again gets another one."""
        self.usable[number] = False
        self.present[number] = False
        if self._number.get(self._ids[number]) == number:
            del self._number[self._ids[number]]

    def exclude(self, packs: Iterable[bytes]) -> None:
        """Packs, known or to come, that are present but not to be used."""
        for pack in packs:
            self._excluded.add(pack)
            number = self._number.get(pack)
            if number is not None:
                self.usable[number] = False

    def is_excluded(self, pack: bytes) -> bool:
        """Whether the pack was excluded."""
        return pack in self._excluded

    def flags(self, packs: Iterable[bytes]) -> NDArray[np.bool_]:
        """By number, for all packs so far: whether the pack is among `packs`."""
        flags = np.zeros(len(self.usable), dtype=np.bool_)
        for pack in packs:
            number = self._number.get(pack)
            if number is not None:
                flags[number] = True
        return flags

    def lines(self, numbers: Iterable[int] | None = None) -> NDArray[np.void]:
        """Copies of the lines (PACK_LINE) of these packs, or of all by number; `removed` is filled in."""
        lines = self._lines[: len(self._ids)].copy()
        lines["removed"] = ~self.present[: len(lines)]
        return lines if numbers is None else lines.take(np.fromiter(numbers, dtype=np.int64))
