# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a capture tells QEMU, and in which order: all of it recorded, through losses of every kind, and held against the rules
that keep a guest alive (docs/capture.md, "What must be impossible")."""

from __future__ import annotations

import os
import signal
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


def _points(capture: Capture) -> int:
    return capture.said.count("recovery point p-")
