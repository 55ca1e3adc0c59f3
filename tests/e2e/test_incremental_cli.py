# SPDX-License-Identifier: AGPL-3.0-or-later
"""Incremental for ever: whatever is done to a VM's disks between two stretches of capture, only what changed is stored again,
and where a bitmap can know it, only that is read."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from everywhen.capture.qmp import CommandFailed
from tests.bridged import MIB, STORED, captured, figures, filled, same
from tests.hypervisor import Hypervisor
from tests.long_forms import in_soak
from tests.program import Program


def paused(program: Program, hypervisor: Hypervisor, change: Callable[[], None]) -> None:
    """Protected, paused, changed, and followed again in the same capture."""
    with captured(program, hypervisor) as capture:
        hypervisor.write(0, MIB, 4096, 7)
        assert "error" not in capture.ask({"wish": "pause", "seconds": 600})
        capture.reaches("paused")
        change()
        assert "error" not in capture.ask({"wish": "resume"})
        capture.reaches("following")
        hypervisor.write(0, 5 * MIB, 4096, 9)
        capture.stop()
    same(program, hypervisor)


def between(program: Program, hypervisor: Hypervisor, change: Callable[[], None]) -> None:
    """Protected until the VM ended, changed, and protected again when it has started."""
    with captured(program, hypervisor) as capture:
        hypervisor.write(0, MIB, 4096, 7)
        capture.stop()
    hypervisor.quit()
    change()
    hypervisor.start()
    with captured(program, hypervisor) as capture:
        hypervisor.write(0, 5 * MIB, 4096, 9)
        capture.stop()
    same(program, hypervisor)


@pytest.mark.parametrize("image_format", ["raw", pytest.param("qcow2", marks=in_soak)])
def test_a_disk_that_grew(program: Program, tmp_path: Path, image_format: str) -> None:
    with filled(tmp_path, image_format) as hypervisor:

        def grow() -> None:
            hypervisor.monitor.execute("block_resize", {"node-name": "node0", "size": 40 * MIB})
            hypervisor.write(0, 39 * MIB, 4096, 8)

        paused(program, hypervisor, grow)
        assert program.ok("points", "web1")[0]["disks"]["vd0"]["size"] == 40 * MIB
        assert figures(program, "bytes_read")["vd1"] == 0
        assert figures(program, "bytes_stored")["vd0"] < STORED


@in_soak
def test_a_disk_that_shrank(program: Program, tmp_path: Path) -> None:
    with filled(tmp_path) as hypervisor:
        paused(program, hypervisor, lambda: hypervisor.monitor.execute("block_resize", {"node-name": "node0", "size": 6 * MIB}))
        assert program.ok("points", "web1")[0]["disks"]["vd0"]["size"] == 6 * MIB


def test_a_resize_while_following_is_refused_and_harms_nothing(program: Program, tmp_path: Path) -> None:
    with filled(tmp_path) as hypervisor, captured(program, hypervisor) as capture:
        with pytest.raises(CommandFailed, match="in use"):
            hypervisor.monitor.execute("block_resize", {"node-name": "node0", "size": 40 * MIB})
        hypervisor.write(0, MIB, 4096, 7)
        capture.stop()
        same(program, hypervisor)


def test_a_snapshot_behind_our_back(program: Program, tmp_path: Path) -> None:
    with filled(tmp_path) as hypervisor:

        def snapshot() -> None:
            overlay = tmp_path / "overlay.qcow2"
            base = ["-b", str(hypervisor.images[0]), "-F", "raw"]
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, overlay], check=True)
            file = {"driver": "file", "node-name": "file-over", "filename": str(overlay)}
            hypervisor.monitor.execute("blockdev-add", file)
            node = {"driver": "qcow2", "node-name": "over", "file": "file-over", "backing": None}
            hypervisor.monitor.execute("blockdev-add", node)
            hypervisor.monitor.execute("blockdev-snapshot", {"node": "node0", "overlay": "over"})
            hypervisor.write(0, 2 * MIB, 4096, 8)
            hypervisor.shows(0, overlay, "qcow2")

        paused(program, hypervisor, snapshot)
        assert figures(program, "bytes_stored")["vd0"] < STORED


@in_soak
def test_a_guest_that_was_ended_and_started(program: Program, tmp_path: Path) -> None:
    with filled(tmp_path) as hypervisor:
        between(program, hypervisor, lambda: None)
        assert figures(program, "bytes_stored")["vd0"] < STORED
        assert figures(program, "bytes_stored")["vd1"] == 0


def test_a_disk_that_was_moved_to_another_file_and_format(program: Program, tmp_path: Path) -> None:
    with filled(tmp_path) as hypervisor:

        def move() -> None:
            moved = [tmp_path / f"moved{number}.qcow2" for number in range(2)]
            for old, new in zip(hypervisor.images, moved, strict=True):
                subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", old, new], check=True)
            hypervisor.replace(moved, "qcow2")

        between(program, hypervisor, move)
        assert figures(program, "bytes_stored")["vd0"] < STORED
        assert figures(program, "bytes_stored")["vd1"] == 0


@in_soak
def test_a_revert_to_an_internal_snapshot(program: Program, tmp_path: Path) -> None:
    with filled(tmp_path, "qcow2") as hypervisor:
        hypervisor.quit()
        subprocess.run(["qemu-img", "snapshot", "-c", "before", hypervisor.images[0]], check=True)
        hypervisor.start()

        def revert() -> None:
            subprocess.run(["qemu-img", "snapshot", "-a", "before", hypervisor.images[0]], check=True)

        between(program, hypervisor, revert)
        assert figures(program, "bytes_stored")["vd0"] < STORED


@in_soak
def test_an_image_that_was_replaced_by_an_older_copy(program: Program, tmp_path: Path) -> None:
    """As a restore by somebody else's tool leaves it: another file by the same name."""
    with filled(tmp_path) as hypervisor:
        older = tmp_path / "older.raw"
        older.write_bytes(hypervisor.images[0].read_bytes())

        def put_back() -> None:
            older.replace(hypervisor.images[0])

        between(program, hypervisor, put_back)
        assert figures(program, "bytes_stored")["vd0"] < STORED
        assert hypervisor.content(0)[MIB : MIB + 4096] != bytes([7]) * 4096, "it is the older one"


def test_a_disk_more_and_a_disk_less(program: Program, tmp_path: Path) -> None:
    with filled(tmp_path) as hypervisor:

        def add() -> None:
            more = tmp_path / "disk2.raw"
            more.write_bytes(random.Random(8).randbytes(MIB).ljust(4 * MIB, b"\0"))
            hypervisor.replace([*hypervisor.images, more], "raw")

        between(program, hypervisor, add)
        disks = program.ok("points", "web1")[0]["disks"]
        assert (sorted(disks), figures(program, "bytes_stored")["vd1"]) == (["vd0", "vd1", "vd2"], 0)
        hypervisor.quit()
        hypervisor.replace(hypervisor.images[:1], "raw")
        hypervisor.start()
        with captured(program, hypervisor) as capture:
            capture.stop()
        assert sorted(program.ok("points", "web1")[0]["disks"]) == ["vd0"]
        same(program, hypervisor)


def test_a_crash_of_the_host(program: Program, tmp_path: Path) -> None:
    """Both killed at once: journal and disks may differ, so all is compared; nothing of it is stored twice."""
    with filled(tmp_path) as hypervisor:
        capture = captured(program, hypervisor)
        hypervisor.write(0, MIB, 4096, 7)
        capture.kill()
        hypervisor.kill()
        hypervisor.start()
        with captured(program, hypervisor) as capture:
            capture.stop()
        same(program, hypervisor)
        assert figures(program, "bytes_stored")["vd0"] < STORED
        assert figures(program, "bytes_stored")["vd1"] == 0
