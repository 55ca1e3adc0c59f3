# SPDX-License-Identifier: AGPL-3.0-or-later
"""Points of a guest that its own agent has frozen: what they hold, how long it stands still, and that it never stays frozen."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.captures import Capture
from tests.guest import needs_kernel
from tests.guest_agent import AgentGuest, needs_agent
from tests.guest_states import check, restored
from tests.hypervisor import eventually
from tests.program import Program

pytestmark = [needs_kernel, needs_agent]

_STILL_S = 3.0
"""So long the guest may stand still at most, on a machine that emulates it and has other work to do."""


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentGuest]:
    with AgentGuest(tmp_path_factory.mktemp("guest"), hook=True) as running:
        running.write()
        running.reach(20)
        yield running
        running.healthy()


@pytest.fixture
def guest(booted: AgentGuest) -> Iterator[AgentGuest]:
    """One guest for all tests: each leaves it thawed, and writing."""
    yield booted
    goes_on(booted)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path).init()


def goes_on(guest: AgentGuest) -> None:
    """It is not frozen: another record becomes safe."""
    guest.reach(len(guest.safe) + 3)


def capture(program: Program, guest: AgentGuest, asked: str, *more: str | Path) -> Capture:
    words = ["--pace", "0", "--seal-every", "1s", "--consistency", asked, "--agent", guest.agent, *more]
    return Capture(program, "web1", guest.qmp, *map(str, words))


def points(program: Program) -> list[dict[str, Any]]:
    """The newest first."""
    found: list[dict[str, Any]] = program.ok("points")
    return found


def replayed(image: Path) -> bool:
    """Whether the file system's journal must be replayed; it must be clean in any case once it is, or need not be."""
    shown = subprocess.run(["dumpe2fs", "-h", image], check=True, capture_output=True, text=True).stdout
    looked = subprocess.run(["e2fsck", "-fn", image], check=False, capture_output=True, text=True)
    needed = "needs_recovery" in shown
    assert needed or looked.returncode == 0, looked
    return needed


def test_a_frozen_guest_needs_no_replay(program: Program, guest: AgentGuest) -> None:
    began = len(guest.safe)
    with capture(program, guest, "filesystem") as running:
        eventually(lambda: running.said.count("filesystem-consistent") >= 4, "four points", 60)
        running.stop()
    made = [point["consistency"] for point in points(program)]
    assert made.count("filesystem") >= 4
    assert "crash" not in made[2:], "only those that are made at the end, in a hurry"
    last, *_ = points(program)
    frozen = [point for point in points(program) if point["consistency"] == "filesystem"]
    for point in frozen:
        images, time_ns = restored(program, f"web1@{point['id']}")
        assert [replayed(image) for image in images] == [False, False]
        assert check(images, time_ns, guest).replayed == 0
    images, _ = restored(program, f"web1@{last['id']}")
    assert [replayed(image) for image in images] == [True, True], "the guest was writing, or the test sees nothing"
    assert max(after - before for before, after in pairwise(guest.safe[began:])) < _STILL_S * 1e9
