# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is restored of a real guest under capture is a state of all its disks in which a power cut could have left it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.captures import Capture
from tests.ext_journals import differences, mended, replayed, whole
from tests.guest import Guest, needs_kernel
from tests.guest_states import check, restored
from tests.hypervisor import eventually
from tests.long_forms import SOAK, in_soak
from tests.moments import rfc3339
from tests.program import Program

pytestmark = needs_kernel

_INSTANTS, _RECORDS = (50, 5000) if SOAK else (8, 500)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with Guest(tmp_path) as running:
        running.write()
        running.reach(50)
        yield running
        running.healthy()


@in_soak
def test_every_point_is_a_state_of_its_time(program: Program, guest: Guest) -> None:
    with Capture(program, "web1", guest.qmp, "--pace", "0", "--seal-every", "1s") as capture:
        eventually(lambda: capture.said.count("recovery point p-") >= 4, "four points", 60)
        guest.kill()  # the cut of power that all of this is about
        end = time.time_ns()
        capture.stop()
    points = [f"web1@{point['id']}" for point in reversed(program.ok("points"))]
    states = [check(*restored(program, point), guest) for point in points]
    counts = [state.records for state in states]
    assert counts == sorted(counts)
    assert 50 <= counts[0] < counts[-2] < counts[-1]
    assert all(state.replayed == 2 for state in states), "the guest was running, and there was nothing to replay"
    images, _ = restored(program, "web1@latest")
    check(images, end, guest)  # what was safe last is in


def test_every_instant_is_a_state_of_its_time(program: Program, guest: Guest) -> None:
    """Between points and at them, while the guest runs and afterwards, by time and by number of writes."""
    chance = random.Random(5)
    with Capture(program, "web1", guest.qmp, "--pace", "0", "--seal-every", "4s") as capture:
        capture.followed()
        _, begin = restored(program, "web1@latest")
        before = len(guest.safe)
        for number in range(_INSTANTS // 2):
            guest.reach(before + (number + 1) * 2 * _RECORDS // _INSTANTS)
            now = time.time_ns()
            at_an_instant(program, guest, chance.randrange(begin, now) if number % 2 else now)
        guest.rest()
        end = time.time_ns()
        capture.stop()
    for _ in range(_INSTANTS // 2):
        at_an_instant(program, guest, chance.randrange(begin, end))
    for _ in range(_INSTANTS // 4):
        images, time_ns = restored(program, f"web1@latest~{chance.randrange(1, 2 * _RECORDS)}")
        replayed_as_by_e2fsck(images)
        check(images, time_ns, guest)


def replayed_as_by_e2fsck(images: list[Path]) -> None:
    """Our replay of the file systems' journals, which writes nothing, shows what e2fsck writes."""
    for image in images:
        said, theirs = mended(image)
        if "orphan" not in said:  # e2fsck has done more than replay
            assert differences(whole(replayed(image)), theirs) == []


def at_an_instant(program: Program, guest: Guest, time_ns: int) -> None:
    """What is restored of it is right for that instant, and for the time of the newest write that it is said to have."""
    images, said_ns = restored(program, f"web1@{rfc3339(time_ns)}")
    assert said_ns <= time_ns
    check(images, time_ns, guest)
    check(images, said_ns, guest)
