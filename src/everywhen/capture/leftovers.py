# SPDX-License-Identifier: AGPL-3.0-or-later
"""Taking away what is ours in a hypervisor, known by its names: at the end of a capture, and after a run that was killed.

By whoever has begun it, or by a later run that takes over (docs/capture.md, "Two captures of one VM"). F4: a target's node is
removed only after its job has ended. K5: a job must not end while a write is under way that it knows of (docs/capture.md).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from time import monotonic

from everywhen.capture import answers, bitmaps
from everywhen.capture.answers import Job
from everywhen.capture.nbd_server import is_used, withdraw
from everywhen.capture.nodes import OURS
from everywhen.capture.qmp import CommandFailed, Monitor
from everywhen.capture.reading import STAND_IN
from everywhen.capture.staying import STAY
from everywhen.capture.tap import ENDED, READY

_END_S, _LOOK_S = 10.0, 0.05
_PAUSED = ("standby", "paused")
_PAUSED_S = 0.3
"""A job in an iothread goes on a moment after it was told to."""


def clear(monitor: Monitor, *, answered: bool) -> None:
    """Remove all of ours but the bitmaps that record, and what guards them. `answered`: the sink of the taps answers writes.

    Raises MonitorError, CommandFailed.
    """
    for job in answers.jobs(monitor):
        if job.name.startswith(OURS):
            _end(monitor, job, answered=answered)
    exports = [export for export in answers.block_exports(monitor) if export.name.startswith(OURS)]
    for export in exports:
        withdraw(monitor, export.name)
    if any(export.kind == "nbd" for export in exports) and not is_used(monitor):
        with suppress(CommandFailed):  # it has none any more
            monitor.execute("nbd-server-stop")
    for node in answers.block_nodes(monitor).values():
        # On any node: where another tool's filter lies on a disk's now, that is no longer the topmost.
        if any(bitmap.name == bitmaps.FROZEN for bitmap in node.bitmaps):
            bitmaps.remove(monitor, node.name, bitmaps.FROZEN)
        if node.name in (STAND_IN, STAY) or node.name.startswith(f"{OURS}tap-"):
            monitor.execute("blockdev-del", {"node-name": node.name})


def is_anothers(monitor: Monitor, socket: Path) -> bool:
    """Whether taps of ours lead to a sink at another socket: another run has attached since this one did, and what there was of
    this one it has removed. Raises MonitorError, CommandFailed."""
    taps = [node for node in answers.block_nodes(monitor).values() if node.name.startswith(f"{OURS}tap-")]
    return any(not tap.filename.endswith(f"?socket={socket}") for tap in taps)


def clear_bitmaps(monitor: Monitor) -> int:
    """Remove all bitmaps of ours, whosever point they are of; how many. Raises MonitorError, CommandFailed."""
    count = 0
    for node in answers.block_nodes(monitor).values():
        names = [bitmap.name for bitmap in node.bitmaps if bitmap.name.startswith(OURS)]
        bitmaps.remove(monitor, node.name, *names)
        count += len(names)
    return count


def _end(monitor: Monitor, job: Job, *, answered: bool) -> None:
    """End the job of a tap, as one that has nothing left to send: QEMU waits for all writes that it knows of, then frees it.

    Where no sink answers, the connection is yanked first: what follows drains, which must not wait for one that hangs (F2).
    After that each write that was under way is over. Where one has failed, the job tries to send none from then on, and
    ends when it is resumed; where none has, it finds when it ends, and holds back all writes, that its target is gone.
    """
    if not answered:
        with suppress(CommandFailed):  # a storage daemon has no yank
            monitor.execute("yank", {"instances": [{"type": "block-node", "node-name": job.name}]})
    monitor.execute("transaction", {"actions": []})
    if job.status in READY:
        for command in ("block-job-resume", "block-job-cancel"):
            with suppress(CommandFailed):  # it is not paused; or it has ended just now
                monitor.execute(command, {"device": job.name})
        if _has_ended(monitor, job.name):
            return
    _end_at_rest(monitor, job.name)


def _end_at_rest(monitor: Monitor, job: str) -> None:
    """End a job that still has something to send, and never will: the guest stands still meanwhile, for some milliseconds."""
    try:
        running = answers.run_state(monitor) == "running"
    except CommandFailed:  # a storage daemon has no guest that could be stopped
        running = False
    if running:
        monitor.execute("stop")  # and drains
    try:
        with suppress(CommandFailed):  # it has ended just now
            monitor.execute("block-job-cancel", {"device": job, "force": True})
        _has_ended(monitor, job)
    finally:
        if running:
            monitor.execute("cont")


def _has_ended(monitor: Monitor, name: str) -> bool:
    """Wait for the end of a job; False when it will not come: what it has still to send could not be sent, and it is paused."""
    end = monotonic() + _END_S
    paused_since = end
    while (now := monotonic()) < end:
        job = next((job for job in answers.jobs(monitor) if job.name == name), None)
        if job is None:
            return True
        paused_since = min(paused_since, now) if job.status in _PAUSED else end
        if now - paused_since > _PAUSED_S:
            return False
        monitor.next_event(_LOOK_S, lambda event: event.name in ENDED and event.data.get("device") == name)
    return False
