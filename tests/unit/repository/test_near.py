# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which records are read together: all of them once, in order, with small gaps, not too much at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from everywhen.repository.near import GAP, LONGEST_READ, near

records = st.lists(
    st.tuples(st.one_of(st.integers(0, 3), st.integers(GAP - 1, GAP + 1), st.just(1 << 20)), st.integers(1, 70_000)),
    max_size=200,
)


@given(records)
def test_all_once_and_never_over_a_gap(pairs: list[tuple[int, int]]) -> None:
    offsets, ends, at = [], [], 0
    for gap, length in pairs:
        offsets.append(at + gap)
        at += gap + length
        ends.append(at)
    parts = list(near(np.array(offsets, np.int64), np.array(ends, np.int64)))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(len(pairs)))
    for part in parts:
        gaps = [offsets[row + 1] - ends[row] for row in range(part.start, part.stop - 1)]
        assert all(gap <= GAP for gap in gaps)
        assert part.stop - part.start == 1 or ends[part.stop - 1] - offsets[part.start] <= LONGEST_READ
    for first, second in pairwise(parts):
        # Two reads only where one would go over a gap or be too long.
        far = offsets[second.start] - ends[first.stop - 1] > GAP
        assert far or ends[second.start] - offsets[first.start] > LONGEST_READ


def test_a_record_longer_than_the_longest_read_is_one_read() -> None:
    offsets, ends = np.array([0, 10], np.int64), np.array([10, 3 * LONGEST_READ], np.int64)
    assert list(near(offsets, ends)) == [slice(0, 1), slice(1, 2)]
