# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest that does nothing by itself, and whose file systems write when they are frozen and thawed, as ext4's do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent_double import GuestDouble, answer, listening
from tests.captures import Capture
from tests.hypervisor import Hypervisor
from tests.long_forms import in_soak
from tests.program import Program

MIB = 1 << 20


class Idle(GuestDouble):
    """Its freeze and its thaw write a little."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        super().__init__()
        self.writes = 0
        self._hypervisor = hypervisor

    def __call__(self, name: str, arguments: dict[str, Any]) -> bytes:
        if name in ("guest-fsfreeze-freeze", "guest-fsfreeze-thaw"):
            self.writes += 1
            self._hypervisor.write(0, 4096, 512, self.writes % 255)
        return super().__call__(name, arguments)


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path, [MIB]) as running:
        yield running


@pytest.fixture
def guest(tmp_path: Path, hypervisor: Hypervisor) -> Iterator[Idle]:
    double = Idle(hypervisor)
    with listening(tmp_path / "agent", double):
        yield double


@in_soak
def test_a_thaw_is_no_reason_for_another_point(tmp_path: Path, hypervisor: Hypervisor, guest: Idle) -> None:
    program = Program(tmp_path).init()
    options = ["--pace", "0", "--seal-every", "1s", "--consistency", "filesystem", "--agent", str(tmp_path / "agent")]
    with Capture(program, "web1", hypervisor.qmp, *options) as capture:
        capture.followed()
        time.sleep(3.5)  # so long nothing happens, which is all that there is to see
        assert capture.said.count("filesystem-consistent") == 1
        assert guest.asked.count("guest-fsfreeze-freeze") == 1
        hypervisor.write(0, 8192, 512, 7)
        capture.says("filesystem-consistent")
        end = capture.said.count(" writes")
        capture.stop()
        assert capture.said.count(" writes") == end + 1, "at the end everything is in a point"
    program.restore("web1/vd0", tmp_path / "back.raw")
    assert (tmp_path / "back.raw").read_bytes() == hypervisor.content(0)


def test_a_freeze_that_did_not_last_is_not_claimed(tmp_path: Path, hypervisor: Hypervisor, guest: Idle) -> None:
    """Somebody else thaws one of the file systems before the mark is made."""
    guest.changed["guest-fsfreeze-thaw"] = lambda *_: answer(1)
    program = Program(tmp_path).init()
    options = ["--pace", "0", "--consistency", "filesystem", "--agent", str(tmp_path / "agent")]
    with Capture(program, "web1", hypervisor.qmp, *options) as capture:
        capture.followed()
        point = program.ok("points")[0]
    assert (point["consistency"], point["why"]) == ("crash", "of 2 file systems 1 were still frozen at the end")


def test_a_guest_that_stays_frozen_is_told_of(tmp_path: Path, hypervisor: Hypervisor, guest: Idle) -> None:
    guest.changed["guest-fsfreeze-thaw"] = lambda *_: b"garbage\n"
    program = Program(tmp_path).init()
    options = ["--pace", "0", "--seal-every", "1h", "--consistency", "filesystem", "--agent", str(tmp_path / "agent")]
    with Capture(program, "web1", hypervisor.qmp, *options) as capture:
        capture.followed()
        assert "MAY STILL BE FROZEN (the guest's agent cannot be used" in capture.said
        asked = guest.asked.count("guest-fsfreeze-freeze")
        capture.ask({"wish": "mark", "text": "frozen"})
        point = program.ok("points")[0]
        assert (point["consistency"], point["why"]) == ("crash", "the freeze before this one has not ended yet")
        assert guest.asked.count("guest-fsfreeze-freeze") == asked
        guest.changed.clear()
        assert guest.thawed.wait(20)
