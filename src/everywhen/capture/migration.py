# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether a guest is in the QEMU that answers, or was migrated to another one, or has yet to arrive from there.

A QEMU whose guest has left goes on answering, and its taps stand: no write comes any more, and to say that none was written
would be wrong. Its images are another QEMU's: to export one here would open it to write again (QEMU, block/export/export.c).
Sources: QEMU, qapi/run-state.json (RunState), qapi/migration.json (MigrationStatus).
"""

from __future__ import annotations

from everywhen.capture import answers
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


def may_have_run_elsewhere(monitor: Monitor) -> bool:
    """Whether the guest had left this QEMU before it ran on here: what was written to its disks meanwhile, no bitmap has.

    Also where it was only saved to a file: that cannot be told apart. Raises MonitorError.
    """
    try:
        last = answers.migration(monitor)
    except CommandFailed:
        return False
    return last.status in _RUNS_THERE or (last.status == "completed" and last.took_ms > 0)
