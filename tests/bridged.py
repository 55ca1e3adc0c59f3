# SPDX-License-Identifier: AGPL-3.0-or-later
"""A VM whose disks have content, its capture, and what its points after the first cost: for tests of what bridges a gap."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.captures import Capture
from tests.hypervisor import Hypervisor
from tests.program import Program, qemu_img

MIB = 1 << 20
SIZES = [16 * MIB, 8 * MIB]
STORED = 200_000
"""Bytes that may be stored anew in these tests; the disks hold 3 MiB that do not compress."""


def filled(
    folder: Path, image_format: str = "raw", *, content: int = 3 * MIB // 2, iothread: bool = False, scsi: bool = False
) -> Hypervisor:
    """A VM whose disks have `content` bytes that do not compress from the beginning."""
    folder.mkdir(exist_ok=True)
    chance = random.Random(4)
    for number, size in enumerate(SIZES):
        raw = folder / "content.raw"
        raw.write_bytes(chance.randbytes(content).ljust(size, b"\0"))
        qemu_img("convert", "-f", "raw", "-O", image_format, raw, folder / f"disk{number}.{image_format}")
    return Hypervisor(folder, SIZES, image_format=image_format, iothread=iothread, scsi=scsi)


def captured(program: Program, hypervisor: Hypervisor, *more: str) -> Capture:
    """Every write of it is captured."""
    return Capture(program, "web1", hypervisor.qmp, "--pace", "0", "--seal-every", "1h", *more).followed()


def same(program: Program, hypervisor: Hypervisor) -> None:
    """The newest moment holds what the disks hold."""
    for number in range(len(hypervisor.images)):
        path = program.folder / "back.raw"
        program.restore(f"web1/vd{number}", path, "--overwrite")
        assert path.read_bytes() == hypervisor.content(number), f"disk {number} differs"


def figures(program: Program, name: str) -> dict[str, int]:
    """Sums over all points but the first."""
    points: list[dict[str, Any]] = program.ok("points", "web1")[:-1]
    names = {disk for point in points for disk in point["disks"]}
    return {disk: sum(point["disks"][disk][name] for point in points if disk in point["disks"]) for disk in names}
