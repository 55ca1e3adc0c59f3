# SPDX-License-Identifier: AGPL-3.0-or-later
"""Marking: which copies gc must keep, what is missing, what many depend on (rules 4.9.1, 4.9.3, 4.9.6, 4.9.8)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from index_samples import Chunk, name, names_of, pack_id, pack_of  # type: ignore[import-not-found]

from everywhen.formats.pack import FRAME_SIZE
from everywhen.repository.gc import marking
from everywhen.repository.gc.marking import Marker
from everywhen.repository.gc.marks import Marks
from everywhen.repository.index import run_cache
from everywhen.repository.index.index import ChunkIndex


def opened(path: Path, packs: dict[int, list[Chunk]], *, flush: bool = True) -> ChunkIndex:
    index = ChunkIndex(str(path / "index"), os.urandom)
    for number, chunks in packs.items():
        index.add_pack(pack_id(number), pack_of(chunks))
    if flush:
        index.flush()
    return index


def mark(path: Path, index: ChunkIndex, *live: bytes, threshold: int = 1 << 30) -> Marks:
    with Marker(index, str(path / "scratch"), 1 << 20, threshold=threshold) as marker:
        for one in live:
            marker.add(names_of(one, bytes(32)))
        marks = marker.finish()
    assert os.listdir(path / "scratch") == []
    return marks


def live(marks: Marks, *packs: int) -> list[list[int]]:
    return [marks.live_rows(pack_id(pack)).tolist() for pack in packs]


@pytest.mark.parametrize("flush", [True, False])
def test_one_copy_is_chosen_full_ones_first(tmp_path: Path, flush: bool) -> None:
    packs: dict[int, list[Chunk]] = {
        1: [(name(1), (name(3),)), (name(2), ()), (name(4), ())],
        2: [(name(1), ()), (name(2), ()), (name(3), ())],
    }
    index = opened(tmp_path, packs, flush=flush)
    marks = mark(tmp_path, index, name(1), name(2), name(2))
    assert live(marks, 1, 2, 3) == [[1], [0], []]
    assert marks.live_names == 2
    assert (marks.missing.count, marks.broken.count) == (0, 0)
    use = {use.pack: use for use in marks.uses()}
    assert use[pack_id(1)] == (pack_id(1), 3, 1, 303 + 3 * FRAME_SIZE, 101 + FRAME_SIZE)
    # Marking changes nothing in the index.
    assert index.lookup(names_of(name(1), name(2), name(3))).found.all()
    assert live(mark(tmp_path, index, name(1), name(2)), 1, 2) == [[1], [0]]


def test_bases_of_chosen_deltas_live_as_full_copies(tmp_path: Path) -> None:
    packs: dict[int, list[Chunk]] = {
        1: [(name(10), (name(9),)), (name(9), ()), (name(5), ())],
        2: [(name(1), (name(10), name(5))), (name(2), (name(5),))],
        3: [(name(10), ()), (name(10), ())],
    }
    marks = mark(tmp_path, opened(tmp_path, packs), name(1))
    assert live(marks, 1, 2, 3) == [[2], [0], [0]]
    assert marks.live_names == 1


def test_the_only_full_copy_in_an_excluded_pack_is_live_there(tmp_path: Path) -> None:
    packs: dict[int, list[Chunk]] = {
        1: [(name(1), ()), (name(2), ()), (name(5), ())],
        2: [(name(1), ()), (name(3), (name(5),)), (name(5), (name(2),))],
    }
    index = opened(tmp_path, packs)
    index.exclude([pack_id(1)])
    marks = mark(tmp_path, index, name(1), name(2), name(3), name(5))
    # 1 has another copy; 2 has none elsewhere; 5 is a base: its delta copy in pack 2 does not do.
    assert live(marks, 1, 2) == [[1, 2], [0, 1, 2]]
    assert marks.broken.count == 0


def test_missing_names_and_deltas_without_bases_are_reported(tmp_path: Path) -> None:
    packs: dict[int, list[Chunk]] = {
        1: [(name(1), (name(2), name(3))), (name(2), (name(4),)), (name(4), ()), (name(6), ())],
        2: [(name(7), ())],
    }
    index = opened(tmp_path, packs)
    index.exclude_copies(pack_id(1), [128 + 306 + 3 * (FRAME_SIZE - 1)])  # name(6)
    index.remove_packs([pack_id(2)])
    marks = mark(tmp_path, index, name(1), name(6), name(7), name(8), name(8))
    assert marks.missing.count == 3
    assert {row.tobytes() for row in marks.missing.names} == {name(6), name(7), name(8)}
    assert marks.broken.count == 1
    assert [row.tobytes() for row in marks.broken.names] == [name(1)]
    assert [use.pack for use in marks.uses()] == [pack_id(1)]
    # A damaged cache file aside, nothing to mark is fine too.
    assert live(mark(tmp_path, index), 1) == [[]]


def test_names_with_one_key_are_told_apart(tmp_path: Path) -> None:
    same = [name(number, key=77) for number in range(9)]
    packs: dict[int, list[Chunk]] = {1: [(one, ()) for one in same[:6]] + [(name(1), (same[3],))]}
    index = opened(tmp_path, packs)
    marks = mark(tmp_path, index, same[4], same[2], same[4], same[8], same[2], threshold=2)
    assert live(marks, 1) == [[2, 4]]
    assert [row.tobytes() for row in marks.missing.names] == [same[8]]
    assert sorted(row.tobytes() for row in marks.popular.names) == sorted([same[2], same[4]])
    # Bases are known by their key alone: all names that share it are kept.
    assert live(mark(tmp_path, index, name(1)), 1) == [[0, 1, 2, 3, 4, 5, 6]]


def test_what_many_depend_on_is_named_with_its_copies(tmp_path: Path) -> None:
    packs: dict[int, list[Chunk]] = {
        1: [(name(1), ()), (name(2), ())],
        2: [(name(100 + number), (name(2),)) for number in range(5)],
        3: [(name(1), ())],
    }
    wanted = [name(1)] * 7 + [name(100 + number) for number in range(5)]
    marks = mark(tmp_path, opened(tmp_path, packs), *wanted, threshold=5)
    popular = marks.popular
    rows = zip(popular.names, popular.references.tolist(), popular.full_copies.tolist(), strict=True)
    assert {(row.tobytes(), references, copies) for row, references, copies in rows} == {(name(1), 7, 2), (name(2), 5, 1)}


def test_marking_in_many_pieces_agrees_with_a_plain_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_cache, "_MEMORY_ROWS", 700)
    monkeypatch.setattr(marking, "_MIN_BUDGET", 0)
    rng = np.random.default_rng(11)
    index = ChunkIndex(str(tmp_path / "index"), os.urandom)
    copies: dict[bytes, list[tuple[int, int, bool]]] = {}
    bases: dict[tuple[int, int], tuple[bytes, ...]] = {}
    for pack in range(30):
        chunks: list[Chunk] = []
        for row in range(100):
            of = tuple(name(int(n)) for n in rng.integers(0, 1200, int(rng.integers(0, 3)) * int(rng.random() < 0.4)))
            chunks.append((name(int(rng.integers(0, 1500))), of))
            copies.setdefault(chunks[-1][0], []).append((pack, row, bool(of)))
            bases[pack, row] = of
        index.add_pack(pack_id(pack), pack_of(chunks))
    index.exclude([pack_id(3), pack_id(4)])
    wanted = [name(int(n)) for n in rng.integers(0, 1600, 2500)]
    with Marker(index, str(tmp_path / "scratch"), 40_000, threshold=3) as marker:
        for at in range(0, len(wanted), 100):
            marker.add(names_of(*wanted[at : at + 100]))
        marks = marker.finish()

    def rank(copy: tuple[int, int, bool]) -> tuple[bool, bool, int, int]:
        return copy[0] in (3, 4), copy[2], copy[0], copy[1]

    expected, broken = set(), set()
    for one in set(wanted) & copies.keys():
        pack, row, _ = min(copies[one], key=rank)
        expected.add((pack, row))
        for base in bases[pack, row]:
            full = [copy for copy in copies.get(base, []) if not copy[2]]
            if full:
                expected.add(min(full, key=rank)[:2])
            else:
                broken.add(one)
    assert {(pack, row) for pack in range(30) for row in marks.live_rows(pack_id(pack)).tolist()} == expected
    assert marks.missing.count == len(set(wanted) - copies.keys())
    assert {row.tobytes() for row in marks.broken.names} == broken
    assert marks.broken.count == len(broken)
    assert sum(use.live_rows for use in marks.uses()) == len(expected)
    counted = {one for one in set(wanted) if wanted.count(one) >= 3}
    assert counted <= {row.tobytes() for row in marks.popular.names}
