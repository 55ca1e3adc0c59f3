# SPDX-License-Identifier: AGPL-3.0-or-later
"""Image files that we write, judged by programs that others wrote: qemu-img, qemu-io and dissect.hypervisor.

qemu-img reads a VHDX file of 1 TB block by block (476 s to compare a sparse one), so the large ones are asked for their
blocks instead, by qemu-io, which checks each byte against a pattern.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from dissect.hypervisor.disk.qcow2 import QCow2
from dissect.hypervisor.disk.vhd import VHD
from dissect.hypervisor.disk.vhdx import VHDX
from dissect.hypervisor.disk.vmdk import VMDK

from everywhen.block.target_file import NewFile
from everywhen.formats.layouts.choose import FORMATS
from everywhen.formats.layouts.layout import Identity, Layout
from everywhen.formats.layouts.runs import Runs

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

IDENTITY = Identity(uuid.UUID("6f9619ff-8b86-d011-b42d-00c04fc964ff"), 1_700_000_000, "disk.vmdk")
QEMU_NAMES = {"raw": "raw", "qcow2": "qcow2", "vhd": "vpc", "vhd-fixed": "vpc", "vhdx": "vhdx", "vmdk": "vmdk"}
CHECKED = ("qcow2", "vhdx", "vmdk")
MIB = 1 << 20
TIB = 1 << 40

DISKS: dict[str, tuple[int, list[tuple[int, int]]]] = {
    "empty": (10 * MIB, []),
    "full": (7 * MIB, [(0, 7 * MIB)]),
    "full, odd size": (5 * MIB + 70_001, [(0, 5 * MIB + 70_001)]),
    "one sector": (512, [(0, 512)]),
    "first block": (33 * MIB, [(0, 65536)]),
    "last block": (33 * MIB + 512, [(33 * MIB, 512)]),
    "every other block": (9 * MIB, [(start, 65536) for start in range(0, 9 * MIB, 131072)]),
    "scattered over 600 MiB": (600 * MIB + 1024, [(n * 59 * MIB + n * 65536, 65536 * (n + 1)) for n in range(10)]),
}


def qemu(*arguments: str | Path) -> str:
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write(path: Path, layout: Layout, content: dict[int, bytes]) -> None:
    with NewFile(str(path), layout) as target:
        for offset, data in content.items():
            target.write(offset, data)
        target.finish()


def content_of(extents: list[tuple[int, int]]) -> dict[int, bytes]:
    return {start: random.Random(start).randbytes(length) for start, length in extents}


@pytest.mark.parametrize("disk", list(DISKS))
@pytest.mark.parametrize("name", list(FORMATS))
def test_qemu_finds_the_same_disk(tmp_path: Path, name: str, disk: str) -> None:
    size, extents = DISKS[disk]
    content, allocated = content_of(extents), Runs.of_extents(extents)
    reference, image, back = tmp_path / "reference.raw", tmp_path / f"disk.{name}", tmp_path / "back.raw"
    with reference.open("wb") as file:
        file.truncate(size)
        for offset, data in content.items():
            os.pwrite(file.fileno(), data, offset)
    layout = FORMATS[name](size, allocated, IDENTITY)
    write(image, layout, content)
    kind = QEMU_NAMES[name]
    assert image.stat().st_size == layout.file_size
    found = json.loads(qemu("qemu-img", "info", "--output=json", "-f", kind, image))
    assert found["virtual-size"] == (-(-size // 512) * 512 if name == "raw" else layout.virtual_size)
    if name in CHECKED:
        assert "No errors were found" in qemu("qemu-img", "check", "-f", kind, image)
    assert "Images are identical." in qemu("qemu-img", "compare", "-f", "raw", "-F", kind, reference, image)
    qemu("qemu-img", "convert", "-f", kind, "-O", "raw", image, back)
    os.truncate(back, size)
    assert "Images are identical." in qemu("qemu-img", "compare", "-f", "raw", "-F", "raw", reference, back)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "vhd-fixed"])
def test_qemu_recognizes_the_format_by_itself(tmp_path: Path, name: str) -> None:
    image = tmp_path / "disk.img"
    write(image, FORMATS[name](MIB, Runs.whole(0), IDENTITY), {})
    assert json.loads(qemu("qemu-img", "info", "--output=json", image))["format"] == QEMU_NAMES[name]


@pytest.mark.parametrize("disk", ["full, odd size", "every other block", "last block"])
@pytest.mark.parametrize("name", ["qcow2", "vhd", "vhd-fixed", "vhdx", "vmdk"])
def test_dissect_finds_the_same_disk(tmp_path: Path, name: str, disk: str) -> None:
    size, extents = DISKS[disk]
    content = content_of(extents)
    image = tmp_path / f"disk.{name}"
    layout = FORMATS[name](size, Runs.of_extents(extents), IDENTITY)
    write(image, layout, content)
    expected = bytearray(layout.virtual_size)
    for offset, data in content.items():
        expected[offset : offset + len(data)] = data
    with image.open("rb") as file:
        if name == "qcow2":
            stream = QCow2(file).open()
        elif name in ("vhd", "vhd-fixed"):
            stream = VHD(file)
        else:
            stream = VHDX(file) if name == "vhdx" else VMDK(file)
        assert stream.size == layout.virtual_size
        if name == "vmdk":  # read() asks for whole 8 KiB, and fails at the end of a disk that is not a multiple of it
            assert stream.read_sectors(0, layout.virtual_size // 512) == expected
        else:
            assert stream.read(layout.virtual_size) == expected


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_sparse_terabyte(tmp_path: Path, name: str) -> None:
    """2,002 scattered blocks, the first and the last among them. Measured: 0.2 to 0.5 s to write."""
    size = TIB
    blocks = np.unique(np.append(np.random.default_rng(5).integers(0, size >> 16, 2000), [0, (size >> 16) - 1]))
    began = time.perf_counter()
    layout = FORMATS[name](size, Runs.of_blocks(blocks, 65536, size), IDENTITY)
    image = tmp_path / f"disk.{name}"
    write(image, layout, {n << 16: bytes([n % 255 + 1]) * 65536 for n in blocks.tolist()})
    assert time.perf_counter() - began < 5
    assert image.stat().st_blocks * 512 < 512 * MIB
    asked = [0, *blocks[1:-1:100].tolist(), (size >> 16) - 1]
    commands = [f"read -q -P {n % 255 + 1} {n << 16} 64k" for n in asked]
    commands += [f"read -q -P 0 {(n + 1) << 16} 64k" for n in asked[:-1] if n + 1 not in blocks]
    arguments = [part for command in commands for part in ("-c", command)]
    assert "failed" not in qemu("qemu-io", "-r", "-f", QEMU_NAMES[name], *arguments, image)
    if name in CHECKED:
        assert "No errors were found" in qemu("qemu-img", "check", "-f", QEMU_NAMES[name], image)


@pytest.mark.parametrize("name", ["qcow2", "vhd", "vhdx", "vmdk"])
def test_qemu_can_write_into_it(tmp_path: Path, name: str) -> None:
    """What counts as allocated, free and in use must be right for that, beyond what reading needs."""
    image = tmp_path / f"disk.{name}"
    write(image, FORMATS[name](20 * MIB, Runs.whole(65536), IDENTITY), {0: b"a" * 65536})
    commands = ["write -q -P 98 1M 3M", "write -q -P 99 100k 10k", "write -q -P 100 19M 1M"]
    qemu("qemu-io", "-f", QEMU_NAMES[name], *(part for c in commands for part in ("-c", c)), image)
    reads = [
        "-c",
        "read -q -P 97 0 64k",
        "-c",
        "read -q -P 98 1M 3M",
        "-c",
        "read -q -P 99 100k 10k",
        "-c",
        "read -q -P 0 8M 1M",
    ]
    out = qemu("qemu-io", "-r", "-f", QEMU_NAMES[name], *reads, "-c", "read -q -P 100 19M 1M", image)
    assert "failed" not in out
    if name in CHECKED:
        assert "No errors were found" in qemu("qemu-img", "check", "-f", QEMU_NAMES[name], image)
