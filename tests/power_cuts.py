# SPDX-License-Identifier: AGPL-3.0-or-later
"""File systems as they are when the power fails: a busy one on a disk whose writes are recorded, and then cut off anywhere."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from everywhen.guest.replaying import replayed
from everywhen.guest.tree import FileSystem
from everywhen.guest.volumes import open_file_system
from tests.guest_images import Image, compare, empty, mounted, need, run, the_volume, unmount
from tests.recorded_disk import FLUSH, recorded

HERE = Path(__file__).parent


class Cuts:
    """The writes of a file system that was busy for so many steps, from its making on."""

    def __init__(
        self, folder: Path, making: tuple[str, ...], *, size: int, seed: int, steps: int, mounting: str = "", few: bool = False
    ) -> None:
        """`few`: names (busy_file_system.py)."""
        need(making[0], "fusermount3")
        if os.geteuid():
            pytest.skip("only root may mount")
        self.folder = folder
        self._base, image = folder / "base", empty(folder / "recorded", size << 20)
        run(*making, image)
        run("cp", "--sparse=always", image, self._base)
        with recording(image, folder) as disk, mounted_beside(disk, folder, mounting) as inside:
            run(sys.executable, HERE / "busy_file_system.py", inside, str(seed), str(steps), *(["few"] * few))
        image.unlink()
        self.writes = list(recorded(folder / "record"))

    def at(self, number: int, lost: random.Random | None = None) -> Path:
        """The disk after so many writes and flushes. With `lost` some of those after the last flush are not there, or in part.

        Each is a file of its own: the kernel may still have a loop device on the one before.
        """
        image = self.folder / f"cut-{number}"
        run("cp", "--sparse=always", self._base, image)
        flushed = max((index for index in range(number) if self.writes[index][0] == FLUSH), default=0)
        with image.open("r+b") as file:
            for index, (offset, data) in enumerate(self.writes[:number]):
                if offset == FLUSH:
                    continue
                fate = lost.random() if lost and index > flushed else 1.0
                if lost and fate < 0.25:
                    data = data[: lost.randrange(0, len(data) + 1, 512)]
                if fate >= 0.5 or fate < 0.25:
                    os.pwrite(file.fileno(), data, offset)
        return image


def shown(image: Path) -> tuple[FileSystem, tuple[str, ...]]:
    """The file system as it is shown, its log replayed, and what is said of that."""
    volume, notes = replayed(the_volume(Image(image)))
    return open_file_system(volume), notes


def as_the_kernel_shows_it(image: Path, expect: Callable[[FileSystem, tuple[str, ...]], None]) -> bool:
    """Compares all that is shown with what this kernel shows when it has replayed the same. False if it refuses to."""
    system, notes = shown(image)
    expect(system, notes)
    since = time.time_ns()
    with contextlib.ExitStack() as stack:
        try:
            inside = stack.enter_context(mounted(image))
        except pytest.skip.Exception:
            return False
        compare(system, inside, since_ns=since)
    return True


@contextlib.contextmanager
def recording(image: Path, folder: Path) -> Iterator[Path]:
    """The image as a file of which each write is put down in `folder/record`."""
    point = folder / "fuse"
    point.mkdir()
    command = [sys.executable, *map(str, (HERE / "recorded_disk.py", image, folder / "record", point))]
    with subprocess.Popen(command) as process:
        until = time.monotonic() + 30
        while not (point / "disk").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        try:
            yield point / "disk"
        finally:
            unmount(point)
    shutil.rmtree(point)


@contextlib.contextmanager
def mounted_beside(disk: Path, folder: Path, mounting: str) -> Iterator[Path]:
    """Not beside the disk: there is nothing but the disk."""
    point = folder / "busy"
    point.mkdir()
    options = ",".join(("loop", *filter(None, (mounting,))))
    done = subprocess.run(["mount", "-o", options, str(disk), str(point)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this kernel does not mount it: {done.stderr.decode(errors='replace').strip()}")
    try:
        yield point
    finally:
        unmount(point)
