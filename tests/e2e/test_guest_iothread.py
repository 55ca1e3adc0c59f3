# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real guest whose disks an iothread serves: read beside QEMU, pushed, and captured through kills and a reboot.

QEMU moves such a disk to its iothread when the guest's driver starts, and back when the guest boots again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.captures import Capture
from tests.guest import Guest, needs_kernel
from tests.guest_states import inspect, restored
from tests.hypervisor import eventually
from tests.long_forms import in_soak
from tests.program import Program, same

pytestmark = needs_kernel
MORE = ["-object", "iothread,id=io0", "-global", "virtio-blk-pci.iothread=io0"]


@pytest.fixture
def guest(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with Guest(tmp_path, image_format=request.param, more=MORE) as running:
        running.write()
        yield running
        running.healthy()


@in_soak
@pytest.mark.parametrize("guest", ["raw"], indirect=True)
def test_read_beside_the_guest(program: Program, guest: Guest) -> None:
    with Capture(program, "web1", guest.qmp, "--pace", "0") as capture:
        capture.followed()
        os.kill(capture.sink(), signal.SIGKILL)
        guest.reach(len(guest.safe) + 20)
        capture.another_point()
        guest.rest()
        capture.stop()
    assert inspect(restored(program, "web1@latest")[0]).records == len(guest.safe)


@in_soak
@pytest.mark.parametrize("guest", ["qcow2"], indirect=True)
def test_pushed_while_it_writes_and_boots(program: Program, guest: Guest) -> None:
    with Capture(program, "web1", guest.qmp, "--pace", "8M") as capture:
        guest.wait(lambda: any('"full"' in line for line in guest.commands(guest.issued[0], time.time_ns())), "it is pushed")
        began = time.time_ns()
        guest.reach(len(guest.safe) + 30)
        gaps = sorted(later - earlier for earlier, later in pairwise(time_ns for time_ns in guest.safe if time_ns > began))
        print(f"ms between two records during the push: {gaps[len(gaps) // 2] / 1e6:.0f}, at most {gaps[-1] / 1e6:.0f}")
        assert gaps[-1] < 2e9, "a push does not hold the guest up"
        os.kill(capture.sink(), signal.SIGKILL)
        guest.reach(len(guest.safe) + 5)
        eventually(lambda: "capture was lost" in capture.said, "the loss is noticed", 60)
    with Capture(program, "web1", guest.qmp, "--pace", "8M") as capture:
        capture.says("capture attached")
        guest.reboot()
        guest.write()
        capture.followed()
        guest.reach(len(guest.safe) + 20)
        guest.poweroff()
        capture.stop()
    for image, disk in zip(restored(program, "web1@latest")[0], guest.images, strict=True):
        raw = disk.with_suffix(".raw")
        subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)
        same(image, raw)


@in_soak
@pytest.mark.parametrize("guest", ["qcow2"], indirect=True)
def test_a_push_that_is_ended_early_holds_the_guest_for_a_moment(program: Program, guest: Guest) -> None:
    """Only while it stands still is no write under way, and QEMU in no danger (K5)."""
    for _ in range(3):
        began = time.time_ns()
        with Capture(program, "web1", guest.qmp, "--pace", "1M") as capture:
            guest.wait(lambda: any('"full"' in line for line in guest.commands(began, time.time_ns())), "it is pushed")  # noqa: B023
            guest.reach(len(guest.safe) + 3)
            capture.stop()
        told = "".join(guest.commands(began, time.time_ns()))
        assert told.index('"stop"') < told.rindex('"force": true') < told.index('"execute": "cont"')
        guest.reach(len(guest.safe) + 5)
    gaps = sorted(later - earlier for earlier, later in pairwise(guest.safe))
    print(f"ms between two records: {gaps[len(gaps) // 2] / 1e6:.0f}, at most {gaps[-1] / 1e6:.0f}")
    assert gaps[-1] < 2e9
