# SPDX-License-Identifier: AGPL-3.0-or-later
"""A small file system (ext4 on a loop device) on which both the spool and a thin image lie, while the repository is away.

Skipped where loop devices cannot be mounted (not root, or a container without them).
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.capture import spool_room
from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.program import Program

MIB = 1 << 20
FILE_SYSTEM, DISK, WRITTEN = 96 * MIB, 80 * MIB, 48 * MIB


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    medium, folder = tmp_path / "medium", tmp_path / "small"
    folder.mkdir()
    with medium.open("wb") as file:
        file.truncate(FILE_SYSTEM)
    # Nothing that is there for the kernel, or for root alone, who runs QEMU here.
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", medium], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", medium, folder], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no loop device can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def test_the_spool_does_not_take_the_images_room(tmp_path: Path, small: Path) -> None:
    assert spool_room.room(small) < free(small) - FILE_SYSTEM // 12
    state = small / "host"
    program = Program(tmp_path, more={"EVERYWHEN_STATE": str(state)}).init()
    content = tmp_path / "content"
    content.write_bytes(random.Random(7).randbytes(MIB))  # what can be compressed would need no room in the spool
    with Hypervisor(small, [DISK]) as hypervisor:
        capture = Capture(program, "web1", hypervisor.qmp, "--pace", "0", "--seal-every", "1h")
        with capture.followed():
            program.repo.rename(tmp_path / "away")
            for number in range(WRITTEN // MIB):
                said = hypervisor.io(0, f"write -s {content} {number}M 1M")
                assert "error" not in said, (number, said, free(small))
                if number == 16:  # the spool holds it: it is the room that ends it, not that it is too slow
                    assert capture.state() == "following", capture.said
            eventually(lambda: "nearly full" in capture.said, "the spool has stopped")
            assert hypervisor.write_errors(0) == 0
            assert free(small) > 0
            (tmp_path / "away").rename(program.repo)
            program.run("resume", "web1")  # it need not wait for its back-off
            capture.followed()
            eventually(lambda: spool_room.room(small) > 0, "what waited is in the repository, and gone here")
            capture.stop()
        assert hypervisor.write_errors(0) == 0
        program.restore("web1/vd0", tmp_path / "back.raw")
        assert (tmp_path / "back.raw").read_bytes() == hypervisor.images[0].read_bytes()
