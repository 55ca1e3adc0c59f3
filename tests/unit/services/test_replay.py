# SPDX-License-Identifier: AGPL-3.0-or-later
"""What records make of disks, and which of the states between them are moments."""

from __future__ import annotations

import pytest

from everywhen.block.patched import Patches
from everywhen.formats.errors import Corrupt
from everywhen.formats.point import ClockStep
from everywhen.services.replay import Replay
from tests.records import COMPLETE, OPENED, clock_set, group, mark, write


@pytest.fixture
def replay() -> Replay:
    return Replay([Patches(), Patches()], 0, following=False)


def test_only_what_is_whole_on_all_disks_is_a_moment(replay: Replay) -> None:
    for number, made in enumerate((*OPENED, COMPLETE[0])):
        replay.feed(group(number, made))
        assert not replay.is_moment
    replay.feed(group(3, COMPLETE[1]))
    assert replay.is_moment


def test_a_copy_that_ends_after_its_tap_completes_nothing(replay: Replay) -> None:
    replay.feed(group(0, *OPENED, mark(0, "tap closed"), *COMPLETE))
    assert not replay.is_moment
    assert replay.ended_ns is None


def test_nothing_is_fed_beyond_the_end_of_a_tap(replay: Replay) -> None:
    replay.feed(group(0, *OPENED, *COMPLETE, write(0, 0, b"before"), mark(1, "tap closed"), write(0, 0, b"behind")))
    replay.feed(group(7, write(0, 0, b"later")))
    assert replay.ended_ns == 5  # ns: the records of a group lie one apart
    assert replay.is_moment
    assert (replay.sequence, replay.writes) == (5, 1)
    assert replay.patches[0].over(0, bytes(10)) == b"before\0\0\0\0"


def test_a_group_may_be_fed_in_parts_and_again(replay: Replay) -> None:
    records = (*OPENED, *COMPLETE, write(0, 0, b"a"), write(1, 1, b"b"), write(0, 1, b"c"))
    for until in (2, 5, 5, 6, None):
        replay.feed(group(0, *records), until=until)
    assert (replay.sequence, replay.writes) == (7, 3)
    assert replay.patches[0].over(0, bytes(3)) == b"ac\0"
    assert replay.time_ns == 6


def test_a_record_of_a_disk_that_is_not_there(replay: Replay) -> None:
    with pytest.raises(Corrupt, match="disk 2"):
        replay.feed(group(0, write(2, 0, b"x")))


def test_not_beyond_an_instant(replay: Replay) -> None:
    made = group(0, *OPENED, *COMPLETE, write(0, 0, b"a"), write(0, 0, b"b"), write(0, 0, b"c"))
    for instant, content in ((4, b"a"), (5, b"b"), (5, b"b"), (9, b"c")):
        replay.feed(made, until_ns=instant)
        assert (replay.patches[0].over(0, bytes(1)), replay.time_ns) == (content, min(instant, 6))


def test_after_a_point_every_record_makes_a_moment() -> None:
    replay = Replay([Patches()], 7, following=True)
    assert replay.is_moment
    replay.feed(group(0, *(write(0, number, b"x") for number in range(9))))
    assert (replay.sequence, replay.writes) == (9, 2)


def test_records_that_are_missing(replay: Replay) -> None:
    replay.feed(group(0, *OPENED, *COMPLETE))
    with pytest.raises(Corrupt, match="4 to 6 are missing"):
        replay.feed(group(7, write(0, 0, b"x")))


def test_marks_that_are_not_of_a_tap_change_no_moment(replay: Replay) -> None:
    replay.feed(group(0, clock_set(40, 3), *OPENED, *COMPLETE, mark(0, "a word of a later program"), clock_set(5, 9)))
    replay.feed(group(7, clock_set(9, 1)), until=7)
    assert (replay.is_moment, replay.ended, replay.writes, replay.sequence) == (True, False, 0, 7)
    assert replay.clock_steps == [ClockStep(0, 40, 3), ClockStep(6, 5, 9)]
    with pytest.raises(Corrupt):
        replay.feed(group(7, clock_set(-1, 5)))
