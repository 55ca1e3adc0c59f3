# SPDX-License-Identifier: AGPL-3.0-or-later
"""The two processes that stand between a hypervisor and our files: the watchdog and the sink, started and ended together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from everywhen.capture.counters import DURABLE, STATE, TAKEN, Counters
from everywhen.capture.sink_process import SinkOrder

_END_S = 30.0


class Reception:
    """A running watchdog and sink; hypervisors connect to `socket_path`."""

    def __init__(self, socket_path: Path, order: SinkOrder) -> None:
        """Start both. Raises OSError."""
        self.socket_path = socket_path
        self.counters = Counters.create()
        socket_path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(socket_path))
        listening.listen(8)
        to_sink, to_watchdog = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._parent, for_watchdog = socket.socketpair()
        page = self.counters.descriptor
        self.sink = _start("sink_process", [to_watchdog.fileno(), page], subprocess.PIPE)
        if self.sink.stdin is not None:
            with self.sink.stdin:
                self.sink.stdin.write(order.encode())
        pidfd = os.pidfd_open(self.sink.pid)
        inherited = [listening.fileno(), to_sink.fileno(), pidfd, page, for_watchdog.fileno()]
        self.watchdog = _start("watchdog", inherited, subprocess.DEVNULL)
        os.close(pidfd)
        # What only one of them holds closes when that one ends: so each sees the other's end.
        for ours in (listening, to_sink, to_watchdog, for_watchdog):
            ours.close()

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
    def state(self) -> int:
        """Why the sink lets go of its taps (`counters.FINE`: it does not)."""
        return self.counters.get(STATE)

    def close(self) -> None:
        """End both; what was received is durable then. Whoever is still connected is hung up on."""
        self._parent.close()
        for process in (self.watchdog, self.sink):
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        self.socket_path.unlink(missing_ok=True)
        self.counters.close()


def _start(module: str, descriptors: list[int], stdin: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"everywhen.capture.{module}", *map(str, descriptors)]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL, pass_fds=descriptors)
