# SPDX-License-Identifier: AGPL-3.0-or-later
"""How far the journal in the repository reaches after a VM's newest point."""

from __future__ import annotations

from everywhen.formats.point import RecoveryPoint
from everywhen.repository.journal import Journal
from everywhen.repository.repository import Repository


def reached_ns(repository: Repository, newest: RecoveryPoint, *, exactly: bool) -> int | None:
    """When the newest record was taken that is in the repository; None where the journal has nothing after the point.

    Not `exactly`: when the first one of its segment was, which costs 192 bytes instead of the segment.

    Raises Damaged, StorageError.
    """
    if newest.journal is None:
        return None
    journal = Journal(repository, newest.journal.stream)
    numbers = journal.numbers()
    if not numbers:
        return None
    found = journal.header(numbers[-1]).time_ns
    if exactly:
        for group in journal.groups_of(numbers[-1]):
            found = group.time_ns + int(group.times[-1])
    return found if found > newest.time_ns else None
