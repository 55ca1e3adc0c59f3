# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whatever becomes of capture, a real guest goes on; and whatever the guest does, capture keeps up with it (I-6)."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.captures import Capture, child
from tests.guest import Guest, needs_kernel
from tests.guest_states import check, inspect, restored
from tests.hypervisor import eventually
from tests.long_forms import in_soak
from tests.moments import rfc3339
from tests.program import Program, same

pytestmark = needs_kernel

_DRAINING = {"transaction", "block-job-cancel", "job-cancel", "block-job-complete", "stop", "blockdev-del", "quit"}
"""Monitor commands that wait for writes under way: while a sink hangs they freeze the whole guest."""
_LIMIT_S = 2.0
"""What a guest may wait for the end of a sink: 0.2 s is the watchdog's limit; the rest is for a busy machine."""
_HANGS_S = 2.0


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with Guest(tmp_path) as running:
        running.write()
        yield running
        running.healthy()


def worst_gap_s(times: list[int], since_ns: int, until_ns: int) -> float:
    """The longest time without one of these, in seconds."""
    inside = [since_ns, *(time_ns for time_ns in times if since_ns < time_ns < until_ns), until_ns]
    return max(later - earlier for earlier, later in pairwise(inside)) / 1e9


def captured(program: Program, guest: Guest, seal_every: str) -> Capture:
    """The guest under capture."""
    return Capture(program, "web1", guest.qmp, "--pace", "0", "--seal-every", seal_every)


def follows(capture: Capture, times: int) -> None:
    """Wait until every write is followed, after the taps were attached so many times."""

    def stands() -> bool:
        assert capture.process.poll() is None, capture.said
        return "recovery point p-" in "".join(capture.said.split("attached to")[times:])

    eventually(stands, f"it follows after {times} attachments", 60)


@contextmanager
def held_up(process: int) -> Iterator[None]:
    """A process that does not run while the body does."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@in_soak
def test_the_end_of_a_sink_costs_the_guest_a_moment(program: Program, guest: Guest) -> None:
    with captured(program, guest, "1s") as capture:
        follows(capture, 1)
        steps = [time.time_ns()]
        for times, (name, how) in enumerate((("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)), 1):
            began = time.time_ns()
            os.kill(capture.sink(), how)
            guest.reach(len(guest.safe) + 20)
            follows(capture, times + 1)
            steps += [began, time.time_ns()]
            worst = {
                "writes": worst_gap_s(guest.safe, began, guest.safe[-1]),
                "heartbeats": worst_gap_s(guest.beats, began, guest.beats[-1]),
            }
            print(f"sink {name}: worst gap in seconds between two {worst}")  # for pytest -rP
            assert max(worst.values()) < _LIMIT_S, (name, worst)
        guest.rest()
        capture.stop()
        assert capture.said.count("capture was lost") == 2
    # The guest churns on; what was safe when capture ended is in.
    assert inspect(restored(program, "web1@latest")[0]).records == len(guest.safe)
    chance = random.Random(7)
    for since_ns, until_ns in pairwise(steps):
        # While nothing was captured there is no moment: it is an earlier one, and that is said.
        asked_ns = chance.randrange(since_ns, until_ns)
        images, said_ns = restored(program, f"web1@{rfc3339(asked_ns)}")
        assert said_ns <= asked_ns
        check(images, said_ns, guest)


@in_soak
def test_while_a_sink_hangs_the_rest_of_the_guest_goes_on(program: Program, guest: Guest) -> None:
    """Also when that takes long, as the watchdog is held up: who writes to the disks waits, and no command of ours drains."""
    with captured(program, guest, "1h") as capture:
        follows(capture, 1)
        with held_up(child(capture.process.pid, "watchdog")):
            os.kill(capture.sink(), signal.SIGSTOP)
            began = time.time_ns()
            guest.wait(lambda: guest.beats[-1] > began + _HANGS_S * 1e9, "heartbeats while the sink hangs", 10)
            safe = len(guest.safe)
            assert guest.safe[-1] < began + 0.5e9, "the sink hangs, and writes are answered"
            commands = guest.commands(began, time.time_ns())
        guest.reach(safe + 1)
        assert worst_gap_s(guest.beats, began, guest.safe[safe]) < _LIMIT_S
        names = {json.loads(line.partition("req: ")[2])["execute"] for line in commands}
        assert not _DRAINING.intersection(names), commands
        follows(capture, 2)
        guest.rest()
        capture.stop()
    assert inspect(restored(program, "web1@latest")[0]).records == len(guest.safe)


@in_soak
def test_a_guest_that_boots_again_stays_captured(program: Program, guest: Guest) -> None:
    with captured(program, guest, "1s") as capture:
        follows(capture, 1)
        sink = capture.sink()
        guest.reboot()
        guest.write()
        guest.reach(len(guest.safe) + 50)
        assert capture.sink() == sink, "the taps outlive it"
        guest.poweroff()
        capture.stop()
    for image, disk in zip(restored(program, "web1@latest")[0], guest.images, strict=True):
        same(image, disk)
