# SPDX-License-Identifier: AGPL-3.0-or-later
"""Points of captures that ran at once: the later capture is the history from its first moment on."""

from __future__ import annotations

from dataclasses import replace

from everywhen.formats.ids import PointId
from everywhen.formats.point import JournalPosition, ParentLink, RecoveryPoint, RolledBack
from everywhen.repository.branches import before_rollback, history, next_branch, rollbacks
from everywhen.repository.journal_spans import kept_spans


def point(name: str, at: int, number: int, stream: str = "", epoch: int = 1, parent: str = "", began: int = 0) -> RecoveryPoint:
    """Of a capture's stream, at a number that is ten times its time; or of a backup."""
    journal = JournalPosition(stream * 32, 10 * at, ("vda",), began or at) if stream else None
    link = ParentLink(PointId(parent), bytes(32)) if parent else None
    return RecoveryPoint(PointId(name), "a" * 32, at, number, epoch, link, "crash", "crash", "", {}, journal=journal)


P = point("p", 10, 1, "a")
B = point("b", 15, 2, parent="p")
C = point("c", 20, 2, "a", parent="p", began=10)
D = point("d", 30, 3, "a", parent="c", began=10)
F = point("f", 25, 2, "f", epoch=2, parent="p")
G = point("g", 35, 3, "f", epoch=2, parent="f", began=25)


def test_a_line_is_its_own_history() -> None:
    assert history([]) == []
    assert history([P, C, D]) == [P, C, D]
    assert history([D, P]) == [D, P], "in the order that was given"


def test_a_backup_beside_a_capture_is_history() -> None:
    assert history([P, B, C, D]) == [P, B, C, D]
    assert history([P, B, C, F, D, G]) == [P, B, C, F, G]


def test_what_an_older_capture_made_after_a_later_ones_first_moment_lies_beside() -> None:
    assert history([P, C, F, D, G]) == [P, C, F, G]
    assert history([P, C, D, G]) == [P, C, G], "also when the later one's first point was dropped"
    assert history([P, C, D]) == [P, C, D], "there is no other"


def spans(*points: RecoveryPoint) -> set[tuple[str, int, int | None]]:
    return {(span.point.point, span.begin, span.end) for span in kept_spans(points)}


def test_what_a_backup_beside_a_capture_does_to_its_journal() -> None:
    assert spans(P, B, C, D) == {("p", 100, 200), ("c", 200, 300), ("d", 300, None)}
    assert spans(P, B, D) == {("d", 300, None)}, "the moments up to a point that was dropped went with it"
    assert spans(P, B) == {("p", 100, None)}


def test_two_points_of_a_stream_with_the_same_number_have_all_between_them() -> None:
    """The answer to the commit of the first one was lost, and its capture tried again."""
    again = point("c2", 25, 2, "a", parent="p", began=10)
    after = point("d2", 30, 3, "a", parent="c2", began=10)
    assert spans(P, C, again, after) == {("p", 100, 200), ("c", 200, 250), ("c2", 250, 300), ("d2", 300, None)}
    assert spans(P, C, after) == {("p", 100, 200), ("c", 200, 300), ("d2", 300, None)}, "either of them will do"
    assert spans(P, again, after) == {("p", 100, 250), ("c2", 250, 300), ("d2", 300, None)}
    assert spans(P, after) == {("d2", 300, None)}


def test_what_follows_the_newest_point_of_the_newest_capture_stays_whatever_numbers_there_are() -> None:
    """Two backups beside an idle capture, one upon the other, of which the first one was dropped."""
    later = point("e", 40, 4, parent="b")
    assert spans(P, later) == {("p", 100, None)}
    assert spans(P, C, D, F) >= {("f", 250, None)}, "the older capture's numbers have run ahead"
    assert spans(P, D, G) == {("d", 300, None), ("g", 350, None)}


def test_a_rollback_leaves_a_branch_and_stays_history() -> None:
    turn = replace(point("t", 50, 4, parent="d"), rolled_back=RolledBack(PointId("p"), 12, 1))
    again = replace(point("u", 70, 6, parent="t"), rolled_back=RolledBack(PointId("d"), 30, 2))
    later = point("v", 60, 5, parent="t")
    every = [P, C, D, turn, later, again]
    assert history(every) == every
    assert rollbacks(every) == {1: turn, 2: again}
    assert next_branch(every) == 3
    assert next_branch([P, C]) == 1
    assert before_rollback(every, turn) == [P, C, D]
    assert before_rollback(every, again) == [P, C, D, turn, later]
