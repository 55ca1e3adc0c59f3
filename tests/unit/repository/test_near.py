# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which records are read together: all of them once, in order, with small gaps, not too much at a time."""

from __future__ import annotations

from itertools import pairwise

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
    parts = list(near(list(zip(offsets, ends, range(len(pairs)), strict=True))))
    assert [row for part in parts for _, _, row in part] == list(range(len(pairs)))
    for part in parts:
        assert all(offset - end <= GAP for (_, end, _), (offset, _, _) in pairwise(part))
        assert len(part) == 1 or part[-1][1] - part[0][0] <= LONGEST_READ
    for first, second in pairwise(parts):
        # Two reads only where one would go over a gap or be too long.
        assert second[0][0] - first[-1][1] > GAP or second[0][1] - first[0][0] > LONGEST_READ


def test_a_record_longer_than_the_longest_read_is_one_read() -> None:
    ranges = [(0, 10, "a"), (10, 3 * LONGEST_READ, "b")]
    assert list(near(ranges)) == [ranges[:1], ranges[1:]]
