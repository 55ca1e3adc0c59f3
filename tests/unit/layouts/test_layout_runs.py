# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs against plain Python sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everywhen.formats.layouts.runs import Runs

numbers = st.sets(st.integers(0, 200), max_size=60)


def runs_of(chosen: set[int]) -> Runs:
    return Runs.of_blocks(np.array(list(chosen), np.int64), 1, 1000)


@given(numbers)
def test_runs_do_not_touch_and_hold_what_was_given(chosen: set[int]) -> None:
    runs = runs_of(chosen)
    assert runs.within(0, 1000).tolist() == sorted(chosen)
    assert runs.count == len(chosen)
    assert runs.end == max(chosen, default=-1) + 1
    assert bool((runs.starts[1:] > runs.ends[:-1]).all())


@given(numbers, st.integers(0, 210), st.integers(0, 210))
def test_window_and_ordinals(chosen: set[int], low: int, high: int) -> None:
    runs = runs_of(chosen)
    window = runs.within(low, high)
    assert window.tolist() == [n for n in sorted(chosen) if low <= n < high]
    assert runs.ordinals(window).tolist() == [sorted(chosen).index(n) for n in window.tolist()]


@given(numbers, st.integers(1, 40))
def test_units_and_split(chosen: set[int], size: int) -> None:
    runs = runs_of(chosen)
    assert runs.units(size).within(0, 1000).tolist() == sorted({n // size for n in chosen})
    starts, lengths = runs.split(size)
    pieces = [range(s, s + n) for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    assert [n for piece in pieces for n in piece] == sorted(chosen)
    assert all(piece[0] // size == piece[-1] // size for piece in pieces)


def test_the_last_block_ends_with_the_disk() -> None:
    runs = Runs.of_blocks(np.array([3, 0]), 100, 350)
    assert runs.starts.tolist() == [0, 300]
    assert runs.ends.tolist() == [100, 350]


def test_extents_in_any_order_and_overlapping() -> None:
    runs = Runs.of_extents([(50, 10), (0, 20), (10, 30), (99, 0)])
    assert runs.starts.tolist() == [0, 50]
    assert runs.ends.tolist() == [40, 60]


def test_impossible_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="reversed"):
        Runs.of_extents([(5, -1)])
    with pytest.raises(ValueError, match="begins at or after 300"):
        Runs.of_blocks(np.array([3]), 100, 300)
