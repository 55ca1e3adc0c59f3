# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is counted of a journal by the minute, against counting one record after the other; and what is kept of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json
from everywhen.formats.segment import MARK, WRITE, ZERO, Group, decode_group, encode_group
from everywhen.repository.minutes import PER_DAY, DayOfMinutes, Row
from everywhen.services.ages import MINUTE, SECOND
from everywhen.services.protect import minutes
from everywhen.services.protect.minutes import MinuteCounts

BLOCK = 65536
START = 20_000 * PER_DAY * MINUTE - 3 * SECOND
"""Three seconds before a midnight: groups lie on both sides of it."""

RECORDS = st.lists(
    st.tuples(
        st.sampled_from([WRITE, ZERO, MARK]),
        st.integers(0, 2),
        st.integers(0, 5 * BLOCK) | st.sampled_from([0, BLOCK, 2 * BLOCK]),
        st.integers(1, 2 * BLOCK) | st.sampled_from([BLOCK, 2 * BLOCK]),
        st.integers(0, 4 * SECOND),
    ),
    min_size=1,
    max_size=12,
)


def made(first: int, time_ns: int, records: list[tuple[int, int, int, int, int]]) -> Group:
    data = [b"{}" if kind == MARK else b"x" * length for kind, _, _, length, _ in records if kind != ZERO]
    rows = [(kind, disk, offset, 2 if kind == MARK else length, at) for kind, disk, offset, length, at in records]
    return decode_group(encode_group(first, time_ns, rows, data, 1))


@given(st.lists(st.tuples(st.integers(0, 200), RECORDS), max_size=5), st.integers(0, 70), st.integers(0, 70))
def test_counts(parts: list[tuple[int, list[tuple[int, int, int, int, int]]]], since: int, until: int) -> None:
    counts, sequence = MinuteCounts(), 0
    expected: dict[tuple[int, int], tuple[int, int, set[int]]] = {}
    for seconds, records in parts:
        time_ns = START + seconds * SECOND
        counts.add(made(sequence, time_ns, records), since, until)
        for number, (kind, disk, offset, length, at) in enumerate(records, sequence):
            if kind != MARK and since <= number < until:
                place = (disk, (time_ns + at) // MINUTE)
                writes, size, blocks = expected.get(place, (0, 0, set()))
                blocks |= set(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))
                expected[place] = (writes + 1, size + length, blocks)
        sequence += len(records)
    found = {
        (int(name), day * PER_DAY + minute): row
        for day, one in counts.days(["0", "1", "2"]).items()
        for name, rows in one.disks.items()
        for minute, row in rows.items()
    }
    assert found == {place: (writes, size, len(blocks), 0) for place, (writes, size, blocks) in expected.items()}


def test_a_block_is_not_counted_for_its_neighbours() -> None:
    counts = MinuteCounts()
    counts.add(made(0, START, [(WRITE, 0, BLOCK, BLOCK, 0), (WRITE, 1, BLOCK - 1, 2, 0), (ZERO, 2, 0, 3 * BLOCK, 0)]), 0, 9)
    (day,) = counts.days(["vda", "vdb", "vdc"]).values()
    assert [row[2] for rows in day.disks.values() for row in rows.values()] == [1, 2, 3]


def test_many_blocks_are_counted_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "_TOGETHER", 3)
    counts = MinuteCounts()
    for number in range(20):
        counts.add(made(number, START, [(WRITE, 0, BLOCK * (number % 7), 100, 0)]), 0, 100)
    ((_, day),) = counts.days(["vda"]).items()
    assert list(day.disks["vda"].values()) == [(20, 2000, 7, 0)]


ROWS = st.dictionaries(st.integers(0, PER_DAY - 1), st.tuples(*[st.integers(0, 1 << 40)] * 4), min_size=1, max_size=5)


@given(st.dictionaries(st.sampled_from(["vda", "vdb"]), ROWS), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_what_is_kept_comes_back(disks: dict[str, dict[int, Row]], gaps: list[tuple[int, int]]) -> None:
    day = DayOfMinutes(disks, gaps)
    assert DayOfMinutes.from_json(day.to_json()) == day


@pytest.mark.parametrize(
    "wrong",
    [
        {"gaps": None},
        {"gaps": [[1]]},
        {"gaps": [], "disks": {"vda": {"minute": [1]}}},
        {"gaps": [], "disks": {"vda": {name: [1440] for name in ("minute", "writes", "bytes", "blocks", "stored")}}},
        {"gaps": [], "disks": {"vda": {name: [-1] for name in ("minute", "writes", "bytes", "blocks", "stored")}}},
        {"gaps": [], "disks": {"vda": 7}},
    ],
)
def test_what_cannot_be_minutes(wrong: Json) -> None:
    with pytest.raises(Corrupt):
        DayOfMinutes.from_json(wrong)
