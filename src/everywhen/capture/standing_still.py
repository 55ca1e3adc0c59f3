# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest that stands still while a job of ours is ended by force: only then is no write under way (K5).

It takes some milliseconds, and is done where nothing else ends a job: a push that is not over. A node whose name says so notes
in QEMU that it was us who stopped the guest: should we die before it goes on, the next run lets it (`go_on`).
"""

from __future__ import annotations

from contextlib import suppress

from everywhen.capture import answers
from everywhen.capture.nodes import OURS
from everywhen.capture.qmp import CommandFailed, Monitor, MonitorBusy
from everywhen.capture.tap import has_ended

_NOTE = f"{OURS}stopped-the-guest"  # 31 bytes at most
_BUSY_S = 60.0
"""QEMU answers `stop` when all that the guest has written was flushed."""
_TIMES = 3


def end_job(monitor: Monitor, job: str) -> None:
    """End a job that still has something to send, and never will. Raises MonitorError, CommandFailed.

    A storage daemon has no guest that could be stopped.
    """
    try:
        running = answers.run_state(monitor) == "running"
    except CommandFailed:
        running = False
    try:
        if running:
            monitor.execute("blockdev-add", {"driver": "null-co", "node-name": _NOTE, "size": 512})
            monitor.execute("stop", timeout=_BUSY_S)
        with suppress(CommandFailed):  # it has ended just now
            monitor.execute("block-job-cancel", {"device": job, "force": True})
        # Before the guest goes on: that moves a disk to its iothread, and QEMU 7.2 aborts where a job on it is about to end.
        has_ended(monitor, job)
    finally:
        go_on(monitor)


def go_on(monitor: Monitor) -> None:
    """Let a guest go on that we have stopped, if we have. Raises MonitorError, CommandFailed: then a later call can."""
    if _NOTE not in answers.block_nodes(monitor):
        return
    for left in reversed(range(_TIMES)):
        try:
            monitor.execute("cont", timeout=_BUSY_S)
            break
        except MonitorBusy:
            if not left:
                raise
    monitor.execute("blockdev-del", {"node-name": _NOTE})
