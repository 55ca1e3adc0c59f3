# SPDX-License-Identifier: AGPL-3.0-or-later
"""The chunk index: where each chunk is, for 100 million of them in 1 GB of memory (design 4.9.8, P6).

A cache (I-7): built from the indexes of the packs, never believed when damaged. `CacheDamaged` may come from every
method that looks something up; then `discard` the folder, open it anew and add all packs again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everywhen.formats.ids import PackId, Randomness
from everywhen.formats.node import Names
from everywhen.formats.pack import FRAME_SIZE, PackIndex
from everywhen.repository.index.entries import (
    ENTRY,
    base_counts,
    entries_of,
    join_names,
    raw_lengths,
    split_names,
    split_shape,
    stored_lengths,
)
from everywhen.repository.index.pack_table import PackTable
from everywhen.repository.index.run_cache import PlacedRun, RunCache, RunKind
from everywhen.repository.index.runs import Keys, Records

_KIND = RunKind(b"chunks 1", ENTRY, lambda keys, records: (keys, records))
_RECORD = struct.Struct("=24sIIQ16x")


class Copy(NamedTuple):
    """One copy of a chunk: `length` bytes at `offset` of `pack` hold the stored record, of `raw_length` content bytes."""

    pack: PackId
    offset: int
    length: int
    raw_length: int
    is_delta: bool


@dataclass(frozen=True, slots=True)
class Located:
    """The best usable copy of each of n names; fields as in Copy, `pack` a number for `ChunkIndex.pack_id`.

    Where `found` is False the other columns are 0.
    """

    found: NDArray[np.bool_]
    pack: NDArray[np.uint32]
    offset: NDArray[np.uint32]
    length: NDArray[np.uint32]
    raw_length: NDArray[np.uint32]
    is_delta: NDArray[np.bool_]


class Counts(NamedTuple):
    """What the known packs hold: `chunks` counts copies, `stored_bytes` their records."""

    packs: int
    chunks: int
    stored_bytes: int


class ChunkIndex:
    """Safe to use from several threads, and beside other processes on the same folder."""

    def __init__(self, directory: str, randomness: Randomness) -> None:
        """Open the index in `directory`, or begin an empty one. Raises CacheDamaged, OSError."""
        self._cache = RunCache(directory, _KIND, randomness)
        self._damaged: dict[bytes, set[int]] = {}
        self._damaged_codes = (0, np.empty(0, dtype=np.uint64))

    @property
    def packs(self) -> PackTable:
        """The packs by number."""
        return self._cache.packs

    def view(self) -> tuple[PlacedRun, ...]:
        """All runs of entries as they are now, for marking."""
        return self._cache.view()

    def known_packs(self) -> set[PackId]:
        """Packs whose chunks are in the index (those of other processes: since opening, `refresh` or `flush`)."""
        return {PackId(pack) for pack in self._cache.packs.known()}

    def pack_id(self, number: int) -> PackId:
        """The pack of a number in Located."""
        return PackId(self._cache.packs.pack_id(number))

    def counts(self) -> Counts:
        """Sums over the known packs."""
        lines = self._cache.packs.lines()
        lines = lines[lines["removed"] == 0]
        return Counts(len(lines), int(lines["rows"].sum(dtype=np.int64)), int(lines["bytes"].sum(dtype=np.int64)))

    def add_pack(self, pack: PackId, index: PackIndex) -> None:
        """Make a pack's chunks known, at once in this process. A pack that is known is left alone."""
        keys, records = entries_of(index)
        size = int(index.lengths.sum(dtype=np.int64)) + FRAME_SIZE * len(index)
        self._cache.add(pack, size, keys, records)

    def remove_packs(self, packs: Iterable[PackId]) -> None:
        """Packs that are no longer in the repository."""
        self._cache.remove(packs)

    def exclude(self, packs: Iterable[PackId]) -> None:
        """Packs (known or not yet) that this process must not rely on: condemned ones. Lookups pass them over."""
        self._cache.packs.exclude(packs)

    def exclude_copies(self, pack: PackId, offsets: Iterable[int]) -> None:
        """Damaged records of a pack (known or not yet): to this process they do not exist."""
        self._damaged = self._damaged | {pack: self._damaged.get(pack, set()) | set(offsets)}
        self._damaged_codes = (0, self._damaged_codes[1])

    def refresh(self) -> None:
        """See what other processes have flushed."""
        self._cache.refresh()

    def flush(self) -> None:
        """Let other processes see what was added and removed here; merges runs where that pays."""
        self._cache.flush()

    def close(self) -> None:
        """Flush and end."""
        self._cache.close()

    def lookup(self, names: Names, *, full_only: bool = False) -> Located:
        """Where the chunks `names` (n, 32) are. A full copy wins over a delta; with `full_only` there are no deltas."""
        keys, rest = split_names(names)
        found, best = self._search(keys, rest, full_only=full_only)
        shape = best["shape"]
        columns = (stored_lengths(shape), raw_lengths(shape), base_counts(shape) > 0)
        return Located(found, best["pack"], best["offset"], *columns)

    def decodable(self, names: Names) -> NDArray[np.bool_]:
        """Of which of the names (n, 32) there is a usable copy that is full, or a delta with usable full bases.

        What gc leaves of a pack may include deltas that nobody needs and whose bases are gone: a writer must not take
        those for known.
        """
        keys, rest = split_names(names)
        found, best = self._search(keys, rest, full_only=False)
        counts = base_counts(best["shape"])
        for base in range(2):
            deltas = np.flatnonzero(found & (counts > base))
            if len(deltas):
                found[deltas] = self._search(best["bases"][deltas, base], None, full_only=True)[0]
        return found

    def is_excluded(self, pack: PackId) -> bool:
        """Whether `exclude` was told of the pack."""
        return self._cache.packs.is_excluded(pack)

    def lookup_one(self, name: bytes, *, full_only: bool = False) -> Copy | None:
        """`lookup` of one name, several times faster than a batch of one."""
        best = None
        for number, copy in self._copies(name):
            if self._cache.packs.usable[number] and not (full_only and copy.is_delta):
                if not copy.is_delta:
                    return copy
                best = best or copy
        return best

    def all_copies(self, name: bytes) -> list[Copy]:
        """Every copy that may be read, best first: excluded packs last, full copies before deltas."""
        usable = self._cache.packs.usable
        ranked = {copy: (not usable[number], copy.is_delta, number) for number, copy in self._copies(name)}
        return sorted(ranked, key=ranked.__getitem__)

    def names_of_full(self, keys: Keys) -> Names:
        """Names (n, 32) of full usable chunks with these keys (n,), all-zero where there is none."""
        found, best = self._search(keys, None, full_only=True)
        names = join_names(keys, best["rest"])
        names[~found] = 0
        return names

    def damaged_codes(self) -> NDArray[np.uint64]:
        """Excluded copies as sorted `number << 32 | offset`."""
        version, codes = self._damaged_codes
        known = len(self._cache.packs)
        if version != known:
            placed = [(self._cache.packs.number(pack), offsets) for pack, offsets in self._damaged.items()]
            listed = [number << 32 | offset for number, offsets in placed if number is not None for offset in offsets]
            codes = np.array(sorted(listed), dtype=np.uint64)
            self._damaged_codes = (known, codes)
        return codes

    def _search(self, keys: Keys, rest: Keys | None, *, full_only: bool) -> tuple[NDArray[np.bool_], Records]:
        """Best entries with process numbers of packs; without `rest`, of any chunk that has the key."""
        found = np.zeros(len(keys), dtype=np.bool_)
        best = np.zeros(len(keys), dtype=ENTRY)
        view = self._cache.view()
        codes = self.damaged_codes() if self._damaged else None
        todo = np.arange(len(keys))
        for placed in view:
            for which, rows in placed.run.matches(keys if len(todo) == len(keys) else keys.take(todo)):
                at = todo.take(which)
                entries = placed.run.take(rows)
                packs = placed.packs(entries)
                full = base_counts(entries["shape"]) == 0
                better = self._cache.packs.usable.take(packs)
                if rest is not None:
                    better &= (entries["rest"] == rest.take(at, axis=0)).all(axis=1)
                if codes is not None:
                    better &= ~np.isin(packs.astype(np.uint64) << np.uint64(32) | entries["offset"], codes)
                # `found` of a name that is still looked for means: as a delta. Only a full copy is better.
                better &= full if full_only else full | ~found.take(at)
                entries["pack"] = packs
                at, kept = at[better], entries[better]
                best[at] = kept
                found[at] = True
            todo = todo[~found.take(todo) | (base_counts(best["shape"].take(todo)) > 0)]
            if not len(todo):
                break
        return found, best

    def _copies(self, name: bytes) -> Iterable[tuple[int, Copy]]:
        """All copies that are present and not damaged, with the numbers of their packs."""
        packs = self._cache.packs
        key, rest = int.from_bytes(name[:8], "big"), name[8:]
        damaged = self._damaged
        for placed in self._cache.view():
            for raw in placed.run.find_one(key):
                found_rest, number, offset, shape = _RECORD.unpack(raw)
                if found_rest != rest:
                    continue
                number = placed.number(number)
                pack = packs.pack_id(number)
                if packs.present[number] and not (damaged and offset in damaged.get(pack, ())):
                    yield number, Copy(PackId(pack), offset, *split_shape(shape))
