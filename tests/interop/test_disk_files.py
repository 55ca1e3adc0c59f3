# SPDX-License-Identifier: AGPL-3.0-or-later
"""Image files that are made while they are read, judged by qemu-img: copied out by reads anywhere, in no order."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from everywhen.block.device import Extent
from everywhen.block.disk_file import DiskFile, disk_file, identity_of
from everywhen.block.open_image import open_image
from everywhen.formats.layouts.choose import FORMATS
from everywhen.formats.layouts.runs import Runs

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

QEMU_NAMES = {"raw": "raw", "qcow2": "qcow2", "vhd": "vpc", "vhd-fixed": "vpc", "vhdx": "vhdx", "vmdk": "vmdk"}
CHECKED = ("qcow2", "vhdx", "vmdk")
MIB = 1 << 20
TIB = 1 << 40
DISKS: dict[str, tuple[int, list[tuple[int, int]]]] = {
    "empty": (10 * MIB + 513, []),
    "full": (5 * MIB + 70_001, [(0, 5 * MIB + 70_001)]),
    "scattered": (600 * MIB + 1, [(n * 59 * MIB + n * 65536, 65536 * (n + 1)) for n in range(10)] + [(600 * MIB, 1)]),
}


def qemu_img(*arguments: str | Path) -> str:
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def opened(image: Path, name: str) -> Iterator[DiskFile]:
    """The raw file `image` as a file of another format."""
    with open_image(str(image), format="raw") as device:
        allocated = Runs.of_extents((extent.start, extent.length) for extent in device.extents() if not extent.zero)
        yield disk_file(device, allocated, name, identity_of("p-7fx9c2000000", 1 << 60, "vda", name))


def raw_image(path: Path, size: int, extents: list[tuple[int, int]]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for start, length in extents:
            os.pwrite(file.fileno(), random.Random(start).randbytes(length), start)
    return path


def copy_out(file: DiskFile, path: Path) -> None:
    """By reads of odd sizes in no order, as several programs do it; zeroes become holes."""
    chance = random.Random(file.size)
    pieces, at = [], 0
    while at < file.size:
        length = min(chance.choice([4096, 65_537, 262_144, 3 * MIB]), file.size - at)
        pieces.append((at, length))
        at += length
    chance.shuffle(pieces)
    with path.open("wb") as copy:
        copy.truncate(file.size)
        for start, length in pieces:
            content = file.read(start, length)
            assert len(content) == length
            if content.count(0) != length:
                os.pwrite(copy.fileno(), content, start)


@pytest.mark.parametrize("disk", list(DISKS))
@pytest.mark.parametrize("name", list(FORMATS))
def test_qemu_finds_the_same_disk(tmp_path: Path, name: str, disk: str) -> None:
    reference = raw_image(tmp_path / "reference.raw", *DISKS[disk])
    image = tmp_path / f"disk.{name}"
    with opened(reference, name) as file:
        copy_out(file, image)
    if name in CHECKED:
        assert "No errors were found" in qemu_img("check", "-f", QEMU_NAMES[name], image)
    assert "Images are identical." in qemu_img("compare", "-f", "raw", "-F", QEMU_NAMES[name], reference, image)


@pytest.mark.parametrize("name", ["qcow2", "vhd", "vhdx", "vmdk"])
def test_qemu_finds_what_stands_in_a_sparse_terabyte(tmp_path: Path, name: str) -> None:
    """Only what is no hole is read of the file; `map` where QEMU can tell it in seconds (vhdx: not at all, vmdk: 8 s)."""
    size = TIB - 512
    starts = [0, 7 << 30, 700 << 30, size - 512]
    reference = raw_image(tmp_path / "reference.raw", size, [])
    with reference.open("r+b") as disk:
        for start in starts:
            os.pwrite(disk.fileno(), b"U" * 512, start)
    image = tmp_path / f"disk.{name}"
    with opened(reference, name) as file, image.open("wb") as copy:
        copy.truncate(file.size)
        at = 0
        while at < file.size:
            segment = file.layout.locate(at)
            end = segment.start + segment.length
            if segment.source is not None or segment.disk_offset >= 0:
                for start in range(segment.start, end, MIB):
                    content = file.read(start, min(MIB, end - start))
                    if content.count(0) != len(content):
                        os.pwrite(copy.fileno(), content, start)
            at = end
    reads = [f"read -q -P {ord('U')} {start} 512" for start in starts]
    reads += [f"read -q -P 0 {start} 1M" for start in (512, (7 << 30) + 512, (700 << 30) - MIB, size - 512 - MIB)]
    asked = [word for read in reads for word in ("-c", read)]
    told = subprocess.run(["qemu-io", "-r", "-f", QEMU_NAMES[name], *asked, image], capture_output=True, text=True, check=True)
    assert "failed" not in told.stdout
    if name in ("qcow2", "vhd"):
        found = json.loads(qemu_img("map", "--output=json", "-f", QEMU_NAMES[name], image))
        data = [(entry["start"], entry["start"] + entry["length"]) for entry in found if entry["data"]]
        assert sum(end - start for start, end in data) <= len(starts) * 2 * MIB
        assert all(any(begin <= start < end for begin, end in data) for start in starts)


class Blank:
    """A terabyte of zeroes, whatever is said of it."""

    size = TIB

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)

    def extents(self) -> Iterator[Extent]:
        raise AssertionError("what is allocated was said")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("name", ["qcow2", "vhd", "vhdx", "vmdk"])
def test_memory_is_that_of_the_stretches_not_of_the_disk(name: str) -> None:
    """Tables of a qcow2 file of 1 TB are 128 MiB; nobody holds them."""
    stretches = 30_000
    blocks = np.arange(stretches) * 555
    tracemalloc.start()
    try:
        allocated = Runs.of_blocks(blocks, 65536, TIB)
        file = disk_file(Blank(), allocated, name, identity_of("p-7fx9c2000000", 0, "vda", name))
        assert len(file.read(0, 2 * MIB)) == 2 * MIB
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 150 * stretches
    assert most < 400 * stretches + 8 * MIB
