# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is counted of a journal by the minute, against counting one record after the other; and what is kept of it."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json
from everywhen.formats.segment import MARK, WRITE, ZERO, Group, decode_group, encode_group
from everywhen.repository.minutes import PER_DAY, DayOfMinutes, PointRow, Row, median_of
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
    expected: dict[tuple[int, int], tuple[int, int, set[int], int]] = {}
    different = np.zeros((3, 8 * BLOCK), bool)
    for seconds, records in parts:
        time_ns = START + seconds * SECOND
        counts.add(made(sequence, time_ns, records), since, until)
        for number, (kind, disk, offset, length, at) in enumerate(records, sequence):
            if kind != MARK and since <= number < until:
                place = (disk, (time_ns + at) // MINUTE)
                writes, size, blocks, zeroes = expected.get(place, (0, 0, set(), 0))
                blocks |= set(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))
                expected[place] = (writes + 1, size + length, blocks, zeroes + length * (kind == ZERO))
                if kind == WRITE:
                    different[disk, offset : offset + length] = True
        sequence += len(records)
    found = {
        (int(name), day * PER_DAY + minute): (row.writes, row.size, row.blocks, row.zeroes)
        for day, one in counts.days(["0", "1", "2"]).items()
        for name, rows in one.disks.items()
        for minute, row in rows.items()
    }
    assert found == {place: (writes, size, len(blocks), zero) for place, (writes, size, blocks, zero) in expected.items()}
    assert counts.different == different.sum()


def test_a_block_is_not_counted_for_its_neighbours() -> None:
    counts = MinuteCounts()
    counts.add(made(0, START, [(WRITE, 0, BLOCK, BLOCK, 0), (WRITE, 1, BLOCK - 1, 2, 0), (ZERO, 2, 0, 3 * BLOCK, 0)]), 0, 9)
    (day,) = counts.days(["vda", "vdb", "vdc"]).values()
    assert [row.blocks for rows in day.disks.values() for row in rows.values()] == [1, 2, 3]


def test_many_blocks_are_counted_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "_TOGETHER", 3)
    counts = MinuteCounts()
    for number in range(20):
        counts.add(made(number, START, [(WRITE, 0, BLOCK * (number % 7), 100 + number, 0)]), 0, 100)
    ((_, day),) = counts.days(["vda"]).items()
    (row,) = day.disks["vda"].values()
    assert (row.writes, row.size, row.blocks) == (20, 2000 + 190, 7)
    # The longest of those that begin at the same place: the last of each.
    assert counts.different == 7 * 100 + sum(range(13, 20))


def test_what_a_group_takes_is_shared_out() -> None:
    """All of it, by length; across two points of which each has a part of the group; and incompressible data stays as much."""
    noise = random.Random(1).randbytes(30_000)
    records = [(WRITE, 0, 0, 20_000, 0), (WRITE, 1, 0, 10_000, 0), (ZERO, 1, 0, 5, 0)]
    group = decode_group(encode_group(0, START, records, [noise], 1))
    first, second = MinuteCounts(), MinuteCounts()
    first.add(group, 0, 1)
    second.add(group, 1, 3)
    ((vda,), (vdb,)) = (
        [row for day in counts.days(["vda", "vdb"]).values() for rows in day.disks.values() for row in rows.values()]
        for counts in (first, second)
    )
    assert vda.compressed == pytest.approx(20_000, rel=0.01)
    assert vdb.compressed == pytest.approx(10_000, rel=0.01)
    assert vda.journal + vdb.journal == pytest.approx(group.size + 32, abs=2), "the frame and the tag are 32 bytes"
    assert vdb.journal - vdb.compressed == pytest.approx(2 * (vda.journal - vda.compressed), abs=2), "two records, not one"
    text = MinuteCounts()
    text.add(made(0, START, [(WRITE, 0, 0, 30_000, 0)]), 0, 1)
    ((row,),) = (list(day.disks["vda"].values()) for day in text.days(["vda"]).values())
    assert row.compressed < 300


ROWS = st.dictionaries(st.integers(0, PER_DAY - 1), st.builds(Row, *[st.integers(0, 1 << 40)] * 9), min_size=1, max_size=5)
POINTS = st.dictionaries(st.integers(0, PER_DAY - 1), st.builds(PointRow, *[st.integers(0, 1 << 40)] * 3), max_size=3)
DAYS = st.builds(
    DayOfMinutes,
    st.dictionaries(st.sampled_from(["vda", "vdb"]), ROWS),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))),
    POINTS,
)


@given(DAYS, st.sampled_from([1, 60, PER_DAY]))
def test_what_is_kept_comes_back(day: DayOfMinutes, per: int) -> None:
    coarse = day.thinned(per)
    for one in (day, coarse):
        assert DayOfMinutes.from_json(one.to_json()) == one


def sums(day: DayOfMinutes) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, rows in day.disks.items():
        for row in rows.values():
            figures = row._replace(median=0, worst=0)._asdict()
            found.update({f"{name} {figure}": value for figure, value in figures.items()})
    for points in day.points.values():
        found.update(points._asdict())
    return found


@given(DAYS)
def test_thinning_loses_the_minute_and_nothing_else(day: DayOfMinutes) -> None:
    hours = day.thinned(60)
    for coarse in (hours, hours.thinned(PER_DAY), hours.thinned(1), day.thinned(PER_DAY)):
        assert sums(coarse) == sums(day)
        assert coarse.gaps == day.gaps
        assert all(minute % coarse.per == 0 for rows in coarse.disks.values() for minute in rows)
        assert all(minute % coarse.per == 0 for minute in coarse.points)
        for name, rows in day.disks.items():
            assert max(row.worst for row in rows.values()) == max(row.worst for row in coarse.disks[name].values())
    assert hours.thinned(1) == hours, "hours do not become minutes again"
    late = hours.thinned(60)
    late.merge(DayOfMinutes({"vdc": {61: Row(1), 119: Row(2)}}))
    assert late.disks["vdc"] == {60: Row(3)}, "what comes late is taken in by the hour"


def test_the_median_of_an_hour_is_that_of_most_writes() -> None:
    rows = {0: Row(writes=1, median=900, worst=1000), 1: Row(writes=5, median=10, worst=20), 2: Row(writes=3)}
    rows[70] = Row(median=7)
    coarse = DayOfMinutes({"vda": rows}).thinned(60).disks["vda"]
    assert [(row.median, row.worst) for row in coarse.values()] == [(10, 1000), (7, 0)]
    assert median_of([Row(median=median) for median in (1000, 1, 100)]) == 100, "writes are not counted between points"
    assert median_of([]) == median_of([Row(writes=3)]) == 0


def test_a_later_median_replaces_an_earlier_one_and_none_replaces_nothing() -> None:
    day = DayOfMinutes()
    for row in (Row(median=5, worst=9), Row(median=7, worst=8), Row(writes=1)):
        day.add("vda", 3, row)
    assert day.disks["vda"] == {3: Row(writes=1, median=7, worst=9)}


FIRST = ("minute", "writes", "bytes", "blocks", "stored")


def test_what_an_older_program_kept() -> None:
    day = DayOfMinutes.from_json({"disks": {"vda": {name: [number] for number, name in enumerate(FIRST)}}, "gaps": []})
    assert day == DayOfMinutes({"vda": {0: Row(1, 2, 3, 4)}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"gaps": None},
        {"gaps": [[1]]},
        {"gaps": [], "disks": {"vda": {"minute": [1]}}},
        {"gaps": [], "disks": {"vda": {key: [1440] for key in FIRST}}},
        {"gaps": [], "disks": {"vda": {key: [-1] for key in FIRST}}},
        {"gaps": [], "disks": {"vda": {key: [7, 7] for key in FIRST}}},
        {"gaps": [], "disks": {"vda": {key: [7] for key in FIRST} | {"journal": [1, 2]}}},
        {"gaps": [], "disks": {"vda": 7}},
        {"gaps": [], "points": {"minute": [1]}},
        {"gaps": [], "per": 7},
        {"gaps": [], "per": "60"},
    ],
)
def test_what_cannot_be_minutes(wrong: Json) -> None:
    with pytest.raises(Corrupt):
        DayOfMinutes.from_json(wrong)
