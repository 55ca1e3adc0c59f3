# SPDX-License-Identifier: AGPL-3.0-or-later
"""Points of a guest that its own agent has frozen: what they hold, how long it stands still, and that it never stays frozen."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from everywhen.capture.agent_socket import AgentSocket
from tests.captures import Capture
from tests.guest import needs_kernel
from tests.guest_agent import HOOK, AgentGuest, needs_agent
from tests.guest_states import check, restored
from tests.hypervisor import eventually
from tests.long_forms import SOAK, in_soak
from tests.program import Program

pytestmark = [needs_kernel, needs_agent]

_KILLED_AFTER_S = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if SOAK else (0.02,)
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


@in_soak
def test_points_at_intervals_are_of_a_frozen_guest(program: Program, guest: AgentGuest) -> None:
    began = len(guest.safe)
    with capture(program, guest, "filesystem", "--interval", "2s") as running:
        eventually(lambda: running.said.count("filesystem-consistent") >= 3, "three points", 120)
        running.stop()
    made = points(program)
    assert [point["consistency"] for point in made].count("filesystem") >= 3, made
    for point in made:
        if point["consistency"] == "filesystem":
            images, time_ns = restored(program, f"web1@{point['id']}")
            assert [replayed(image) for image in images] == [False, False]
            assert check(images, time_ns, guest).replayed == 0
    assert program.ok("timeline", "web1")["every_write"] == []
    assert max(after - before for before, after in pairwise(guest.safe[began:])) < _STILL_S * 1e9


def marked(program: Program, running: Capture) -> dict[str, Any]:
    """A point made by hand, now."""
    running.ask({"wish": "mark", "text": "now"})
    return next(point for point in points(program) if point["mark"] == "now")


def test_hooks_make_it_application(program: Program, guest: AgentGuest, tmp_path: Path) -> None:
    hook, log = tmp_path / "hook", tmp_path / "log"
    hook.write_text(f'#!/bin/sh\necho "$1" >> {log}\n')
    hook.chmod(0o755)
    guest.put("/hook-log", "")
    with capture(program, guest, "application", "--seal-every", "1h", "--host-hook", hook) as running:
        running.followed()
        point = points(program)[0]
        assert (point["consistency"], point["why"]) == ("application", "host hook, guest hook (heard freeze)")
        eventually(lambda: log.read_text() == "freeze\nthaw\n", "the host's hook is told")
        running.stop()
    assert guest.content("/hook-log") == "freeze\nthaw\n"


@in_soak
@pytest.mark.parametrize("end", ["7", ""])
def test_a_hook_that_fails_leaves_what_was_reached(program: Program, guest: AgentGuest, end: str) -> None:
    if end:
        guest.put("/hook-ends", end)
    else:
        guest.run("/tool", "remove", f"/{HOOK}")
    with capture(program, guest, "application", "--seal-every", "1h") as running:
        running.followed()
        point = points(program)[0]
        running.stop()
    guest.put("/hook-ends", "0")
    why = "guest hook: it ended with 7: heard freeze" if end else "there is no guest hook, or the agent may not run it"
    assert (point["consistency"], point["why"]) == ("filesystem", why)


def test_ours_is_killed_while_the_guest_is_frozen(program: Program, guest: AgentGuest) -> None:
    """Again and again, at any instant of the freeze; it writes on, and the next run finds nothing frozen."""
    for delay in _KILLED_AFTER_S:
        with capture(program, guest, "filesystem") as running:
            running.followed()
            frozen = program.folder / "host" / "web1" / "frozen"
            eventually(frozen.exists, "it is about to be frozen", 60)
            time.sleep(delay)
            running.kill()
        began = time.monotonic()
        goes_on(guest)
        assert time.monotonic() - began < _STILL_S
        eventually(lambda frozen=frozen: not frozen.exists(), "it is known to be thawed")  # type: ignore[misc]
    assert guest.state() == "thawed"


@in_soak
def test_no_agent_is_no_reason_not_to_capture(program: Program, guest: AgentGuest) -> None:
    """The channel is there, and another program has it: as if nobody listened in the guest."""
    with AgentSocket(str(guest.agent)) as other:
        assert other.execute("guest-fsfreeze-status", timeout=10) == "thawed"
        with capture(program, guest, "filesystem", "--seal-every", "1h") as running:
            running.followed()
            point = points(program)[0]
            running.stop()
    assert point["consistency"] == "crash"
    assert "did not answer guest-fsfreeze-status within 5 s: it does not run" in point["why"]


@in_soak
def test_what_another_froze_stays_frozen(program: Program, guest: AgentGuest) -> None:
    guest.rest()
    assert guest.ask("guest-fsfreeze-freeze") == 2
    try:
        with capture(program, guest, "filesystem", "--seal-every", "1h") as running:
            running.followed()
            point = points(program)[0]
            running.stop()
        assert guest.state() == "frozen"
    finally:
        guest.ask("guest-fsfreeze-thaw")
        guest.write()
    assert (point["consistency"], point["why"]) == ("crash", "its file systems are frozen already, by somebody else")


@in_soak
def test_a_mark_is_of_a_frozen_guest_and_a_pause_is_not(program: Program, guest: AgentGuest) -> None:
    with capture(program, guest, "filesystem", "--seal-every", "1h") as running:
        running.followed()
        assert marked(program, running)["consistency"] == "filesystem"
        assert points(program)[0]["guest_clock_ahead_seconds"] is not None
        program.ok("pause", "web1", "--for", "1h")
        assert points(program)[0]["consistency"] == "crash"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--consistency", "none"], "there are crash, filesystem, application"),
        (["--consistency", "filesystem"], "needs the guest's agent"),
        (["--consistency", "filesystem", "--agent", "a", "--host-hook", "/bin/true"], "goes with --consistency application"),
        (["--consistency", "application", "--agent", "a", "--host-hook", "/nothing"], "no such program"),
    ],
)
def test_what_cannot_be_meant(program: Program, words: list[str], said: str) -> None:
    done = program.run("protect", "web1", "--qmp", "q", *words, "--json")
    assert done.code in (2, 6)
    assert said in done.error["what"]


@in_soak
def test_nobody_has_said_where_the_agent_is(program: Program, guest: AgentGuest) -> None:
    with Capture(program, "web1", guest.qmp, "--pace", "0") as running:
        running.followed()
        done = program.run("pause", "web1", "--trim", "--json")
        assert done.code == 2
        assert "Nobody has said where the agent" in done.error["what"]
        assert running.state() == "following"
