# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is restored of a real guest under capture is a state of all its disks in which a power cut could have left it."""

from __future__ import annotations

from pathlib import Path

from tests.guest import Guest, needs_kernel
from tests.guest_capture import GuestCapture, identical, nanoseconds
from tests.guest_states import check
from tests.program import Program

pytestmark = needs_kernel


def test_every_point_is_a_state_of_its_time(tmp_path: Path) -> None:
    program = Program(tmp_path).init()
    with Guest(tmp_path) as guest:
        guest.write()
        guest.reach(50)
        with GuestCapture(program, guest, "--seal-every", "2s") as capture:
            capture.more_points(4)
            guest.poweroff()
            capture.stop()
            points = capture.points()
            oldest_first = [(point["id"], nanoseconds(point["time"])) for point in reversed(points)]
            states = [check(capture.restored(point), time_ns, guest) for point, time_ns in oldest_first]
            counts = [state.records for state in states]
            assert counts == sorted(counts)
            assert counts[0] >= 50
            assert counts[-1] == len(guest.safe) > counts[-2] > counts[0]
            # All but the last are of a guest that was running: there must have been something to replay.
            assert all(state.replayed == 2 for state in states[:-1])
            assert states[-1].replayed == 0
            identical(capture.restored(points[0]["id"]), guest)
        guest.healthy()
