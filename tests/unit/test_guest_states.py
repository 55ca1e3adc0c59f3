# SPDX-License-Identifier: AGPL-3.0-or-later
"""The judge of the guest's disks sees what is missing, too much, out of order, torn and broken."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.guest_states import check, inspect, record

ROOM = bytes(512)


@dataclass
class Written:
    """Record k is asked for at 10 k, and safe at 10 k + 5."""

    issued: list[int] = field(default_factory=lambda: [10 * number for number in range(6)])
    safe: list[int] = field(default_factory=lambda: [10 * number + 5 for number in range(6)])


def disks(folder: Path, *contents: bytes) -> list[Path]:
    """File systems with these files of records."""
    images = []
    for number, content in enumerate(contents):
        image, file = folder / f"{number}.raw", folder / "content"
        image.write_bytes(bytes(2 << 20))
        file.write_bytes(content)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True)
        subprocess.run(["debugfs", "-w", "-R", f"write {file} records", image], check=True, capture_output=True)
        images.append(image)
    return images


def joined(*numbers: int) -> bytes:
    return b"".join(map(record, numbers))


def test_a_record_names_itself() -> None:
    assert len(record(7)) == 512
    assert record(7)[:12] == b"EWG1" + (7).to_bytes(8, "little")
    # The first number that splitmix64 gives for the seed 0, as published with it.
    assert record(0)[12:20] == (0xE220A8397B1DCDAF).to_bytes(8, "little")


def test_what_was_safe_and_nothing_later(tmp_path: Path) -> None:
    images = disks(tmp_path, joined(0, 2), joined(1))
    for time_ns in (20, 25, 29, 30, 34):  # while 2 is under way, safe, and while 3 is under way
        assert check(images, time_ns, Written()).records == 3
    for time_ns in (19, 35):
        with pytest.raises(AssertionError, match="at an instant with"):
            check(images, time_ns, Written())


def test_room_for_the_record_that_is_under_way(tmp_path: Path) -> None:
    images = disks(tmp_path, joined(0, 2) + ROOM, joined(1, 3))
    assert check(images, 40, Written()).records == 4
    with pytest.raises(AssertionError, match="at an instant with"):
        check(images, 39, Written())  # nobody had asked for 4


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (joined(0, 2), b""),  # 1 is missing
        (joined(0), joined(1, 3)),  # 2 is missing
        (joined(0, 4), joined(1, 3)),
        (joined(0, 2)[:-1] + b"\0", joined(1)),  # torn
        (joined(0) + ROOM + ROOM, joined(1)),
        (joined(0) + ROOM + joined(4), joined(1)),
    ],
)
def test_what_no_power_cut_leaves(tmp_path: Path, first: bytes, second: bytes) -> None:
    with pytest.raises(AssertionError):
        inspect(disks(tmp_path, first, second))


def test_a_broken_file_system(tmp_path: Path) -> None:
    images = disks(tmp_path, joined(0), b"")
    subprocess.run(["debugfs", "-w", "-R", "clri records", images[1]], check=True, capture_output=True)
    with pytest.raises(AssertionError, match="e2fsck"):
        inspect(images)
