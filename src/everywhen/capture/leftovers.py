# SPDX-License-Identifier: AGPL-3.0-or-later
"""Taking away what is ours in a hypervisor, known by its names: at the end of a capture, and after a run that was killed.

Only when our sink is gone, or by a later run that takes over (docs/capture.md, "Two captures of one VM"). The job of a tap ends
with the first write after its sink is gone; the job of an idle disk is still there.
F4: a target's node is removed only after its job has ended (docs/capture.md).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from everywhen.capture import answers, bitmaps
from everywhen.capture.nbd_server import is_used, withdraw
from everywhen.capture.nodes import OURS
from everywhen.capture.qmp import CommandFailed, Monitor
from everywhen.capture.reading import STAND_IN
from everywhen.capture.staying import STAY
from everywhen.capture.tap import ENDED

_END_S = 10.0


def clear(monitor: Monitor) -> None:
    """Remove all of ours but the bitmaps that record, and what guards them. Raises MonitorError, CommandFailed."""
    for job in answers.jobs(monitor):
        if job.name.startswith(OURS):
            _end(monitor, job.name)
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


def _end(monitor: Monitor, job: str) -> None:
    """End the job of a tap whose sink is gone. Its connection is yanked first: cancelling drains, which must not wait (F2)."""
    with suppress(CommandFailed):  # a storage daemon has no yank
        monitor.execute("yank", {"instances": [{"type": "block-node", "node-name": job}]})
    with suppress(CommandFailed):  # it has ended just now
        monitor.execute("block-job-cancel", {"device": job, "force": True})
    monitor.next_event(_END_S, lambda event: event.name in ENDED and event.data.get("device") == job)
