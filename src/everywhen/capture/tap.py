# SPDX-License-Identifier: AGPL-3.0-or-later
"""One disk's tap: attached, watched for its end, taken off; in the only order in which that cannot freeze a guest.

F3: no `blockdev-add` before a handshake of our own has succeeded, and never without `open-timeout`. F2: a job command drains,
so a tap is taken off only while its sink answers. F4: `blockdev-del` only after the job has ended. (docs/capture.md)
"""

from __future__ import annotations

from everywhen.capture.nodes import OURS, DiskNode
from everywhen.capture.qmp import CommandFailed, Event, Monitor
from everywhen.nbd.connection import NbdConnection

_GRANULARITY = 4096
"""Bytes. With QEMU's default of 64 KiB sequential small writes are half as fast: 10,900 of them a second, not 23,200."""
_HANDSHAKE_S = 2.0
_OPEN_TIMEOUT_S = 5
_READY_S = 10.0
ENDED = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")


class TapFailed(Exception):
    """QEMU did not attach the tap; nothing of it is left. The message says why."""


class Tap:
    """The tap of disk `number`; its node and job have names of ours."""

    def __init__(self, monitor: Monitor, disk: DiskNode, number: int) -> None:
        self._monitor = monitor
        self.disk = disk
        self.number = number
        self.name = f"{OURS}tap-{number}"

    def attach(self, socket_path: str) -> None:
        """Let QEMU send every write of the disk to the sink at `socket_path`. Raises TapFailed, NbdError, MonitorError."""
        NbdConnection(socket_path, "probe", timeout=_HANDSHAKE_S).close()
        target = {
            "driver": "nbd",
            "node-name": self.name,
            "server": {"type": "unix", "path": socket_path},
            "export": f"disk-{self.number}",
            "open-timeout": _OPEN_TIMEOUT_S,
            "reconnect-delay": 0,
            "discard": "unmap",
            "detect-zeroes": "unmap",
        }
        job = {
            "job-id": self.name,
            "device": self.disk.node,
            "target": self.name,
            "sync": "none",
            "copy-mode": "write-blocking",
            "granularity": _GRANULARITY,
            "on-target-error": "report",
            "filter-node-name": f"{OURS}filter-{self.number}",
        }
        try:
            self._monitor.execute("blockdev-add", target)
        except CommandFailed as error:
            raise TapFailed(f"{self.disk.device}: {error}") from error
        try:
            self._monitor.execute("blockdev-mirror", job)
        except CommandFailed as error:
            self._monitor.execute("blockdev-del", {"node-name": self.name})
            raise TapFailed(f"{self.disk.device}: {error}") from error
        # That the command succeeded means nothing: the job may have failed by now.
        event = self._monitor.next_event(_READY_S, lambda event: self._is_mine(event, "BLOCK_JOB_READY", *ENDED))
        if event is None or event.name != "BLOCK_JOB_READY":
            why = "the job does not become ready" if event is None else str(event.data.get("error", "the job ended"))
            if event is not None:
                self.clear()
            raise TapFailed(f"{self.disk.device}: {why}")

    def ended(self, timeout: float) -> str | None:
        """Why the tap has ended, waiting so long for its end; None while it goes on."""
        event = self._monitor.next_event(timeout, lambda event: self._is_mine(event, *ENDED))
        return None if event is None else str(event.data.get("error", "it was cancelled"))

    def detach(self) -> None:
        """Take the tap off. Only while its sink answers: this drains. Raises CommandFailed, MonitorError."""
        self._monitor.execute("block-job-cancel", {"device": self.name, "force": True})
        self.ended(_READY_S)
        self.clear()

    def clear(self) -> None:
        """Remove the target's node, whose job has ended."""
        self._monitor.execute("blockdev-del", {"node-name": self.name})

    def _is_mine(self, event: Event, *names: str) -> bool:
        return event.name in names and event.data.get("device") == self.name


def attached(monitor: Monitor) -> set[str]:
    """Names of our taps whose jobs are forwarding writes now, and so have been since they were attached."""
    jobs = monitor.execute("query-block-jobs")
    return {str(job["device"]) for job in jobs if str(job["device"]).startswith(OURS) and job.get("status") == "ready"}
