# SPDX-License-Identifier: AGPL-3.0-or-later
"""Several VMs set back together: each step of all before the next step of any, so that they stand for one instant."""

from __future__ import annotations

from collections.abc import Sequence

from everywhen.services.rollback.record import Record, Step
from everywhen.services.rollback.rollback import Rollback


def run(rollbacks: Sequence[Rollback], *, at_once: bool) -> None:
    """From wherever each of them is, to the end. Raises Failure, and the errors of the layers below."""
    for one in rollbacks:
        one.begin()
    for one in rollbacks:
        one.stop(at_once=at_once)
    for step in (Rollback.present, Rollback.mark, Rollback.write, Rollback.commit, Rollback.unmark, Rollback.start):
        for one in rollbacks:
            step(one)
    for one in rollbacks:
        one.over()


def not_begun(records: Sequence[Record | None]) -> bool:
    """Whether nothing has been done of a run with these records (None: a VM without one): it was writing them when killed."""
    return None in records and all(one is None or one.step is Step.BEGUN for one in records)


def all_done(records: Sequence[Record | None]) -> bool:
    """Whether all has been done of it: it was killed while it removed them."""
    return all(one is None or one.step is Step.STARTED for one in records)
