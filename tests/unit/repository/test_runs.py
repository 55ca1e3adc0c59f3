# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sorted runs: what is written is found, what is damaged is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from everywhen.repository.index.run_merge import merge, pieces
from everywhen.repository.index.runs import BLOCK, CacheDamaged, Keys, Records, Run, RunWriter

RECORD = np.dtype([("value", np.uint64), ("pack", np.uint32)])


def rows_of(keys: list[int]) -> tuple[Keys, Records]:
    ordered = np.sort(np.array(keys, dtype=np.uint64))
    records = np.zeros(len(keys), dtype=RECORD)
    records["value"] = np.arange(len(keys))
    return ordered, records


def write(path: Path, keys: Keys, records: Records, *, capacity: int | None = None, step: int = 700) -> Run:
    writer = RunWriter(str(path), RECORD, len(keys) if capacity is None else capacity)
    for at in range(0, len(keys), step):
        writer.append(keys[at : at + step], records[at : at + step])
    writer.finish()
    return Run.open(str(path), RECORD)


def found(run: Run, wanted: list[int]) -> dict[int, list[int]]:
    """Values by position in `wanted`."""
    values: dict[int, list[int]] = {}
    for which, rows in run.matches(np.array(wanted, dtype=np.uint64)):
        for position, value in zip(which.tolist(), run.take(rows)["value"].tolist(), strict=True):
            values.setdefault(position, []).append(value)
    return values


def find_each(path: str, wanted: list[int]) -> None:
    run = Run.open(path, RECORD)
    for key in wanted:
        list(run.find_one(key))


SHAPES = {
    "uniform": [(n * 0x9E3779B97F4A7C15) % 2**64 for n in range(3000)],
    "one bucket": list(range(3000)),
    "many of one key": [7] * 2000 + [8] * 20 + [2**64 - 1] * 500,
    "the ends": [0, 1, 2**63, 2**64 - 1],
    "single": [2**64 - 1],
}


@pytest.mark.parametrize("keys", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("spare", [0, 5000])
def test_every_row_is_found_and_nothing_else(tmp_path: Path, keys: list[int], spare: int) -> None:
    ordered, records = rows_of(keys)
    wanted = sorted({*keys, 0, 5, 9, 2**63 + 1, 2**64 - 1, 2**64 - 2})
    expected: dict[int, list[int]] = {}
    for row, key in enumerate(ordered.tolist()):
        expected.setdefault(wanted.index(key), []).append(row)
    on_disk = write(tmp_path / "run", ordered, records, capacity=len(keys) + spare)
    for run in (on_disk, Run.in_memory(ordered, records)):
        assert found(run, wanted) == expected
        for position, key in enumerate(wanted):
            raw = [int.from_bytes(record[:8], "little") for record in run.find_one(key)]
            assert raw == expected.get(position, [])
        assert [part.tolist() for part in run.read(0, run.count)] == [ordered.tolist(), records.tolist()]


def test_an_empty_run_has_nothing(tmp_path: Path) -> None:
    run = write(tmp_path / "run", *rows_of([]))
    assert found(run, [0, 5]) == {}
    assert list(run.find_one(5)) == []
    assert len(run.read(0, 0)[0]) == 0


def test_every_flipped_byte_of_a_file_is_noticed(tmp_path: Path) -> None:
    keys, records = rows_of([(n * 0x9E3779B97F4A7C15) % 2**64 for n in range(1200)])
    write(tmp_path / "run", keys, records)
    whole = (tmp_path / "run").read_bytes()
    padding = set(range(36, BLOCK)) | set(range(BLOCK + 9600, 4 * BLOCK)) | set(range(4 * BLOCK + 14400, 8 * BLOCK))
    rng = np.random.default_rng(1)
    for at in [*range(36), *rng.choice([*{*range(len(whole))} - padding], 200).tolist()]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(CacheDamaged):
            found(Run.open(str(tmp_path / "damaged"), RECORD), keys.tolist())
        with pytest.raises(CacheDamaged):
            find_each(str(tmp_path / "damaged"), keys.tolist())
        with pytest.raises(CacheDamaged):
            list(pieces([Run.open(str(tmp_path / "damaged"), RECORD)], 100))


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "run", *rows_of(list(range(1200))))
    whole = (tmp_path / "run").read_bytes()
    for size in [0, 1, 39, BLOCK, len(whole) // 2, len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(CacheDamaged):
            Run.open(str(tmp_path / "cut"), RECORD)
    with pytest.raises(CacheDamaged, match="missing"):
        Run.open(str(tmp_path / "none"), RECORD)
    with pytest.raises(CacheDamaged, match="bytes instead of"):
        Run.open(str(tmp_path / "run"), np.dtype([("value", np.uint64)]))


@pytest.mark.parametrize("rows", [1, 10, 1000, 100000])
def test_pieces_hold_every_row_once_and_never_tear_a_key(rows: int) -> None:
    rng = np.random.default_rng(rows)
    runs = [Run.in_memory(*rows_of(rng.integers(0, 300, count).tolist())) for count in (1, 40, 700, 2500, 0)]
    seen: list[list[int]] = [[] for _ in runs]
    last = -1
    for parts in pieces(runs, rows):
        keys = np.concatenate([part[0] for part in parts])
        assert len(keys) == 0 or keys.min() > last
        last = int(keys.max(initial=max(last, 0)))
        for have, part in zip(seen, parts, strict=True):
            have.extend(part[1]["value"].tolist())
    assert seen == [list(range(run.count)) for run in runs]


def test_merging_sorts_and_lets_rows_be_dropped(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    runs = [write(tmp_path / f"run{n}", *rows_of(rng.integers(0, 2**64, 900, dtype=np.uint64).tolist())) for n in range(3)]
    writer = RunWriter(str(tmp_path / "merged"), RECORD, 2700)
    merge(runs, writer, lambda keys, records: (keys[keys % 2 == 0], records[keys % 2 == 0]))
    writer.finish()
    merged = Run.open(str(tmp_path / "merged"), RECORD)
    expected = np.sort(np.concatenate([run.keys for run in runs]))
    assert merged.read(0, merged.count)[0].tolist() == [key for key in expected.tolist() if key % 2 == 0]
