# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fingerprint table: candidates of full chunks, the newest few, across processes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from index_samples import name, names_of, pack_id, pack_of  # type: ignore[import-not-found]

from everywhen.repository.index.fingerprints import KEPT, FingerprintTable
from everywhen.repository.index.index import ChunkIndex


def key(number: int) -> int:
    return int.from_bytes(name(number)[:8], "big")


def found(table: FingerprintTable, *prints: int) -> list[tuple[int, int]]:
    candidates = table.candidates(np.array(prints, dtype=np.uint64))
    return sorted(zip(candidates.which.tolist(), candidates.chunk.tolist(), strict=True))


def test_candidates_are_the_full_chunks_with_that_page(tmp_path: Path) -> None:
    table, index = FingerprintTable(str(tmp_path / "f"), os.urandom), ChunkIndex(str(tmp_path / "i"), os.urandom)
    pack = pack_of([(name(1), ()), (name(2), (name(9),)), (name(3), ())], [[10, 20], [10], [20, 30, 40]])
    table.add_pack(pack_id(1), pack)
    index.add_pack(pack_id(1), pack)
    assert found(table, 10, 20, 99, 40) == sorted([(0, key(1)), (1, key(1)), (1, key(3)), (3, key(3))])
    candidates = table.candidates(np.array([20], dtype=np.uint64))
    names = index.names_of_full(candidates.chunk)
    assert {row.tobytes() for row in names} == {row.tobytes() for row in names_of(name(1), name(3))}
    table.flush()
    again = FingerprintTable(str(tmp_path / "f"), os.urandom)
    assert found(again, 30) == [(0, key(3))]
    assert again.known_packs() == {pack_id(1)}


def test_only_the_newest_candidates_of_a_page_that_is_everywhere_are_kept(tmp_path: Path) -> None:
    table = FingerprintTable(str(tmp_path / "f"), os.urandom)
    for number in range(20):
        table.add_pack(pack_id(number), pack_of([(name(number), ())], [[7, 1000 + number]]))
    assert len(found(table, 7)) <= 3 * KEPT
    table.flush()
    assert found(table, 7) == sorted((0, key(number)) for number in range(20 - KEPT, 20))
    assert found(table, 1000, 1019) == [(0, key(0)), (1, key(19))]


def test_removed_and_excluded_packs_give_no_candidates(tmp_path: Path) -> None:
    table = FingerprintTable(str(tmp_path / "f"), os.urandom)
    for number in range(3):
        table.add_pack(pack_id(number), pack_of([(name(number), ())], [[7]]))
    table.exclude([pack_id(1)])
    table.remove_packs([pack_id(2)])
    assert found(table, 7) == [(0, key(0))]
    table.flush()
    assert found(table, 7) == [(0, key(0))]
    assert FingerprintTable(str(tmp_path / "f"), os.urandom).known_packs() == {pack_id(0), pack_id(1)}
