# SPDX-License-Identifier: AGPL-3.0-or-later
"""Deleting segments of journals that no moment reaches any more (`journal_spans.py` says which those are).

No writer can be met: a stream's first segment is put after its first point, so whoever lists segments first and points
afterwards knows the points of all that it lists. Readers hold leases, and what is leased lives.
"""

from __future__ import annotations

from everywhen.repository.errors import Damaged
from everywhen.repository.gc.roots import find_roots
from everywhen.repository.journal import Journal, streams
from everywhen.repository.journal_spans import JournalSpan, kept_spans
from everywhen.repository.repository import Repository
from everywhen.storage.base import ObjectNotFound


def sweep_journals(repository: Repository, *, dry_run: bool) -> tuple[int, int]:
    """How many segments were deleted (or would be), and their bytes. Raises StorageError, FormatError."""
    listed = streams(repository)
    spans: dict[str, list[JournalSpan]] = {}
    for span in kept_spans(find_roots(repository).live):
        spans.setdefault(span.stream, []).append(span)
    count = freed = 0
    for stream, sizes in listed.items():
        journal = Journal(repository, stream)
        for number in _unneeded(journal, sorted(sizes), spans.get(stream, [])):
            count, freed = count + 1, freed + sizes[number]
            if not dry_run:
                journal.delete(number)
    return count, freed


def _unneeded(journal: Journal, numbers: list[int], spans: list[JournalSpan]) -> list[int]:
    if not spans:
        return numbers
    try:
        begins = [journal.header(number).sequence for number in numbers]
    except (Damaged, ObjectNotFound):
        return []  # for verify to judge: what cannot be read tells not whether it is needed
    ends = [*begins[1:], None]
    return [
        number
        for number, begin, end in zip(numbers, begins, ends, strict=True)
        if not any(span.meets(begin, end) for span in spans)
    ]
