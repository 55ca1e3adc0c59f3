# SPDX-License-Identifier: AGPL-3.0-or-later
"""The result of marking: which stored copies are needed. One byte for each copy in the index (100 MB for 100 million).

Copies have dense numbers: the first row of their pack, plus their row in it. They mean something in one run only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everywhen.formats.ids import PackId
from everywhen.formats.node import Names
from everywhen.repository.index.pack_table import PackTable

_LIVE, _BROKEN = 1, 2


class PackUse(NamedTuple):
    """How much of a pack is needed: rows and stored bytes, all and live."""

    pack: PackId
    rows: int
    live_rows: int
    stored_bytes: int
    live_bytes: int


@dataclass(slots=True)
class Findings:
    """Names (n, 32) that stand for `count` of their kind: all of them, or a sample when there are very many."""

    count: int = 0
    names: Names = field(default_factory=lambda: np.empty((0, 32), dtype=np.uint8))
    limit: int = 1000

    def note(self, names: Names) -> None:
        """Count names, and keep some of them."""
        self.count += len(names)
        room = self.limit - len(self.names)
        if room > 0:
            self.names = np.concatenate((self.names, names[:room]))


@dataclass(slots=True)
class Popular:
    """Chunks that many depend on: `names` (n, 32), `references` (n,), `full_copies` (n,) that are present."""

    names: Names = field(default_factory=lambda: np.empty((0, 32), dtype=np.uint8))
    references: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    full_copies: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def note(self, names: Names, references: NDArray[np.int64], full_copies: NDArray[np.int64]) -> None:
        """Add some."""
        self.names = np.concatenate((self.names, names))
        self.references = np.concatenate((self.references, references))
        self.full_copies = np.concatenate((self.full_copies, full_copies))


class Marks:
    """Which copies are live. Excluded packs have live copies only where no other copy exists: those gc must move."""

    def __init__(self, packs: PackTable) -> None:
        self._packs = packs
        self._lines = packs.lines()
        self._first = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(self._lines["rows"], dtype=np.int64)))
        self._state = np.zeros(int(self._first[-1]), dtype=np.uint8)
        self._live_bytes = np.zeros(len(self._lines), dtype=np.int64)
        self._live_rows = np.zeros(len(self._lines), dtype=np.int64)
        self.live_names = 0
        """Different names that were marked, bases that nobody else names not counted."""
        self.missing = Findings()
        """Live names without any copy."""
        self.broken = Findings()
        """Live chunks whose chosen copy is a delta, a base of which has no full copy."""
        self.popular = Popular()
        """Names that at least `threshold` map entries use, or that are a base of at least so many live deltas. A name may
        be here twice, once for each reason."""

    def number(self, packs: NDArray[np.uint32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Dense numbers of copies; `packs` are numbers of packs that were known when marking finished."""
        return self._first.take(packs) + rows

    def set_live(self, copies: NDArray[np.int64], packs: NDArray[np.uint32], sizes: NDArray[np.uint32]) -> None:
        """Mark copies (dense numbers, each once) of `sizes` stored bytes."""
        new = (self._state.take(copies) & _LIVE) == 0
        copies, packs, sizes = copies[new], packs[new], sizes[new]
        self._state[copies] |= _LIVE
        self._live_rows += np.bincount(packs, minlength=len(self._lines))
        # Sums of weights are floats: exact up to 2**53 bytes.
        self._live_bytes += np.bincount(packs, weights=sizes, minlength=len(self._lines)).astype(np.int64)

    def set_broken(self, copies: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Note copies (dense numbers) as unreadable deltas; which of them are news, the first of equal ones only."""
        _, first = np.unique(copies, return_index=True)
        news = np.zeros(len(copies), dtype=np.bool_)
        news[first] = (self._state.take(copies[first]) & _BROKEN) == 0
        self._state[copies] |= _BROKEN
        return news

    def uses(self) -> list[PackUse]:
        """Every pack that is present, the ones without live copies too."""
        return [
            PackUse(
                PackId(line["id"].tobytes()),
                int(line["rows"]),
                int(self._live_rows[number]),
                int(line["bytes"]),
                int(self._live_bytes[number]),
            )
            for number, line in enumerate(self._lines)
            if not line["removed"]
        ]

    def rows(self, pack: PackId) -> int:
        """How many rows the index has of a pack; 0 of one that is not known."""
        number = self._packs.number(pack)
        return 0 if number is None or number >= len(self._lines) else int(self._lines[number]["rows"])

    def live_rows(self, pack: PackId) -> NDArray[np.int64]:
        """Rows of the live copies of a pack, ascending; none of a pack that is not known."""
        number = self._packs.number(pack)
        if number is None or number >= len(self._lines):
            return np.empty(0, dtype=np.int64)
        return np.nonzero(self._state[self._first[number] : self._first[number + 1]] & _LIVE)[0]
