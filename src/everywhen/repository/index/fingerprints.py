# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which full chunks had a page with this fingerprint: candidates for delta bases (design 4.2).

The same sorted runs as the chunk index, in a folder of their own: 20 bytes an entry. Which fingerprints are kept at all
(say, one page in four) is decided by who computes them. A candidate is a hint: look its name up before using it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everywhen.formats.ids import PackId, Randomness
from everywhen.formats.pack import PackIndex
from everywhen.repository.index.entries import split_names
from everywhen.repository.index.run_cache import RunCache, RunKind
from everywhen.repository.index.runs import Keys, Records

KEPT = 4
"""Candidates kept of one fingerprint: the newest. Pages that are everywhere would otherwise fill the table."""

_ENTRY = np.dtype([("chunk", np.uint64), ("pack", np.uint32)])


def newest(keys: Keys, records: Records) -> tuple[Keys, Records]:
    """Of the rows of each key (sorted) those of the `KEPT` newest packs, which are those with the highest numbers."""
    if len(keys) <= KEPT or not (keys[KEPT:] == keys[:-KEPT]).any():
        return keys, records
    order = np.lexsort((records["pack"], keys))
    keys, records = keys.take(order), records.take(order)
    rows = np.nonzero(np.append(keys[KEPT:] != keys[:-KEPT], np.ones(KEPT, dtype=np.bool_)))[0]
    return keys.take(rows), records.take(rows)


_KIND = RunKind(b"prints 1", _ENTRY, newest)


class Candidates(NamedTuple):
    """Pairs: `which` (m,) position in what was asked for, `chunk` (m,) key of a chunk for `ChunkIndex.names_of_full`."""

    which: NDArray[np.int64]
    chunk: NDArray[np.uint64]


class FingerprintTable:
    """Safe to use from several threads, and beside other processes on the same folder. Raises CacheDamaged as the index."""

    def __init__(self, directory: str, randomness: Randomness) -> None:
        """Open the table in `directory`, or begin an empty one. Raises CacheDamaged, OSError."""
        self._cache = RunCache(directory, _KIND, randomness)

    def known_packs(self) -> set[PackId]:
        """Packs whose fingerprints are in the table."""
        return {PackId(pack) for pack in self._cache.packs.known()}

    def add_pack(self, pack: PackId, index: PackIndex) -> None:
        """Make the fingerprints of a pack's full chunks known. A pack that is known is left alone."""
        rows = np.repeat(np.arange(len(index.fingerprint_counts)), index.fingerprint_counts)
        full = index.base_counts.take(rows) == 0
        records = np.zeros(int(full.sum()), dtype=_ENTRY)
        records["chunk"] = split_names(index.names)[0].take(rows[full])
        self._cache.add(pack, 0, index.fingerprints[full], records)

    def remove_packs(self, packs: Iterable[PackId]) -> None:
        """Packs that are no longer in the repository."""
        self._cache.remove(packs)

    def exclude(self, packs: Iterable[PackId]) -> None:
        """Packs whose chunks this process must not rely on."""
        self._cache.packs.exclude(packs)

    def refresh(self) -> None:
        """See what other processes have flushed."""
        self._cache.refresh()

    def flush(self) -> None:
        """Let other processes see what was added and removed here."""
        self._cache.flush()

    def close(self) -> None:
        """Flush and end."""
        self._cache.close()

    def candidates(self, fingerprints: Keys) -> Candidates:
        """Full chunks that had a page with one of `fingerprints` (n,): of each at most `KEPT` a run."""
        which: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        chunk: list[NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
        for placed in self._cache.view():
            for step, (at, rows) in enumerate(placed.run.matches(fingerprints)):
                if step == KEPT:
                    break  # a run in memory has not been pruned yet
                records = placed.run.take(rows)
                usable = self._cache.packs.usable.take(placed.packs(records))
                which.append(at[usable])
                chunk.append(records["chunk"][usable])
        return Candidates(np.concatenate(which), np.concatenate(chunk))
