# SPDX-License-Identifier: AGPL-3.0-or-later
"""The two processes that stand between a hypervisor and our files: the watchdog and the sink, started and ended together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from time import clock_gettime_ns, monotonic, monotonic_ns, sleep
from types import TracebackType
from typing import Self

from everywhen.capture.counters import (
    BEAT_NS,
    CLOSED,
    DURABLE,
    LET_GO,
    LETS_GO,
    ROLL,
    ROLLED,
    STATE,
    TAKEN,
    TAKEN_BYTES,
    WORK_BYTES,
    WRITTEN_BYTES,
    Counters,
)
from everywhen.capture.sink_process import SinkOrder

_END_S = 30.0
_SILENT_S = 1.0
_LET_GO_S = 2.0
"""The sink looks every 0.1 s."""


class Reception:
    """A running watchdog and sink; hypervisors connect to `socket_path`."""

    def __init__(self, socket_path: Path, order: SinkOrder) -> None:
        """Start both. Raises OSError; then neither is left."""
        self.socket_path = socket_path
        with ExitStack() as ours, ExitStack() as undo:
            self.counters = Counters.create()
            undo.callback(self.counters.close)
            socket_path.unlink(missing_ok=True)
            listening = ours.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listening.bind(str(socket_path))
            undo.callback(socket_path.unlink, missing_ok=True)
            listening.listen(8)
            # What only one of them holds closes when that one ends: so each sees the other's end.
            to_sink, to_watchdog = map(ours.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            self._parent, for_watchdog = socket.socketpair()
            undo.enter_context(self._parent)
            ours.enter_context(for_watchdog)
            page = self.counters.descriptor
            self.sink = _start("sink_process", [to_watchdog.fileno(), page], subprocess.PIPE)
            undo.callback(_kill, self.sink)
            if self.sink.stdin is not None:
                with self.sink.stdin:
                    self.sink.stdin.write(order.encode())
            pidfd = os.pidfd_open(self.sink.pid)
            ours.callback(os.close, pidfd)
            inherited = [listening.fileno(), to_sink.fileno(), pidfd, page, for_watchdog.fileno()]
            self.watchdog = _start("watchdog", inherited, subprocess.DEVNULL)
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether writes can be received."""
        return self.sink.poll() is None and self.watchdog.poll() is None

    @property
    def taken(self) -> int:
        """The sequence number after the last record that was received."""
        return self.counters.get(TAKEN)

    @property
    def durable(self) -> int:
        """The sequence number after the last record that is durable."""
        return self.counters.get(DURABLE)

    @property
    def taken_bytes(self) -> int:
        """Bytes of data that were received."""
        return self.counters.get(TAKEN_BYTES)

    @property
    def work_bytes(self) -> int:
        """Bytes that it takes to make a point of what was received: its data, and some for zeroes."""
        return self.counters.get(WORK_BYTES)

    @property
    def written_bytes(self) -> int:
        """Bytes of spool that were written for them."""
        return self.counters.get(WRITTEN_BYTES)

    @property
    def closed(self) -> int:
        """How many segments are closed: they are durable, and nothing will be added."""
        return self.counters.get(CLOSED)

    def roll(self) -> None:
        """Ask for the open segment to be closed; done when `rolled`."""
        self.counters.put(ROLL, self.counters.get(ROLL) + 1)

    @property
    def rolled(self) -> bool:
        """Whether every wish to close a segment was fulfilled."""
        return self.counters.get(ROLL) == self.counters.get(ROLLED)

    @property
    def silent_s(self) -> float:
        """For how long the sink has not looked at its sockets; it does ten times a second when it is well."""
        beat = self.counters.get(BEAT_NS)
        return (monotonic_ns() - beat) / 1e9 if beat else 0.0

    @property
    def state(self) -> int:
        """Why the sink lets go of its taps by itself (`counters.FINE`: it does not)."""
        return self.counters.get(STATE)

    @property
    def lets_go(self) -> bool:
        """Whether the sink has let go of its taps, for whatever reason: what it answered since is nowhere."""
        return self.counters.get(LETS_GO) != 0

    def processor_ns(self) -> dict[str, int]:
        """Nanoseconds of processor time that the sink, the watchdog and this process have had, by `<which>_ns`."""
        pids = {"sink_ns": self.sink.pid, "watchdog_ns": self.watchdog.pid, "protect_ns": os.getpid()}
        return {name: _processor_ns(pid) for name, pid in pids.items()}

    def let_go(self) -> bool:
        """Have the sink take nothing any more, and answer all the same; whether it does. The journal says that its taps are
        closed now: they can be taken off."""
        self.counters.put(LET_GO, 1)
        end = monotonic() + _LET_GO_S
        while self.alive and not self.lets_go:
            if monotonic() > end:
                return False
            sleep(0.005)
        return self.alive

    def close(self) -> None:
        """End both; what was received is durable then. Whoever is still connected is hung up on."""
        self._parent.close()
        if self.silent_s > _SILENT_S:
            # Guests' writes wait for it, and the watchdog, which holds a duplicate of each connection, did not take it away.
            _kill(self.sink)
            _kill(self.watchdog)
        for process in (self.watchdog, self.sink):
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                _kill(process)
        self.socket_path.unlink(missing_ok=True)
        self.counters.close()


def _start(module: str, descriptors: list[int], stdin: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"everywhen.capture.{module}", *map(str, descriptors)]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL, pass_fds=descriptors)


def _processor_ns(pid: int) -> int:
    """Of a process and all its threads; 0 when it has ended. The number of its clock is made as clock_getcpuclockid(3) does."""
    try:
        return clock_gettime_ns(~pid << 3 | 2)
    except OSError:
        return 0


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
