# SPDX-License-Identifier: AGPL-3.0-or-later
"""How a VM ended, by the last that its QEMU tells: in order, so that disks and journal agree, or not."""

from __future__ import annotations

from contextlib import suppress

from everywhen.capture.qmp import Monitor, MonitorError

_FAREWELL_S = 1.0
_OF_AN_END = ("SHUTDOWN", "STOP", "RESET", "RESUME", "BLOCK_JOB_ERROR")


def shut_down(monitor: Monitor) -> bool:
    """Whether the last that QEMU tells is that it ends, and no tap refused a write.

    Where the guest stood still before that, it may have been migrated, and run on another host.
    """
    told = [""]
    with suppress(MonitorError):
        while (event := monitor.next_event(_FAREWELL_S, lambda one: one.name in _OF_AN_END)) is not None:
            told.append(event.name)
    last = told[-2:] if told[-1] != "STOP" else told[-3:-1]
    return last[-1] == "SHUTDOWN" and last[0] != "STOP" and "BLOCK_JOB_ERROR" not in told
