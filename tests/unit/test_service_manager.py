# SPDX-License-Identifier: AGPL-3.0-or-later
"""What systemd is told, by a real datagram socket; and what it would say to the unit."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.interfaces.service_manager import ServiceManager

UNIT = Path(__file__).parents[2] / "packaging" / "everywhen-protect@.service"


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """What NOTIFY_SOCKET says, and systemd's end."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@everywhen-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address.replace("@", "\0", 1) if address[0] == "@" else address)
        listening.settimeout(5)
        yield address, listening


def test_it_is_told(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    told = ServiceManager.of({"NOTIFY_SOCKET": address})
    assert told.there
    told.tell(READY="1", STATUS="two\nlines\tare one ü")
    assert listening.recv(4096).decode() == "READY=1\nSTATUS=two lines are one ü"


def test_one_that_does_not_read_is_not_waited_for(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    told = ServiceManager.of({"NOTIFY_SOCKET": address})
    for _ in range(5000):
        told.tell(WATCHDOG="1", STATUS="x" * 200)
    listening.close()
    told.tell(WATCHDOG="1")


@pytest.mark.parametrize("env", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_nobody(env: dict[str, str]) -> None:
    told = ServiceManager.of(env)
    assert not told.there
    told.tell(READY="1")


def test_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "everywhen"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/everywhen", str(program)))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_says_what_the_program_does() -> None:
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    assert settings["Type"] == "notify"
    assert settings["ExecStart"].split()[1:] == ["protect", "%i", "$EVERYWHEN_PROTECT"]
    assert settings["EnvironmentFile"] == "/etc/everywhen/%i.env"
    assert settings["TimeoutStartSec"] == "infinity", "the first copy takes its time"
