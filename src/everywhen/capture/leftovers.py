# SPDX-License-Identifier: AGPL-3.0-or-later
"""Taking away what is ours in a hypervisor, known by its names: at the end of a capture, and after a run that was killed.

By whoever has begun it, or by a later run that takes over (docs/capture.md, "Two captures of one VM"). F4: a target's node is
removed only after its job has ended. K5: a job must not end while a write is under way that it knows of (docs/capture.md).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from everywhen.capture import answers, bitmaps, standing_still
from everywhen.capture.answers import Job
from everywhen.capture.nbd_server import EXPORT, is_used, withdraw
from everywhen.capture.nodes import OURS
from everywhen.capture.qmp import CommandFailed, Monitor, MonitorError
from everywhen.capture.reading import STAND_IN
from everywhen.capture.staying import STAY
from everywhen.capture.tap import NOTHING, READY, SINK, TAP, forward_to_nothing, has_ended


def clear(monitor: Monitor, *, answered: bool) -> None:
    """Remove all of ours but the bitmaps that record, and what guards them. `answered`: the sink of the taps answers writes.

    Raises MonitorError, CommandFailed.
    """
    standing_still.go_on(monitor)
    for job in answers.jobs(monitor):
        if job.name.startswith(TAP):
            _end(monitor, job, answered=answered)
    exports = [export for export in answers.block_exports(monitor) if export.name.startswith(OURS)]
    for export in exports:
        withdraw(monitor, export.name)
    if any(export.name == EXPORT for export in exports) and not is_used(monitor):
        with suppress(CommandFailed):  # it has none any more
            monitor.execute("nbd-server-stop")
    nodes = answers.block_nodes(monitor)
    for node in nodes.values():
        # On any node: where another tool's filter lies on a disk's now, that is no longer the topmost.
        if any(bitmap.name == bitmaps.FROZEN for bitmap in node.bitmaps):
            bitmaps.remove(monitor, node.name, bitmaps.FROZEN)
    for begin in (TAP, SINK, NOTHING, STAND_IN, STAY):  # each before what it stands on
        for name in [name for name in nodes if name.startswith(begin)]:
            monitor.execute("blockdev-del", {"node-name": name})


def is_anothers(monitor: Monitor, socket: Path) -> bool:
    """Whether taps of ours lead to a sink at another socket: another run has attached since this one did, and what there was of
    this one it has removed. Raises MonitorError, CommandFailed."""
    return any(one != socket for one in sinks(monitor))


def sinks(monitor: Monitor) -> set[Path]:
    """The sockets to which taps of ours lead. Raises MonitorError, CommandFailed."""
    ours = [node for node in answers.block_nodes(monitor).values() if node.name.startswith(SINK)]
    return {Path(node.filename.partition("?socket=")[2]) for node in ours}


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

    Where no sink answers, its connection is yanked first: what follows drains, which must not wait for one that hangs (F2).
    Then nothing takes the sink's place. Where a write has failed, the job has tried to send none since then, and ends when it
    is resumed; where none has, none will, and it ends when it is cancelled.
    """
    if not answered:
        with suppress(CommandFailed):  # a storage daemon has no yank
            monitor.execute("yank", {"instances": [{"type": "block-node", "node-name": SINK + job.name.removeprefix(TAP)}]})
    if job.status in READY:
        _let_go(monitor, job.name)
        # That waits for the tap alone. A write that the disk itself has not done yet is known to the job all the same, and it
        # must not end before that one is over: a transaction, also an empty one, waits for everything.
        monitor.execute("transaction", {"actions": []})
        for command in ("block-job-resume", "block-job-cancel"):
            with suppress(CommandFailed):  # it is not paused; or it has ended just now
                monitor.execute(command, {"device": job.name})
    if job.status not in READY or not has_ended(monitor, job.name):
        standing_still.end_job(monitor, job.name)


def _let_go(monitor: Monitor, tap: str) -> None:
    """Have a tap forward to nothing."""
    nodes = answers.block_nodes(monitor)
    if tap not in nodes:
        raise MonitorError(f"the monitor names the job {tap}, and no node of that name")
    forward_to_nothing(monitor, tap, nodes[tap].size)
