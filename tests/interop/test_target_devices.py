# SPDX-License-Identifier: AGPL-3.0-or-later
"""Restores to real block devices (loop devices): refused while in use, zeroes written, in place.

Skipped where loop devices cannot be made (not root, or a container without them).
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from everywhen.block.target import TargetBusy, TargetTooSmall, TargetUnsuitable
from everywhen.block.target_device import WholeDevice
from everywhen.block.target_device_use import uses
from everywhen.block.target_in_place import InPlace
from everywhen.block.target_mark import read_mark

SIZE = 16 << 20
OLD = random.Random(4).randbytes(SIZE)


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    backing = tmp_path / "backing"
    backing.write_bytes(OLD)
    if shutil.which("losetup") is None:
        pytest.skip("losetup is not installed")
    made = subprocess.run(["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop device can be made here: {made.stderr.strip()}")
    yield made.stdout.strip()
    run("losetup", "--detach", made.stdout.strip())


def content(device: str) -> bytes:
    run("blockdev", "--flushbufs", device)
    return Path(device).read_bytes()


def test_everything_is_written_and_zeroes_too(loop: str) -> None:
    size = SIZE - (3 << 20) - 512
    with WholeDevice(loop, size) as target:
        target.write(0, b"a" * 5000)
        target.zero(5000, size - 5000 - 70_000)
        target.write(size - 70_000, b"z" * 70_000)
        target.finish()
    assert content(loop) == b"a" * 5000 + bytes(size - 75_000) + b"z" * 70_000 + OLD[size:]


@pytest.mark.parametrize(("offset", "length"), [(1, 1), (4096, 4096), (4095, 8194), (100, 1 << 20), (8192, 0)])
def test_zeroes_of_any_alignment_beside_fresh_writes(loop: str, offset: int, length: int) -> None:
    """The kernel zeroes the device below the page cache: bytes written just before, beside it, must survive."""
    fresh = random.Random(5).randbytes(2 << 20)
    with WholeDevice(loop, SIZE) as target:
        target.write(0, fresh)
        target.zero(offset, length)
        target.finish()
    wanted = bytearray(fresh + OLD[len(fresh) :])
    wanted[offset : offset + length] = bytes(length)
    assert content(loop) == wanted


def test_an_interrupted_one_says_that_the_content_is_lost(loop: str) -> None:
    def interrupted() -> None:
        with WholeDevice(loop, SIZE) as target:
            target.write(0, b"a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        interrupted()
    assert caught.value.__notes__ == [f"{loop} is partly overwritten: its old content is lost. Restore to it again."]
    with pytest.raises(ZeroDivisionError) as caught, WholeDevice(loop, SIZE):
        raise ZeroDivisionError
    assert not hasattr(caught.value, "__notes__")


def test_too_small_or_no_device(loop: str, tmp_path: Path) -> None:
    with pytest.raises(TargetTooSmall, match=r"17 MB \(16777216 bytes\).*Nothing was written"):
        WholeDevice(loop, SIZE + 1)
    with pytest.raises(TargetUnsuitable, match="not a block device"):
        WholeDevice(str(tmp_path / "backing"), SIZE)
    assert content(loop) == OLD


@pytest.mark.xdist_group("libvirt")  # beside those the namespace of a libvirtd may keep what is mounted here
def test_a_mounted_device_is_refused_by_name(loop: str, tmp_path: Path) -> None:
    where = tmp_path / "mount point"
    where.mkdir()
    run("mkfs.ext4", "-q", "-F", loop)
    run("mount", loop, str(where))
    try:
        for refused in (lambda: WholeDevice(loop, SIZE), lambda: InPlace(loop, SIZE, "x", mark_folder=str(tmp_path))):
            with pytest.raises(TargetBusy, match=rf"{loop} is in use: {loop} is mounted on {where}. Nothing was written."):
                refused()
    finally:
        run("umount", str(where))
    WholeDevice(loop, SIZE).abandon()


def test_a_mounted_partition_protects_the_whole_disk(loop: str, tmp_path: Path) -> None:
    table = bytes(446) + struct.pack("<BxxxBxxxII", 0, 0x83, 2048, (SIZE >> 9) - 2048) + bytes(48) + b"\x55\xaa"
    with WholeDevice(loop, SIZE) as target:
        target.write(0, table)
        target.finish()
    subprocess.run(["partx", "--add", loop], check=False, capture_output=True)
    partition = f"{loop}p1"
    if not os.path.exists(partition):
        with suppress(FileNotFoundError):
            number = Path(f"/sys/block/{os.path.basename(loop)}/{os.path.basename(partition)}/dev").read_text()
            run("mknod", partition, "b", *number.strip().split(":"))
    if not os.path.exists(partition):
        pytest.skip("the kernel makes no partitions of loop devices here")
    try:
        run("mkfs.ext4", "-q", "-F", partition)
        run("mount", partition, str(tmp_path))
        try:
            with pytest.raises(TargetBusy, match=f"{partition} is mounted on {tmp_path}"):
                WholeDevice(loop, SIZE)
        finally:
            run("umount", str(tmp_path))
    finally:
        run("partx", "--delete", loop)
        with suppress(FileNotFoundError):
            os.unlink(partition)


def test_two_restores_to_one_device(loop: str) -> None:
    with WholeDevice(loop, SIZE), pytest.raises(TargetBusy, match="open exclusively"):
        WholeDevice(loop, SIZE)


def test_in_place_on_a_device(loop: str, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    new = bytearray(OLD)
    new[5 << 20 : 6 << 20] = bytes(1 << 20)
    new[9 << 20] ^= 1
    with InPlace(loop, SIZE, "web1@latest", mark_folder=str(marks)) as target:
        target.write(0, bytes(new[: 5 << 20]))
        target.zero(5 << 20, 1 << 20)
        assert read_mark(str(marks / (loop.strip("/").replace("/", "-") + ".everywhen-restoring"))) is not None
        target.write(6 << 20, bytes(new[6 << 20 :]))
        target.finish()
        assert target.bytes_written == (1 << 20) + 4096
    assert content(loop) == new
    assert os.listdir(marks) == []
    with pytest.raises(ValueError, match="folder for its mark"):
        InPlace(loop, SIZE, "web1@latest")


def test_a_free_device_has_no_uses(loop: str) -> None:
    assert uses(os.stat(loop).st_rdev) == []
