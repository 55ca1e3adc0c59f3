# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the guest gives back while its disks are captured: lost at first, and given back in a pause (docs/trim.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.captures import Capture
from tests.guest import needs_kernel
from tests.guest_agent import AgentGuest, needs_agent
from tests.guest_states import check, restored
from tests.hypervisor import eventually
from tests.long_forms import in_soak
from tests.program import Program

pytestmark = [needs_kernel, needs_agent]

_FILE = 10 << 20
_SLACK = 3 << 20
"""What else the guest writes meanwhile may take so much."""


@pytest.fixture(params=["raw", pytest.param("qcow2", marks=in_soak)])
def guest(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[AgentGuest]:
    with AgentGuest(tmp_path, image_format=request.param) as running:
        running.write()
        running.reach(10)
        yield running
        running.healthy()


def allocated(guest: AgentGuest) -> int:
    """Bytes that the second disk's image takes on the host."""
    return guest.images[1].stat().st_blocks * 512


def newest(program: Program) -> dict[str, Any]:
    found: dict[str, Any] = program.ok("points", "web1", "--limit", "1")[0]
    return found


def test_a_pause_gives_back_what_capture_kept(program: Program, guest: AgentGuest) -> None:
    options = ["--pace", "0", "--seal-every", "1h", "--agent", str(guest.agent)]
    with Capture(program, "web1", guest.qmp, *options) as running:
        running.followed()
        empty = allocated(guest)
        guest.run("/tool", "fill", "/b/file", str(_FILE))
        running.ask({"wish": "mark", "text": "full"})
        full = allocated(guest)
        guest.run("/tool", "remove", "/b/file")
        guest.ask("guest-fstrim")
        kept = allocated(guest)
        assert kept > full - (1 << 20) > empty + _FILE - _SLACK, "a trim under a tap gives nothing back"
        done = program.ok("pause", "web1", "--trim")
        assert done["trimmed"]["/b"] > _FILE - _SLACK
        assert done["not_trimmed"] == {}
        assert allocated(guest) < empty + _SLACK
        running.reaches("following")
        eventually(lambda: newest(program)["mark"] is None, "the gap is closed")
        point = newest(program)
        assert sum(disk["bytes_stored"] for disk in point["disks"].values()) < 1 << 20, "zeroes cost nothing"
        guest.rest()
        end = guest.safe[-1]
        running.stop()
    images, time_ns = restored(program, "web1@latest")
    assert time_ns >= end
    assert images[1].stat().st_blocks * 512 < empty + _SLACK
    check(images, time_ns, guest)
