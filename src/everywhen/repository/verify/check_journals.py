# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checks of journals: what lies between points that stay is there, in order, and can be opened (I-2, I-3).

The end of a journal may be missing: it is on its way from a host. A hole before something that is there is damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from everywhen.formats.point import RecoveryPoint
from everywhen.repository.errors import Damaged
from everywhen.repository.journal import PREFIX, Journal, streams
from everywhen.repository.journal_spans import JournalSpan, kept_spans
from everywhen.repository.repository import Repository
from everywhen.repository.verify.findings import Finding, Loss
from everywhen.storage.base import ObjectNotFound


def check_journals(
    repository: Repository, live: Iterable[RecoveryPoint], progress: Callable[[int], None], *, read_data: bool
) -> list[Finding]:
    """Judge the journals of these points; `progress` is told bytes that were read. Raises StorageError."""
    spans: dict[str, list[JournalSpan]] = {}
    for span in kept_spans(live):
        spans.setdefault(span.stream, []).append(span)
    found = []
    for stream, sizes in streams(repository).items():
        if stream in spans:  # else it goes with the next gc
            found += _Stream(Journal(repository, stream), sizes, spans[stream]).check(progress, read_data=read_data)
    return found


class _Stream:
    def __init__(self, journal: Journal, sizes: dict[int, int], spans: list[JournalSpan]) -> None:
        self._journal = journal
        self._sizes = sizes
        self._spans = spans

    def check(self, progress: Callable[[int], None], *, read_data: bool) -> list[Finding]:
        """Each segment by itself, then that none is missing between two."""
        found: list[Finding] = []
        expected: int | None = None
        """The record that follows what was judged before; None where that is not known."""
        for number in sorted(self._sizes):
            name = f"{PREFIX}{self._journal.stream}/{number:016x}"
            try:
                begin = self._journal.header(number).sequence
                end = self._end(number, begin, progress) if read_data or number + 1 not in self._sizes else None
            except ObjectNotFound:
                continue  # gc was faster
            except Damaged as error:
                found.append(Finding("I-3", name, str(error), losses=self._losses(expected, self._begin_after(number))))
                expected = None
                continue
            if expected is not None and begin != expected and (losses := self._losses(expected, begin)):
                found.append(Finding("I-2", name, f"records {expected} to {begin - 1}, before it, are missing", losses=losses))
            expected = end
        return found

    def _end(self, number: int, begin: int, progress: Callable[[int], None]) -> int:
        end = begin
        for group in self._journal.groups_of(number):
            end = group.sequence + len(group)
            group.data()
        progress(self._sizes[number])
        return end

    def _begin_after(self, number: int) -> int | None:
        """The first record that is surely behind a segment."""
        for later in sorted(later for later in self._sizes if later > number):
            try:
                return self._journal.header(later).sequence
            except (Damaged, ObjectNotFound):
                continue
        return None

    def _losses(self, begin: int | None, end: int | None) -> list[Loss]:
        """The moments between points that need records `begin` to before `end` (None: not known)."""
        return [
            Loss(span.point.vm, "journal", "", (), ((span.point.point, span.point.time_ns),))
            for span in self._spans
            if span.meets(begin or 0, end)
        ]
