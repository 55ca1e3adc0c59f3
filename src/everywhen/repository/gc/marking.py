# SPDX-License-Identifier: AGPL-3.0-or-later
"""Marking for gc and verify: from the names in live block maps to the stored copies that are needed (design 4.9.8).

No name is looked up by itself. Names are collected, sorted and spilled to runs in a scratch folder; then those runs and
the index's are walked side by side once, piece by piece. For each name one copy is chosen: outside excluded packs rather
than in one, full rather than delta, the oldest pack. Chosen deltas need full copies of their bases (4.9.3): a second
walk, of the bases' keys. Bases have no bases, so there is no third.

Bases are known by 64-bit keys only. Two names with one key are improbable (1 in 4,000 for 100 million chunks), and then
both are kept: too much live, never too little.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import closing
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from everywhen.formats.ids import PackId
from everywhen.formats.node import Names
from everywhen.repository.cache_place import in_caches
from everywhen.repository.gc.marks import Marks
from everywhen.repository.index.entries import (
    ENTRY,
    base_counts,
    join_names,
    rows_in_pack,
    split_names,
    stored_lengths,
)
from everywhen.repository.index.index import ChunkIndex
from everywhen.repository.index.run_cache import PlacedRun
from everywhen.repository.index.run_merge import pieces, sorted_piece, together
from everywhen.repository.index.runs import Keys, Records, Run, RunWriter

_WANTED = np.dtype([("rest", np.uint64, (3,)), ("count", np.uint32), ("unused", np.uint32)])
"""A live name and how often it was added."""
_BASE = np.dtype([("delta_key", np.uint64), ("delta_rest", np.uint64, (3,)), ("delta", np.uint64)])
"""That the live copy `delta` (dense number) of a chunk needs a base; keyed by the base."""

Copies = Mapping[PackId, AbstractSet[int]]
"""Offsets of copies, by pack."""

_PIECE_ROW = 480
"""Bytes of memory that a row of a piece takes at the worst moment (measured with 100 million chunks: about 460)."""
_SPILL_ROW = 160
"""The same for a name that is being sorted and spilled."""
_MIN_BUDGET = 16 << 20


class _Spill:
    """Collects rows and writes them as sorted runs into the scratch folder."""

    def __init__(self, directory: str, name: str, dtype: np.dtype[np.void], rows: int) -> None:
        self._path, self._dtype, self._rows = os.path.join(directory, name), dtype, rows
        self._parts: list[tuple[Keys, Records]] = []
        self._held = 0
        self.runs: list[Run] = []

    def add(self, keys: Keys, records: Records) -> None:
        self._parts.append((keys, records))
        self._held += len(keys)
        if self._held >= self._rows:
            self.flush()

    def flush(self) -> None:
        if not self._held:
            return
        keys = np.concatenate([part[0] for part in self._parts])
        records = together([part[1] for part in self._parts])
        self._parts, self._held = [], 0
        order = np.argsort(keys)
        keys, records = keys.take(order), records.take(order)
        if self._dtype is _WANTED:
            keys, records = _united(keys, records)
        path = f"{self._path}-{len(self.runs)}"
        with in_caches(path), closing(RunWriter(path, self._dtype, len(keys))) as writer:
            writer.append(keys, records)
            writer.finish()
        self.runs.append(Run.open(path, self._dtype))


class Marker:
    """Collects live names (`add`), then finds their copies (`finish`). Use as a context manager: it cleans up after itself.

    `threshold`: from how many references on a chunk is popular. Packs added to the index after `finish` has begun are
    not seen.
    """

    def __init__(
        self,
        index: ChunkIndex,
        scratch_directory: str,
        memory_budget: int,
        *,
        threshold: int,
        preferred: Iterable[PackId] = (),
    ) -> None:
        """`memory_budget`: bytes, on top of one byte for each copy in the index. Raises CacheFull, CacheRefused.

        Of equally good copies the one in a `preferred` pack is chosen (those that have a twin).
        """
        self._index, self._threshold = index, threshold
        self._preferred = frozenset(preferred)
        budget = max(memory_budget, _MIN_BUDGET)
        self._piece_rows = budget // _PIECE_ROW
        with in_caches(scratch_directory):
            os.makedirs(scratch_directory, exist_ok=True)
            self._directory = tempfile.mkdtemp(prefix="marking-", dir=scratch_directory)
        # While names are collected nothing else needs the budget; bases are collected beside pieces: half of it each.
        self._wanted = _Spill(self._directory, "names", _WANTED, budget // _SPILL_ROW)
        self._base_rows = budget // 2 // _SPILL_ROW
        self._finished = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._wanted.runs = []
        shutil.rmtree(self._directory, ignore_errors=True)

    def add(self, names: Names) -> None:
        """Names (n, 32) of live chunks, repeated as often as they are referenced; all-zero ones are passed over."""
        keys, rest = split_names(names[names.any(axis=1)])
        records = np.zeros(len(keys), dtype=_WANTED)
        records["rest"], records["count"] = rest, 1
        self._wanted.add(keys, records)

    def finish(self, passed_over: Copies | None = None) -> Marks:
        """Choose the copies, none of those `passed_over`. May be called again, to pass over others, but nothing added then.

        Raises CacheDamaged, CacheFull, CacheRefused.
        """
        view = self._index.view()
        marks = Marks(self._index.packs)
        self._is_preferred = self._index.packs.flags(self._preferred)
        self._no_good = np.concatenate((self._index.damaged_codes(), self._codes(passed_over or {})))
        self._wanted.flush()
        bases = _Spill(self._directory, f"bases-{self._finished}", _BASE, self._base_rows)
        self._finished += 1
        for wanted, entries in self._joint_pieces(self._wanted.runs, view):
            self._choose(marks, _united(*sorted_piece(wanted)), entries, bases)
        bases.flush()
        for needed, entries in self._joint_pieces(bases.runs, view):
            self._keep_bases(marks, sorted_piece(needed), entries)
        return marks

    def _codes(self, copies: Copies) -> NDArray[np.uint64]:
        """As `ChunkIndex.damaged_codes`."""
        placed = [(self._index.packs.number(pack), offsets) for pack, offsets in copies.items()]
        codes = [number << 32 | offset for number, offsets in placed if number is not None for offset in offsets]
        return np.array(codes, dtype=np.uint64)

    def _joint_pieces(
        self, runs: list[Run], view: tuple[PlacedRun, ...]
    ) -> Iterator[tuple[list[tuple[Keys, Records]], tuple[Keys, Records]]]:
        """Pieces of `runs`, each with the usable entries of the index between the same keys."""
        if not runs:
            return
        for parts in pieces([*runs, *(placed.run for placed in view)], self._piece_rows):
            mine, theirs = parts[: len(runs)], parts[len(runs) :]
            placed_parts = [self._present(placed, *part) for placed, part in zip(view, theirs, strict=True)]
            empty = (np.empty(0, dtype=np.uint64), np.empty(0, dtype=ENTRY))
            yield mine, sorted_piece([*placed_parts, empty])

    def _present(self, placed: PlacedRun, keys: Keys, entries: Records) -> tuple[Keys, Records]:
        """The entries of packs that are present and of copies that may be chosen, with the process's pack numbers."""
        packs = placed.packs(entries)
        good = self._index.packs.present.take(packs)
        if len(self._no_good):
            good &= ~np.isin(packs.astype(np.uint64) << np.uint64(32) | entries["offset"], self._no_good)
        if not good.all():
            rows = np.nonzero(good)[0]
            keys, entries, packs = keys.take(rows), entries.take(rows), packs.take(rows)
        elif placed.run.in_memory_only:
            entries = entries.copy()
        entries["pack"] = packs
        return keys, entries

    def _choose(self, marks: Marks, wanted: tuple[Keys, Records], entries: tuple[Keys, Records], bases: _Spill) -> None:
        keys, names = wanted
        marks.live_names += len(keys)
        which, found = _joined(keys, names["rest"], *entries)
        rank = self._rank(found)
        order = np.lexsort((rank, which)) if _repeats(which) else np.arange(len(which))
        which, found = which.take(order), found.take(order)
        first = np.nonzero(np.append(np.ones(min(len(which), 1), dtype=np.bool_), which[1:] != which[:-1]))[0]
        full = np.bincount(which[base_counts(found["shape"]) == 0], minlength=len(keys))
        chosen, of = found.take(first), which.take(first)
        copies = self._mark(marks, chosen)
        lost = np.ones(len(keys), dtype=np.bool_)
        lost[of] = False
        marks.missing.note(join_names(keys[lost], names["rest"][lost]))
        many = np.nonzero(names["count"] >= self._threshold)[0]
        marks.popular.note(join_names(keys[many], names["rest"][many]), names["count"][many].astype(np.int64), full[many])
        self._need_bases(keys.take(of), chosen, copies, bases)

    def _need_bases(self, keys: Keys, chosen: Records, copies: NDArray[np.int64], bases: _Spill) -> None:
        """Remember in `bases` those of the chosen copies that are deltas."""
        count = base_counts(chosen["shape"])
        for base in range(2):
            deltas = np.nonzero(count > base)[0]
            records = np.zeros(len(deltas), dtype=_BASE)
            records["delta_key"], records["delta_rest"] = keys[deltas], chosen["rest"][deltas]
            records["delta"] = copies[deltas]
            bases.add(chosen["bases"][deltas, base], records)

    def _keep_bases(self, marks: Marks, bases: tuple[Keys, Records], entries: tuple[Keys, Records]) -> None:
        """Mark one full copy of each base; note the deltas of bases that have none."""
        keys, references = np.unique(bases[0], return_counts=True)
        full = np.nonzero(base_counts(entries[1]["shape"]) == 0)[0]
        entry_keys, found = entries[0].take(full), entries[1].take(full)
        which = np.searchsorted(keys, entry_keys)
        hit = np.nonzero((which < len(keys)) & (keys.take(which, mode="clip") == entry_keys))[0] if len(keys) else which[:0]
        which, found = which.take(hit), found.take(hit)
        if _repeats(which):
            # Of copies of one name the best; names that share a key are all kept.
            order = np.lexsort((self._rank(found), *found["rest"].T, which))
            which, found = which.take(order), found.take(order)
            first = np.ones(len(which), dtype=np.bool_)
            first[1:] = (which[1:] != which[:-1]) | (found["rest"][1:] != found["rest"][:-1]).any(axis=1)
        else:
            first = np.ones(len(which), dtype=np.bool_)
        self._mark(marks, found[first])
        copies = np.bincount(which, minlength=len(keys))
        many = np.nonzero(references.take(which[first]) >= self._threshold)[0]
        popular = which[first][many]
        marks.popular.note(
            join_names(keys.take(popular), found["rest"][first][many]), references.take(popular), copies.take(popular)
        )
        lost = np.nonzero(copies.take(np.searchsorted(keys, bases[0])) == 0)[0]
        broken = bases[1].take(lost)
        broken = broken[marks.set_broken(broken["delta"].astype(np.int64))]
        marks.broken.note(join_names(broken["delta_key"], broken["delta_rest"]))

    def _mark(self, marks: Marks, chosen: Records) -> NDArray[np.int64]:
        copies = marks.number(chosen["pack"], rows_in_pack(chosen["shape"]))
        marks.set_live(copies, chosen["pack"], stored_lengths(chosen["shape"]))
        return copies

    def _rank(self, entries: Records) -> NDArray[np.uint64]:
        """Small is good: not excluded, full, preferred, old, early in its pack."""
        excluded = ~self._index.packs.usable.take(entries["pack"])
        delta = base_counts(entries["shape"]) > 0
        plain = ~self._is_preferred.take(entries["pack"])
        worse = (excluded.astype(np.uint64) << np.uint64(2)) | (delta.astype(np.uint64) << np.uint64(1)) | plain
        place = (entries["pack"].astype(np.uint64) << np.uint64(20)) | rows_in_pack(entries["shape"]).astype(np.uint64)
        return (worse << np.uint64(52)) | place


def _repeats(which: NDArray[np.int64]) -> bool:
    """Whether `which` is anything but strictly ascending."""
    return bool((which[1:] <= which[:-1]).any())


def _united(keys: Keys, wanted: Records) -> tuple[Keys, Records]:
    """Sorted rows of _WANTED with each name once and its counts added up."""
    rest = wanted["rest"]
    same_key = keys[1:] == keys[:-1]
    if not same_key.any():
        return keys, wanted
    same_name = same_key & (rest[1:] == rest[:-1]).all(axis=1)
    if (same_key != same_name).any():
        # Different names of one key, perhaps in turns: 128 of 256 bits put equal names side by side.
        order = np.lexsort((rest[:, 0], keys))
        keys, wanted = keys.take(order), wanted.take(order)
        rest = wanted["rest"]
        same_name = (keys[1:] == keys[:-1]) & (rest[1:] == rest[:-1]).all(axis=1)
    starts = np.nonzero(np.append(np.ones(1, dtype=np.bool_), ~same_name))[0]
    counts = np.add.reduceat(wanted["count"], starts)
    keys, wanted = keys.take(starts), wanted.take(starts)
    wanted["count"] = counts
    return keys, wanted


def _joined(keys: Keys, rest: Keys, entry_keys: Keys, entries: Records) -> tuple[NDArray[np.int64], Records]:
    """The entries of the names (`keys` sorted, `rest`), and beside each the position of its name."""
    which = np.searchsorted(keys, entry_keys)
    matched: list[NDArray[np.int64]] = []
    places: list[NDArray[np.int64]] = []
    rows = np.arange(len(entry_keys))
    while True:
        # Again only for the entries whose key is that of several names: each step tries the next of these.
        same = (
            np.nonzero((which < len(keys)) & (keys.take(which, mode="clip") == entry_keys.take(rows)))[0]
            if len(keys)
            else rows[:0]
        )
        which, rows = which.take(same), rows.take(same)
        equal = (rest.take(which, axis=0) == entries["rest"].take(rows, axis=0)).all(axis=1)
        matched.append(which[equal])
        places.append(rows[equal])
        if equal.all():
            break
        which, rows = which[~equal] + 1, rows[~equal]
    return np.concatenate(matched), entries.take(np.concatenate(places))
