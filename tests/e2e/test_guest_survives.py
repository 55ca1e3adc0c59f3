# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whatever becomes of capture, a real guest goes on; and whatever the guest does, capture keeps up with it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.guest import Guest, needs_kernel
from tests.guest_capture import GuestCapture, identical
from tests.guest_states import inspect
from tests.program import Program

pytestmark = needs_kernel

_DRAINING = {"transaction", "block-job-cancel", "job-cancel", "block-job-complete", "stop", "blockdev-del", "quit"}
"""Monitor commands that wait for writes under way: while a sink hangs they freeze the whole guest."""
_LIMIT_S = 2.0
"""What a guest may wait for the end of a sink: 0.2 s is the watchdog's limit; the rest is for a busy machine."""
_HANGS_S = 2.0


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path).init()


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


def test_the_end_of_a_sink_costs_the_guest_a_moment(program: Program, guest: Guest) -> None:
    with GuestCapture(program, guest, "--seal-every", "1s") as capture:
        for name, how in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
            sink = capture.process_of("sink_process")
            began = time.time_ns()
            os.kill(sink, how)
            guest.reach(len(guest.safe) + 20)
            capture.begun_again(sink)
            worst = {
                "writes": worst_gap_s(guest.safe, began, guest.safe[-1]),
                "heartbeats": worst_gap_s(guest.beats, began, guest.beats[-1]),
            }
            print(f"sink {name}: worst gap in seconds between two {worst}")  # for pytest -rP
            assert max(worst.values()) < _LIMIT_S, (name, worst)
        guest.rest()
        done = capture.stop()
        assert done.err.count("capture was lost") == 2
        # The guest churns on; what was safe when capture ended is in.
        assert inspect(capture.restored("latest")).records == len(guest.safe)


def test_while_a_sink_hangs_the_rest_of_the_guest_goes_on(program: Program, guest: Guest) -> None:
    """Also when that takes long, as the watchdog is held up: who writes to the disks waits, and no command of ours drains."""
    with GuestCapture(program, guest, "--seal-every", "1h") as capture:
        watchdog = capture.process_of("watchdog")
        os.kill(watchdog, signal.SIGSTOP)
        sink = capture.process_of("sink_process")
        os.kill(sink, signal.SIGSTOP)
        began = time.time_ns()
        guest.wait(lambda: guest.beats[-1] > began + _HANGS_S * 1e9, "heartbeats while the sink hangs")
        safe = len(guest.safe)
        assert guest.safe[-1] < began + 0.5e9, "the sink hangs, and writes are answered"
        os.kill(watchdog, signal.SIGCONT)
        guest.reach(safe + 1)
        released = guest.safe[safe]
        assert worst_gap_s(guest.beats, began, released) < 1
        commands = [json.loads(line.partition("req: ")[2])["execute"] for line in guest.commands(began, released)]
        assert not _DRAINING.intersection(commands), commands
        capture.begun_again(sink)
        guest.rest()
        capture.stop()
        assert inspect(capture.restored("latest")).records == len(guest.safe)


def test_a_guest_that_boots_again_stays_captured(program: Program, guest: Guest) -> None:
    with GuestCapture(program, guest, "--seal-every", "1s") as capture:
        sink = capture.process_of("sink_process")
        guest.reboot()
        guest.write()
        guest.reach(len(guest.safe) + 50)
        assert capture.process_of("sink_process") == sink, "the taps outlive it"
        guest.poweroff()
        capture.stop()
        identical(capture.restored("latest"), guest)
