# SPDX-License-Identifier: AGPL-3.0-or-later
"""One disk's tap: attached, and watched for its end; `leftovers` takes it off.

F3: no `blockdev-add` before a handshake of our own has succeeded, and never without `open-timeout`. K5: a job that could end
by itself while a write is under way would take QEMU with it, so it is paused, which the forwarding of writes does not mind; and
until it is, no write of its can fail (docs/capture.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from time import monotonic

from everywhen.capture import answers, bitmaps
from everywhen.capture.nodes import OURS, DiskNode
from everywhen.capture.qmp import CommandFailed, Event, Monitor
from everywhen.capture.staying import let_go, stay
from everywhen.formats.fields import Json
from everywhen.nbd.connection import NbdConnection

_GRANULARITY = 4096
"""Bytes. With QEMU's default of 64 KiB sequential small writes are half as fast: 10,900 of them a second, not 23,200."""
_HANDSHAKE_S = 2.0
_OPEN_TIMEOUT_S = 2
"""Seconds that the whole guest stands still at most when the sink hangs between our handshake and QEMU's."""
_READY_S = 10.0
_PUSHED_AT_ONCE = 4 << 20
"""Bytes of a push that are under way. QEMU's default is 16 MiB, and a guest's write waits for those before it."""
_END_S, _LOOK_S, _LATE_S = 10.0, 0.05, 1.0
_MOST = 100
"""Events of one job: it becomes ready, fails, ends."""
READY = ("ready", "standby")
"""States of a job that forwards writes, and has nothing else to do; in the second one it is paused."""
TAP, SINK = f"{OURS}tap-", f"{OURS}sink-"
"""Begins of names: of a job and the node that it writes to; of the connection to the sink, on which that node stands."""
NOTHING = f"{OURS}nothing-"
"""Begin of the name of what takes a sink's place below a tap: a device that takes every write and holds none."""
ENDED = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
_REFUSED = "BLOCK_JOB_ERROR"


class TapFailed(Exception):
    """QEMU did not attach the tap. The message says why; `leftovers.clear` removes what there is of it."""


class TapEnded(TapFailed):
    """QEMU attached the tap, and it was lost before it stood: on a busy machine the watchdog may have taken the sink away."""


class Tap:
    """The tap of disk `number`; its node and job have names of ours."""

    def __init__(self, monitor: Monitor, disk: DiskNode, number: int) -> None:
        self._monitor = monitor
        self.disk = disk
        self.number = number
        self.name = f"{TAP}{number}"
        self.filter = f"{OURS}filter-{number}"
        """The node that the job lays on the disk's."""
        self.refused = False
        """Whether it is known that a write could not be sent."""

    def attach(self, socket_path: str) -> None:
        """Let QEMU send every write of the disk to the sink at `socket_path`. Raises TapFailed, NbdError, MonitorError."""
        self._connect(socket_path)
        try:
            # On a busy machine it takes a while until the job is paused. A write that fails before that would end it (K5).
            forward_to_nothing(self._monitor, self.name, self.disk.size)
            # With "report" the first write that cannot be sent is the last that QEMU tries to send.
            self._mirror({"sync": "none", "on-target-error": "report"})
            if not self.is_ready(_READY_S):
                raise TapFailed(f"{self.disk.device}: the job does not become ready")
            self._monitor.execute("block-job-pause", {"device": self.name})
            _forward(self._monitor, self.name, f"{SINK}{self.number}")
            self._monitor.execute("blockdev-del", {"node-name": f"{NOTHING}{self.number}"})
        except CommandFailed as error:
            kind = TapFailed if error.command == "blockdev-mirror" else TapEnded
            raise kind(f"{self.disk.device}: {error}") from error

    def push(self, socket_path: str, rate: int) -> None:
        """As `attach`, and let QEMU send what the disk holds, too, `rate` bytes a second: all was sent when `is_ready`.

        Meanwhile its guest cannot be migrated: `sent_all` ends that.
        """
        try:
            stay(self._monitor, Path(socket_path).parent)
        except CommandFailed as error:
            why = "must be sent by its tap, and QEMU does not keep its VM from moving meanwhile"
            raise TapFailed(f"{self.disk.device} {why}: {error}") from error
        self._connect(socket_path)
        # It cannot be paused, or nothing would be pushed: with "stop" it pauses where it would end otherwise (K5).
        how = {"sync": "full", "speed": rate, "buf-size": _PUSHED_AT_ONCE, "on-target-error": "stop"}
        try:
            self._mirror(how)
        except CommandFailed as error:
            raise TapFailed(f"{self.disk.device}: {error}") from error

    def is_ready(self, timeout: float) -> bool:
        """Wait so long until all that it has to send is sent; whether it is. Raises TapFailed, MonitorError."""
        event = self._monitor.next_event(timeout, lambda event: self._is_mine(event, "BLOCK_JOB_READY", _REFUSED, *ENDED))
        if event is not None and event.name != "BLOCK_JOB_READY":
            raise TapEnded(f"{self.disk.device}: {self._why(event)}")
        return event is not None

    def sent_all(self) -> None:
        """The push is over. Raises MonitorError, CommandFailed."""
        let_go(self._monitor)

    def sent(self) -> int:
        """Bytes of the disk that a push has dealt with. Raises MonitorError, CommandFailed."""
        return next((job.done for job in answers.jobs(self._monitor) if job.name == self.name), 0)

    def rest(self) -> None:
        """Push no more for now; what the guest writes is sent all the same. Raises TapFailed, MonitorError."""
        self._tell("block-job-pause")

    def go_on(self) -> None:
        """Push again. Raises TapFailed, MonitorError."""
        self._tell("block-job-resume")

    def _tell(self, command: str) -> None:
        try:
            self._monitor.execute(command, {"device": self.name})
        except CommandFailed as error:
            raise TapFailed(f"{self.disk.device}: {error}") from error

    def _connect(self, socket_path: str) -> None:
        """Have QEMU connect to the sink; what the job writes to stands on that."""
        NbdConnection(socket_path, "probe", timeout=_HANDSHAKE_S).close()
        target = {
            "driver": "nbd",
            "node-name": f"{SINK}{self.number}",
            "server": {"type": "unix", "path": socket_path},
            "export": f"disk-{self.number}",
            "open-timeout": _OPEN_TIMEOUT_S,
            "reconnect-delay": 0,
            "discard": "unmap",
            "detect-zeroes": "unmap",
        }
        # What stands on it can be changed while the job goes on.
        node = {"driver": "raw", "node-name": self.name, "file": f"{SINK}{self.number}", "discard": "unmap"}
        try:
            bitmaps.guard(self._monitor, self.disk.node)
            self._monitor.execute("blockdev-add", target)
            self._monitor.execute("blockdev-add", node)
        except CommandFailed as error:
            # We had a handshake just now: since then the watchdog, on a busy machine, has taken the sink away.
            kind = TapEnded if "Connection refused" in str(error) else TapFailed
            raise kind(f"{self.disk.device}: {error}") from error

    def _mirror(self, how: Json) -> None:
        """That the command succeeds means nothing: the job may have failed by then. Raises CommandFailed, MonitorError."""
        job = {
            "job-id": self.name,
            "device": self.disk.node,
            "target": self.name,
            "copy-mode": "write-blocking",
            "granularity": _GRANULARITY,
            "on-source-error": "stop",
            "filter-node-name": self.filter,
        }
        self._monitor.execute("blockdev-mirror", job | how)

    def ended(self, timeout: float) -> str | None:
        """Why the tap has ended, waiting so long for its end; None while it goes on."""
        event = self._monitor.next_event(timeout, lambda event: self._is_mine(event, _REFUSED, *ENDED))
        if event is None:
            return None
        self.refused = self.refused or event.name == _REFUSED
        return self._why(event)

    @staticmethod
    def _why(event: Event) -> str:
        if event.name != _REFUSED:
            return str(event.data.get("error", "it was cancelled"))
        return "it cannot be read" if event.data.get("operation") == "read" else "a write could not be sent"

    def _is_mine(self, event: Event, *names: str) -> bool:
        return event.name in names and event.data.get("device") == self.name


def all_stand(monitor: Monitor, taps: Iterable[Tap]) -> bool:
    """Whether each of these taps is forwarding writes now, and so has forwarded every one since it was attached.

    A job keeps a bitmap of what it has still to send: what could not be forwarded is in it before the guest is told that it
    is written. Raises MonitorError, CommandFailed.
    """
    ready = {job.name for job in answers.jobs(monitor) if job.status in READY}
    nodes = answers.block_nodes(monitor)

    def owes(tap: Tap) -> bool:
        if tap.disk.node not in nodes or tap.filter not in nodes:
            return True
        # QEMU 7.2 keeps it at the disk's node, 8.2 at the filter.
        kept = (*nodes[tap.disk.node].bitmaps, *nodes[tap.filter].bitmaps)
        # Another tool's backup has such a bitmap as well, in larger pieces: QEMU never copies by less than 64 KiB.
        return any(one.is_of_job and one.granularity == _GRANULARITY and one.count for one in kept)

    return all(tap.name in ready and not owes(tap) for tap in taps)


def forward_to_nothing(monitor: Monitor, tap: str, size: int) -> None:
    """Have a tap forward to a device that takes every write and holds none: then none is on its way to the sink any more.

    Raises MonitorError, CommandFailed.
    """
    nothing = NOTHING + tap.removeprefix(TAP)
    if nothing not in answers.block_nodes(monitor):
        monitor.execute("blockdev-add", {"driver": "null-co", "node-name": nothing, "size": size})
    _forward(monitor, tap, nothing)


def _forward(monitor: Monitor, tap: str, below: str) -> None:
    """Have a tap forward to another node. It drains."""
    monitor.execute("blockdev-reopen", {"options": [{"driver": "raw", "node-name": tap, "file": below, "discard": "unmap"}]})


def has_ended(monitor: Monitor, job: str) -> bool:
    """Wait until a job has ended, and what is told of it was heard: a later one has its name. Whether it has.

    Raises MonitorError, CommandFailed.
    """
    end, there, told = monotonic() + _END_S, True, False
    while not told and (now := monotonic()) < end:
        if there and all(job != one.name for one in answers.jobs(monitor)):
            there, end = False, min(end, now + _LATE_S)  # libvirt tells of events later than it answers
        event = monitor.next_event(_LOOK_S, lambda event: event.name in ENDED and event.data.get("device") == job)
        told = event is not None
    for _ in range(_MOST):
        if monitor.next_event(0, lambda event: event.data.get("device") == job) is None:
            break
    return told or not there
