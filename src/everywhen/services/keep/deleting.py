# SPDX-License-Identifier: AGPL-3.0-or-later
"""Before gc deletes dropped moments for good (I-11): whether the clock can be right that says that their time is over.

Unlike prune's brake this one looks at the whole repository: a VM that was given up has no new moments, and must not stop
each gc from then on. Nor does it believe the newest time: one host whose clock runs ahead would stop everybody. It asks
whether anything at all was written within a day of now.
"""

from __future__ import annotations

from everywhen.repository.gc.roots import find_roots
from everywhen.repository.ledger import Ledger
from everywhen.repository.repository import Repository
from everywhen.services.ages import span
from everywhen.services.keep.brakes import CLOCK_TOLERANCE, Brake
from everywhen.services.times import rfc3339


def before_deleting(repository: Repository) -> Brake | None:
    """Why gc has to ask before it deletes what was dropped; None: it need not. Raises StorageError, FormatError."""
    roots = find_roots(repository)
    if not roots.doomed:
        return None
    now = repository.surroundings.clock()
    times = [point.time_ns for point in (*roots.live, *roots.doomed)]
    times += [drop.dropped_ns for drop in Ledger(repository.documents).drops()]
    nearest = min(times, key=lambda time_ns: abs(now - time_ns))
    if abs(now - nearest) <= CLOCK_TOLERANCE:
        return None
    side = "after" if now > nearest else "before"
    words = (
        f"The clock says {rfc3339(now)}, {span(abs(now - nearest))} {side} the nearest moment in this repository, and "
        f"{len(roots.doomed)} dropped moments would go for good. Is the clock right?"
    )
    return Brake("clock", words)
