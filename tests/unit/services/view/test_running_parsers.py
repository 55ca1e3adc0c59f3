# SPDX-License-Identifier: AGPL-3.0-or-later
"""Processes that parse guests' files: a few of many, whoever has many moments open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.services.view.files import GuestFiles
from everywhen.services.view.running_parsers import RunningParsers


class Disk:
    """Of zeroes."""

    size = 1 << 20

    def read(self, offset: int, length: int) -> bytes:
        return bytes(min(length, self.size - offset))

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return self.read(offset, length)

    def status(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        del offset
        yield length, True


def running() -> int:
    """So many of ours, of this process's."""
    tasks = Path("/proc/self/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    return sum("everywhen.guest.process" in Path(f"/proc/{child}/cmdline").read_text() for child in children)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="children are listed by Linux")
def test_the_ones_started_first_are_ended() -> None:
    together = RunningParsers(2)
    every = [GuestFiles({"vda": Disk()}, (), running=together) for _ in range(4)]
    device = None
    for number, files in enumerate(every, 1):
        assert [volume.name for volume in files.volumes] == ["p0"]
        device = device or files.device(files.volumes[0])
        assert running() == min(number, 2)
    assert device is not None
    assert device.read(0, 10) == bytes(10), "one that was ended goes on"
    assert running() == 2
    for files in every:
        files.close()
    assert running() == 0
