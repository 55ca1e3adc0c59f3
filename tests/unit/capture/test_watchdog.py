# SPDX-License-Identifier: AGPL-3.0-or-later
"""The watchdog's hold on connections: each is passed on, let go of when it was hung up, and all are when it ends."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from everywhen.capture.counters import Counters
from everywhen.capture.watchdog import Watchdog


@dataclass
class Watched:
    """A watchdog in a thread; the test is the parent, the sink's end of the socket, and the hypervisor."""

    path: Path
    passed_on: socket.socket
    parent: socket.socket
    ended: threading.Event

    def connected(self) -> tuple[socket.socket, socket.socket, int]:
        """The hypervisor's end of a new connection, the sink's, and its number."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(self.path))
        number, descriptors, *_ = socket.recv_fds(self.passed_on, 1, 1)
        return client, socket.socket(fileno=descriptors[0]), number[0]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    counters, ended = Counters.create(), threading.Event()
    to_sink, passed_on = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine, its = socket.socketpair()
    passed_on.settimeout(20)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening, subprocess.Popen(["sleep", "600"]) as sink:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        pidfd = os.pidfd_open(sink.pid)
        watchdog = Watchdog(listening, to_sink, pidfd, counters)

        def run() -> None:
            watchdog.run(its)
            ended.set()

        thread = threading.Thread(target=run)
        thread.start()
        yield Watched(tmp_path / "socket", passed_on, mine, ended)
        mine.close()
        thread.join(20)
        sink.kill()
        os.close(pidfd)
    for one in (to_sink, passed_on, its, *(held for held, _ in watchdog._held.values())):
        one.close()
    counters.close()


def test_who_hung_up_is_let_go_of(watched: Watched) -> None:
    client, sink, number = watched.connected()
    other, sink_of_other, second = watched.connected()
    assert (number, second) == (0, 1)
    client.close()
    sink.close()
    # Its number is given to somebody else as soon as that was seen: at once, or at the next connection but one.
    held = [watched.connected() for _ in range(3)]
    assert number in {again for *_, again in held}
    assert second not in {again for *_, again in held}
    for one, its, _ in [*held, (other, sink_of_other, second)]:
        one.close()
        its.close()


def test_all_are_hung_up_on_when_the_parent_ends(watched: Watched) -> None:
    client, sink, _ = watched.connected()
    client.settimeout(20)
    watched.parent.close()
    assert client.recv(1) == b""
    assert watched.ended.wait(20)
    client.close()
    sink.close()
