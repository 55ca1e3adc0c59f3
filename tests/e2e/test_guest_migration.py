# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real guest that writes all the time is migrated from under its taps to another QEMU of this host."""

from __future__ import annotations

from pathlib import Path

from tests.captures import Capture
from tests.guest import Guest, needs_kernel
from tests.guest_states import inspect, restored
from tests.long_forms import in_soak
from tests.program import Program, same

pytestmark = [needs_kernel, in_soak]


def test_it_goes_on_and_so_does_capture_where_it_is(tmp_path: Path) -> None:
    program = Program(tmp_path).init()
    with Guest(tmp_path) as guest:
        guest.write()
        with Capture(program, "web1", guest.qmp, "--pace", "0", "--seal-every", "1h").followed() as capture:
            guest.reach(50)
            guest.migrate(tmp_path / "there")
            before = len(guest.safe)
            guest.write()
            guest.reach(before + 50)
            capture.reaches("off")
            capture.stop()
        assert "capture was lost" in capture.said
        # It churned while it moved: what was safe before is in, and not what it wrote where nobody captured.
        assert inspect(restored(program, "web1@latest")[0]).records == before
        first = program.ok("points", "web1")
        with Capture(program, "web1", guest.qmp, "--pace", "0", "--seal-every", "1h").followed() as capture:
            guest.reach(len(guest.safe) + 50)
            guest.poweroff()
            capture.reaches("off")
            capture.stop()
        guest.healthy()
    images, _ = restored(program, "web1@latest")
    for image, disk in zip(images, guest.images, strict=True):
        same(image, disk)
    assert inspect(images).records == len(guest.safe)
    bridge = program.ok("points", "web1")[-len(first) - 1]
    assert all(disk["bytes_changed"] < disk["size"] / 2 for disk in bridge["disks"].values()), bridge
