# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether a guest is in the QEMU that answers, or was migrated to another one, or has yet to arrive from there.

A QEMU whose guest has left goes on answering, and its taps stand: no write comes any more, and to say that none was written
would be wrong. Its images are another QEMU's: to export one here would open it to write again (QEMU, block/export/export.c).
Sources: QEMU, qapi/run-state.json (RunState), qapi/migration.json (MigrationStatus).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from everywhen.capture import answers, bitmaps, leftovers
from everywhen.capture.qmp import CommandFailed, Monitor

LEFT = "the VM was migrated: its guest runs in another QEMU now"
COMING = "the VM is about to arrive by migration"
_RUNS_THERE = ("postcopy-active", "postcopy-paused", "postcopy-recover")


def why_away(monitor: Monitor) -> str | None:
    """Why the guest is not in this QEMU; None while it is. Raises MonitorError."""
    try:
        state = answers.run_state(monitor)
        if state == "inmigrate":
            return COMING
        if state == "postmigrate" or (state == "finish-migrate" and answers.migration(monitor).status in _RUNS_THERE):
            return LEFT
    except CommandFailed:
        pass  # a storage daemon has no guest
    return None


def clear_outdated(monitor: Monitor, nodes: Iterable[str]) -> None:
    """Remove our bitmaps where the guest may have run elsewhere since they were begun: they do not have what was written there.

    QEMU tells of its last migration as long as it runs, so which one was dealt with is noted on these nodes, the disks'.
    Nothing else of ours is on them. Raises MonitorError, CommandFailed.
    """
    name = departure(monitor)
    if name is not None and not bitmaps.noted(monitor, name):
        leftovers.clear_bitmaps(monitor)
        bitmaps.note(monitor, nodes, name)


def departure(monitor: Monitor) -> str | None:
    """A name for the last time that the guest left this QEMU before it ran on here; None where it never did.

    Also where it was only saved to a file: that cannot be told apart. A guest that ran meanwhile does not leave twice with the
    same figures: bytes and pages that were sent, milliseconds that each part of it took. Raises MonitorError.
    """
    try:
        last = answers.migration(monitor)
    except CommandFailed:
        return None
    if last.status in _RUNS_THERE or (last.status == "completed" and last.took_ms > 0):
        return f"{bitmaps.AFTER}{blake2b(last.figures.encode(), digest_size=8).hexdigest()}"
    return None
