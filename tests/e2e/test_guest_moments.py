# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is restored of a real guest under capture is a state of all its disks in which a power cut could have left it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from tests.captures import Capture
from tests.guest import Guest, needs_kernel
from tests.guest_states import check, restored
from tests.hypervisor import eventually
from tests.program import Program, same

pytestmark = needs_kernel


def nanoseconds(time: str) -> int:
    """A time as the program writes it, in ns since 1970."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


def test_every_point_is_a_state_of_its_time(tmp_path: Path) -> None:
    program = Program(tmp_path).init()
    with Guest(tmp_path) as guest:
        guest.write()
        guest.reach(50)
        with Capture(program, "web1", guest.qmp, "--pace", "0", "--seal-every", "1s") as capture:
            eventually(lambda: capture.said.count("recovery point p-") >= 5, "five points", 60)
            guest.poweroff()
            capture.stop()
        points = list(reversed(program.ok("points")))
        states = [check(restored(program, f"web1@{point['id']}"), nanoseconds(point["time"]), guest) for point in points]
        counts = [state.records for state in states]
        assert counts == sorted(counts)
        assert 50 <= counts[0] < counts[-2] < counts[-1] == len(guest.safe)
        # All but the last are of a guest that was running: there must have been something to replay.
        assert [state.replayed for state in states] == [2] * (len(states) - 1) + [0]
        for image, disk in zip(restored(program, "web1@latest"), guest.images, strict=True):
            same(image, disk)
        guest.healthy()
