# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a capture tells QEMU, and in which order: all of it recorded, through losses of every kind, and held against the rules
that keep a guest alive (docs/capture.md, "What must be impossible")."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.monitor_proxy import MonitorProxy, Rules
from tests.program import Program

MIB = 1 << 20


def test_all_that_is_told_to_qemu(tmp_path: Path) -> None:
    """Losses: a killed sink; a hung one with a write in flight; a killed capture; and ends in order in between."""
    program = Program(tmp_path).init()
    with Hypervisor(tmp_path, [4 * MIB, 2 * MIB]) as running, MonitorProxy(tmp_path / "proxy", running.qmp) as proxy:
        with Capture(program, "web1", proxy.path, "--seal-every", "1s", "--pace", "0") as capture:
            capture.followed()
            running.write(0, 0, 65536, 1)
            points = _points(capture)
            os.kill(capture.sink(), signal.SIGKILL)
            running.write(1, MIB, 65536, 2)
            eventually(lambda: _points(capture) > points, "capture begins again by itself")
            points = _points(capture)
            os.kill(capture.sink(), signal.SIGSTOP)
            running.io(0, f"aio_write -P 3 {MIB} 65536")
            eventually(lambda: _points(capture) > points, "capture begins again by itself")
            running.write(1, 0, 4096, 4)
            capture.stop()
        with Capture(program, "web1", proxy.path, "--pace", "0") as capture:
            capture.followed()
            capture.kill()
        with Capture(program, "web1", proxy.path, "--pace", "0") as capture:
            capture.followed()
            capture.stop()
        assert running.write_errors(0) == running.write_errors(1) == 0
        log = proxy.log
    assert Rules().broken(log) == []
    told = {message.name for message in log if message.kind == "command"}
    assert told >= {"blockdev-add", "blockdev-mirror", "blockdev-del", "yank", "block-job-cancel", "transaction"}
    assert told >= {"nbd-server-start", "block-export-add", "nbd-server-stop"}
    actions = [action["type"] for message in log if message.name == "transaction" for action in message.data.get("actions", [])]
    assert "block-dirty-bitmap-merge" in actions, "a gap was read by its bitmap"


def test_a_disk_with_an_iothread(tmp_path: Path) -> None:
    program = Program(tmp_path).init()
    with (
        Hypervisor(tmp_path, [MIB], iothread=True) as running,
        MonitorProxy(tmp_path / "proxy", running.qmp) as proxy,
    ):
        done = program.run("protect", "web1", "--qmp", proxy.path)
        assert (done.code, "iothread" in done.err) == (1, True), done
        assert running.process.poll() is None
        log = proxy.log
    assert Rules(frozenset(["node0"])).broken(log) == []
    assert len(log) > 3


def test_a_storage_daemon_with_an_iothread(tmp_path: Path) -> None:
    """It does not tell which disk that serves; QEMU 7.2's daemon aborts as QEMU does when a client of such an export leaves."""
    (tmp_path / "disk.raw").write_bytes(bytes(MIB))
    command = ["qemu-storage-daemon", "--object", "iothread,id=io0"]
    command += ["--chardev", f"socket,id=qmp,path={tmp_path}/qmp.sock,server=on,wait=off", "--monitor", "chardev=qmp"]
    command += ["--blockdev", f"driver=file,node-name=node0,filename={tmp_path}/disk.raw"]
    export = f"type=vhost-user-blk,id=disk,node-name=node0,writable=on,iothread=io0,addr.type=unix,addr.path={tmp_path}/user"
    daemon = subprocess.Popen([*command, "--export", export])
    try:
        eventually((tmp_path / "qmp.sock").exists, "the daemon is there")
        with MonitorProxy(tmp_path / "proxy", tmp_path / "qmp.sock") as proxy:
            done = Program(tmp_path).init().run("protect", "web1", "--qmp", proxy.path)
            log = proxy.log
        assert (done.code, "iothread" in done.err) == (1, True), done
        assert Rules(frozenset(["node0"])).broken(log) == []
        assert daemon.poll() is None
    finally:
        daemon.kill()
        daemon.wait()


def _points(capture: Capture) -> int:
    return capture.said.count("recovery point p-")
