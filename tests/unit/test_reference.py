# SPDX-License-Identifier: AGPL-3.0-or-later
"""The judge of the fio tests: it takes every state that can be, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recorder import CELL, ENTRY, LATE, WRITE, ZEROES, digest
from tests.reference import NEVER, Impossible, Reference, Write

CELLS = 4
BASES = {"a": bytes(CELL * CELLS), "b": bytes(CELL * CELLS)}


def content(value: int) -> bytes:
    return bytes([value]) * CELL


def write(disk: str, cell: int, values: list[int], asked: int, answered: int) -> Write:
    return Write(disk, cell * CELL, asked, answered, tuple(digest(content(value)) for value in values))


def image(*values: int) -> bytes:
    return b"".join(map(content, values))


def reference(*writes: Write) -> Reference:
    found = Reference(BASES, list(writes))
    found.arrange()
    return found


ONE_AFTER_THE_OTHER = (write("a", 0, [1], 10, 20), write("b", 0, [2], 30, 40), write("a", 1, [3], 50, 60))
AT_ONCE = (write("a", 0, [1], 10, 40), write("b", 0, [2], 20, 30))


@pytest.mark.parametrize("count", range(4))
def test_every_beginning_of_what_was_written(count: int) -> None:
    a, b = [0] * CELLS, [0] * CELLS
    for done in ONE_AFTER_THE_OTHER[:count]:
        (a if done.disk == "a" else b)[done.offset // CELL] = {10: 1, 30: 2, 50: 3}[done.asked]
    cut = reference(*ONE_AFTER_THE_OTHER).cut({"a": image(*a), "b": image(*b)})
    assert cut.fewest == cut.most == count


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (0, 2), (1, 2)])
def test_writes_at_once_are_there_in_any_order(a: int, b: int) -> None:
    cut = reference(*AT_ONCE).cut({"a": image(a, 0, 0, 0), "b": image(b, 0, 0, 0)})
    assert cut.fewest == cut.most == bool(a) + bool(b)


def test_what_was_answered_before_is_missing() -> None:
    with pytest.raises(Impossible, match="answered at 20 and is not there"):
        reference(*ONE_AFTER_THE_OTHER).cut({"a": image(0, 0, 0, 0), "b": image(2, 0, 0, 0)})


def test_a_write_that_is_there_in_part() -> None:
    with pytest.raises(Impossible, match="in part"):
        reference(write("a", 1, [5, 6], 1, 2)).cut({"a": image(0, 5, 0, 0)})


def test_content_that_nobody_wrote() -> None:
    with pytest.raises(Impossible, match="nobody wrote"):
        reference(*AT_ONCE).cut({"a": image(0, 0, 9, 0)})


def test_older_content_comes_back() -> None:
    twice = (write("a", 0, [1], 1, 2), write("a", 0, [2], 3, 4), write("b", 0, [3], 5, 6))
    with pytest.raises(Impossible, match="is not there"):
        reference(*twice).cut({"a": image(1, 0, 0, 0), "b": image(3, 0, 0, 0)})


ZEROED = (write("a", 0, [1], 1, 2), write("a", 0, [0], 3, 4), write("b", 0, [3], 5, 6))


def test_zeroes_may_be_from_before_or_after() -> None:
    cut = reference(*ZEROED).cut(BASES)
    assert (cut.fewest, cut.most) == (0, 2)
    cut = reference(*ZEROED).cut({"a": image(0, 0, 0, 0), "b": image(3, 0, 0, 0)})
    assert cut.fewest == cut.most == 3


def test_zeroes_that_are_missing() -> None:
    with pytest.raises(Impossible):
        reference(*ZEROED).cut({"a": image(1, 0, 0, 0), "b": image(3, 0, 0, 0)})


def test_zeroes_from_another_time_than_the_rest() -> None:
    between = (write("a", 0, [1], 1, 2), write("b", 0, [3], 3, 4), write("b", 1, [4], 5, 6), write("a", 0, [0], 7, 8))
    with pytest.raises(Impossible, match="another time"):
        reference(*between).cut({"a": image(0, 0, 0, 0), "b": image(3, 0, 0, 0)})


def test_a_load_that_writes_twice_at_once_is_refused() -> None:
    with pytest.raises(AssertionError, match="beside"):
        reference(write("a", 0, [1], 1, 9), write("a", 0, [2], 2, 3))


def test_a_log_is_read(tmp_path: Path) -> None:
    cells = digest(content(1)) + digest(content(2))
    entries = [
        ENTRY.pack(b"a", WRITE, 0, CELL, 2 * CELL, 10, 30) + cells,
        ENTRY.pack(LATE, 0, 0, 0, 0, 12, 20),
        ENTRY.pack(b"b", ZEROES, 0, 0, CELL, 15, 0) + digest(bytes(CELL)),
    ]
    log = tmp_path / "log"
    log.write_bytes(b"".join(entries))
    found = Reference.read(log, BASES)
    assert (found.worst(), found.latest()) == (NEVER - 15, 8)
    assert [(one.disk, one.offset, len(one.cells)) for one in found.writes] == [("a", CELL, 2), ("b", 0, 1)]
    cut = found.cut({"a": image(0, 1, 2, 0), "b": image(0, 0, 0, 0)})
    assert (cut.fewest, cut.most, cut.newest_in) == (1, 2, 10)


def test_an_error_that_a_client_was_given_fails(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(ENTRY.pack(b"a", 0, 5, 0, CELL, 1, 2))
    with pytest.raises(AssertionError, match="error 5 to command 0"):
        Reference.read(log, BASES)
