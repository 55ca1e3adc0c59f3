# SPDX-License-Identifier: AGPL-3.0-or-later
"""Backups of real block devices (loop devices) that somebody writes to meanwhile, or does not.

Skipped where loop devices cannot be made (not root, or a container without them).
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from everywhen.block.host_file import HostFile
from everywhen.repository.repository import Repository
from everywhen.services.backup import BackupOrder, back_up
from everywhen.services.catalog import read_catalog
from everywhen.storage.posix import PosixStore
from tests.laboratory import World

SIZE = 16 << 20
MOVED = "changed while it was read"


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    if shutil.which("losetup") is None:
        pytest.skip("losetup is not installed")
    backing = tmp_path / "backing"
    backing.write_bytes(random.Random(6).randbytes(SIZE))
    made = subprocess.run(["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop device can be made here: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    world = World(tmp_path)
    store = PosixStore(str(tmp_path / "repository"))
    world.create(store, encrypted=False)
    with world.open(store) as opened:
        yield opened


def reached(repository: Repository, device: str, meanwhile: Callable[[], None] = lambda: None) -> tuple[str, str]:
    """Back the device up; `meanwhile` happens once, after something was read. Gives the consistency, and why."""
    open_ = [meanwhile]

    def report(done: int, _total: int | None) -> None:
        if done and open_:
            open_.pop()()

    order = BackupOrder(vm="web1", images={"vda": device}, state=Path("/nowhere"))
    point = back_up(repository, read_catalog(repository), order, report).point
    assert not open_, "nothing was read"
    return point.reached, point.why


def write(device: str, *, sync: bool) -> None:
    with open(device, "r+b", buffering=0) as file:
        file.seek(SIZE // 2)
        file.write(os.urandom(512))
        if sync:
            os.fsync(file.fileno())


@pytest.fixture
def other_name(device: str, tmp_path: Path) -> str:
    """Another node of the same device, as a container has: writing through it does not touch the times of the first."""
    path = tmp_path / "node"
    try:
        os.mknod(path, stat.S_IFBLK | 0o600, os.stat(device).st_rdev)
        path.open("rb").close()
    except PermissionError as error:
        pytest.skip(f"no device nodes can be used here: {error}")
    return str(path)


@pytest.mark.parametrize("sync", [True, False])
def test_a_device_that_is_written_to_is_not_consistent(
    repository: Repository, device: str, other_name: str, sync: bool
) -> None:
    assert reached(repository, device, lambda: write(other_name, sync=sync)) == ("none", MOVED)
    assert reached(repository, device) == ("crash", "")


def test_a_discard_is_a_change(repository: Repository, device: str) -> None:
    def discard() -> None:
        done = subprocess.run(["blkdiscard", "--length", "4096", device], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the file system below the loop device cannot discard: {done.stderr.strip()}")

    assert reached(repository, device, discard) == ("none", MOVED)


def test_reading_and_flushing_and_earlier_writes_are_no_change(repository: Repository, device: str) -> None:
    with open(device, "r+b", buffering=0) as file:  # the kernel flushes a device that nobody has open any more
        file.write(os.urandom(512))  # in the page cache when the backup begins
        assert reached(repository, device, lambda: os.fsync(file.fileno())) == ("crash", "")


def test_a_device_whose_writes_nobody_counts(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = HostFile(device)
    try:
        assert len(host.state().written) == 2
        monkeypatch.setattr(os, "major", lambda _: 4095)
        assert host.state().written == ()
        monkeypatch.delattr(os, "major")
        assert host.state().written == ()
    finally:
        host.close()


def test_a_file_has_its_times_instead(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x")
    host = HostFile(str(tmp_path / "image"))
    try:
        assert host.state().written == ()
    finally:
        host.close()
