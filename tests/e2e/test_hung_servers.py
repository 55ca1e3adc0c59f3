# SPDX-License-Identifier: AGPL-3.0-or-later
"""What QEMU waits for when a sink hangs at the worst moment, and that it ends: I-6, F2 and F3 (docs/capture.md)."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from everywhen.capture import bitmaps, leftovers
from everywhen.capture.nodes import find_disks
from everywhen.capture.qmp import QmpMonitor
from everywhen.capture.tap import Tap, TapFailed
from everywhen.formats.ids import PointId
from everywhen.nbd.connection import NbdError
from everywhen.nbd.exports import Export, FixedExports
from everywhen.nbd.server import ServerSession
from tests.hypervisor import Hypervisor, eventually
from tests.receptions import reception

MIB = 1 << 20
POINT = PointId("p-0123456789ab")


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path, [MIB, MIB]) as running:
        yield running


class Watched(QmpMonitor):
    """A monitor that remembers what it was told."""

    told: list[str]

    def execute(self, name: str, arguments: Any = None, *, timeout: float | None = None) -> Any:
        if not hasattr(self, "told"):
            self.told = []
        self.told.append(name)
        return super().execute(name, arguments, timeout=timeout)


@contextmanager
def server(path: Path, handshakes: int) -> Iterator[None]:
    """An NBD server that finishes so many handshakes, and hangs in all others: it accepts, and says nothing."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        kept: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):  # the test is over
                for number in range(100):
                    connection, _ = listening.accept()
                    kept.append(connection)
                    if number < handshakes:
                        _serve(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            for connection in kept:
                connection.close()
            thread.join()


def _serve(connection: socket.socket) -> None:
    session = ServerSession(FixedExports({name: Export(MIB, 0) for name in ("probe", "disk-0")}))
    connection.sendall(session.take_output())
    while data := connection.recv(1 << 16):
        session.receive(data)
        connection.sendall(session.take_output())


def test_qemu_is_not_sent_to_a_server_that_does_not_finish_its_handshake(hypervisor: Hypervisor, tmp_path: Path) -> None:
    with server(tmp_path / "sink", 0), Watched.connect(str(hypervisor.qmp)) as monitor:
        disk = find_disks(monitor)[0]
        with pytest.raises(NbdError):
            Tap(monitor, disk, 0).attach(str(tmp_path / "sink"))
        assert isinstance(monitor, Watched)
        assert "blockdev-add" not in monitor.told
    assert hypervisor.ours() == set()


def test_a_server_that_hangs_after_our_handshake_holds_qemu_for_the_open_timeout(
    hypervisor: Hypervisor, tmp_path: Path
) -> None:
    """The guest stands still meanwhile: this is the one stall that has to be waited for."""
    with server(tmp_path / "sink", 1), QmpMonitor.connect(str(hypervisor.qmp)) as monitor:
        disks = find_disks(monitor)
        began = time.monotonic()
        with pytest.raises(TapFailed, match="vd0"):
            Tap(monitor, disks[0], 0).attach(str(tmp_path / "sink"))
        blocked = time.monotonic() - began
        monitor.execute("query-block", timeout=1.0)
        leftovers.clear(monitor, answered=False)
    # `open-timeout` is 2 s; the rest is for a busy machine.
    assert blocked < 5
    assert hypervisor.ours() == set()
    hypervisor.write(0, 0, 4096, 1)
    assert hypervisor.write_errors(0) == 0


def test_new_bitmaps_under_a_hung_sink_wait_for_the_watchdog_at_most(hypervisor: Hypervisor, tmp_path: Path) -> None:
    """They drain, so they wait for the write in flight; the guest's other disk and the monitor stand still as long."""
    with QmpMonitor.connect(str(hypervisor.qmp)) as monitor:
        disks = find_disks(monitor)
        with reception(tmp_path, [MIB, MIB]) as running:
            for number, disk in enumerate(disks):
                Tap(monitor, disk, number).attach(str(running.socket_path))
            hypervisor.write(0, 0, 65536, 1)
            before = hypervisor.writes_answered(0)
            os.kill(running.sink.pid, signal.SIGSTOP)
            hypervisor.io(0, "aio_write -P 7 65536 65536")
            began = time.monotonic()
            bitmaps.begin(monitor, {disk.node: disk.device for disk in disks}, POINT)
            blocked = time.monotonic() - began
            eventually(lambda: not running.alive, "the sink was taken away")
        # 200 ms is the watchdog's limit, 20 ms its step; the rest is for a busy machine.
        assert blocked < 2
        hypervisor.write(1, 0, 4096, 2)
        eventually(lambda: hypervisor.writes_answered(0) > before, "the write is answered")
        assert hypervisor.write_errors(0) == hypervisor.write_errors(1) == 0
        leftovers.clear(monitor, answered=False)
    assert hypervisor.ours() == {f"everywhen-{POINT}-vd{number}" for number in range(2)}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_backup_job_in_a_taps_place_fails_a_write_of_the_guest(
    hypervisor: Hypervisor, tmp_path: Path, number: signal.Signals
) -> None:
    """Why points at intervals are made by taps (docs/decisions/0006). Should this fail, QEMU does not do that any more."""
    with reception(tmp_path, [MIB, MIB]) as running:
        server = {"type": "unix", "path": str(running.socket_path)}
        target = {"driver": "nbd", "node-name": "everywhen-tap-0", "server": server, "export": "disk-0"}
        hypervisor.monitor.execute("blockdev-add", target)
        # So slow that the job itself does not notice before the guest does.
        job = {"job-id": "everywhen-tap-0", "device": "node0", "target": "everywhen-tap-0", "sync": "full", "speed": 1}
        hypervisor.monitor.execute("blockdev-backup", job | {"x-perf": {"max-workers": 1}})
        hypervisor.write(0, MIB - 65536, 65536, 1)
        assert hypervisor.write_errors(0) == 0
        os.kill(running.sink.pid, number)
        hypervisor.io(0, "aio_write -P 7 524288 65536")
        eventually(lambda: hypervisor.write_errors(0) == 1, "the guest's write fails")
        eventually(lambda: not running.alive, "the sink was taken away")
    leftovers.clear(hypervisor.monitor, answered=False)
