# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen mount` as it is typed: moments as folders of a real file system, disks as files that others' programs open."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from everywhen.storage.posix import PosixStore
from tests import damage_recipes as broken
from tests.mounts import Mount, can_mount
from tests.program import Done, Program, await_, ended, qemu_img, same

pytestmark = can_mount

MIB = 1 << 20
SIZE = 9 * MIB + 70_001


@dataclass
class Backed:
    """Two points of a VM's disk, and what the disk held at each."""

    program: Program
    moments: list[Path]
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repository, and `then-0.raw` and `then-1.raw`, what the disk held at its two points."""
    folder = tmp_path_factory.mktemp("made")
    program = Program(folder).init()
    chance = random.Random(4)
    image = folder / "web1.raw"
    image.write_bytes(chance.randbytes(3 * MIB) + bytes(4 * MIB) + chance.randbytes(SIZE - 7 * MIB))
    for number in range(2):
        program.backup("web1", f"vda={image}")
        shutil.copy(image, folder / f"then-{number}.raw")
        with image.open("r+b") as file:
            file.seek(5 * MIB)
            file.write(chance.randbytes(70_000))
    return folder


@pytest.fixture
def backed(made: Path, tmp_path: Path) -> Backed:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "all moments"
    folder.mkdir()
    return Backed(Program(tmp_path), [tmp_path / f"then-{number}.raw" for number in range(2)], folder)


def disks_of(mount: Mount) -> list[Path]:
    """The folders of the points' disks, oldest first."""
    return [moment / "disk" for moment in mount.moments()]


@pytest.fixture
def mount(backed: Backed) -> Iterator[Mount]:
    mounted = Mount(backed.program, backed.folder)
    yield mounted
    mounted.take_away()


def test_disks_of_two_moments(backed: Backed, mount: Mount, tmp_path: Path) -> None:
    assert os.listdir(mount.folder) == ["web1"]
    for disks, then in zip(disks_of(mount), backed.moments, strict=True):
        assert sorted(os.listdir(disks)) == ["vda.qcow2", "vda.raw", "vda.vhd", "vda.vhdx", "vda.vmdk"]
        assert (disks / "vda.raw").read_bytes() == then.read_bytes()
        for name, kind in (("qcow2", "qcow2"), ("vhdx", "vhdx"), ("vhd", "vpc"), ("vmdk", "vmdk")):
            same(then, disks / f"vda.{name}", formats=("raw", kind))
        qemu_img("check", "-f", "qcow2", disks / "vda.qcow2")
        assert (disks / "vda.raw").stat().st_blocks * 512 < SIZE - 3 * MIB, "holes are told"
        with (disks / "vda.raw").open("rb") as file:
            assert os.lseek(file.fileno(), 1, os.SEEK_HOLE) == 3 * MIB
            assert os.lseek(file.fileno(), 6 * MIB, os.SEEK_DATA) == 7 * MIB
            assert os.lseek(file.fileno(), 6 * MIB, os.SEEK_HOLE) == 6 * MIB
    backed.program.restore("web1@latest", tmp_path / "restored.qcow2", "--format", "qcow2")
    assert (disks_of(mount)[1] / "vda.qcow2").read_bytes() == (tmp_path / "restored.qcow2").read_bytes()
    assert mount.document == {"mounted": str(mount.folder), "repository": str(backed.program.repo)}
    assert mount.end(signal.SIGINT) == Done(0, "", "")
    assert not os.path.ismount(mount.folder)


def test_any_moment_can_be_typed_and_nothing_written(backed: Backed, mount: Mount) -> None:
    vm = mount.folder / "web1"
    first, last = (disks.parent.name for disks in disks_of(mount))
    points = backed.program.ok("points", "web1")
    assert os.readlink(vm / "@latest") == last
    assert os.readlink(vm / f"@{points[-1]['id']}") == first
    assert os.readlink(vm / "@-0s") == last
    assert (vm / "@-0s/disk/vda.raw").read_bytes() == backed.moments[1].read_bytes()
    for missing in ("@-1d", "@p-zzz", "latest", "@latest/disk/vdb.raw", "../web2"):
        assert not os.path.lexists(vm / missing)
    for change in (
        lambda: (vm / "@new").mkdir(),
        lambda: (vm / "@latest/disk/vda.raw").write_bytes(b""),
        lambda: (vm / "@latest/disk/vda.raw").unlink(),
        lambda: (vm / "@latest/disk/new").touch(),
    ):
        with pytest.raises(OSError, match="Read-only file system") as refused:
            change()
        assert refused.value.errno == errno.EROFS
    backed.program.backup("web1", f"vda={backed.moments[0]}")
    await_(mount.process, lambda: os.readlink(vm / "@latest") != last)
    assert (vm / "@latest/disk/vda.raw").read_bytes() == backed.moments[0].read_bytes()
    assert (vm / last / "disk/vda.raw").read_bytes() == backed.moments[1].read_bytes()


def test_several_read_at_once_until_it_is_ended(backed: Backed, mount: Mount) -> None:
    content = [then.read_bytes() for then in backed.moments]

    def read(number: int) -> None:
        chance = random.Random(number)
        with (disks_of(mount)[number % 2] / "vda.raw").open("rb", buffering=0) as file:
            for _ in range(60):
                at, length = chance.randrange(SIZE), chance.choice([1, 4096, 300_000])
                file.seek(at)
                assert file.read(length) == content[number % 2][at : at + length]

    with ThreadPoolExecutor(6) as readers:
        list(readers.map(read, range(6)))
    with (disks_of(mount)[0] / "vda.raw").open("rb") as file:
        assert len(file.read(1)) == 1
        assert mount.end(signal.SIGTERM) == Done(0, "", "")
        assert not os.path.ismount(mount.folder)
        assert os.listdir(mount.folder) == []
    assert not list((backed.program.repo / "leases").glob("*")), "what was open is let go of"


def test_after_a_kill_it_mounts_again(backed: Backed, mount: Mount, tmp_path: Path) -> None:
    again = backed.program.run("mount", mount.folder)
    assert (again.code, "mounted there already" in again.err) == (4, True)
    assert (disks_of(mount)[0] / "vda.raw").read_bytes() == backed.moments[0].read_bytes()
    assert [one["what"] for one in backed.program.ok("sessions")] == [f"mount {mount.folder}", "mount web1"]
    mount.process.kill()
    mount.process.communicate()
    assert backed.program.ok("sessions") == []
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mount.folder)
    second = Mount(backed.program, backed.folder)
    try:
        assert (disks_of(second)[0] / "vda.raw").read_bytes() == backed.moments[0].read_bytes()
        subprocess.run(["fusermount3", "-u", second.folder], check=True)
        assert ended(second.process).code == 0
    finally:
        second.take_away()


def test_folders_that_do_not_do(program: Program, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    refused = program.run("mount", full)
    assert (refused.code, "not empty" in refused.err) == (2, True)
    missing = program.run("mount", tmp_path / "missing", "--json")
    assert missing.code == 6
    assert missing.error["do"] == [f"mkdir {tmp_path / 'missing'}"]
    assert program.run("mount", full / "file").code == 2


def test_a_damaged_block_is_an_error_of_its_own(backed: Backed) -> None:
    store = PosixStore(str(backed.program.repo))
    pack = max(store.list("packs/"), key=lambda found: found.size).name
    broken.flip(store, pack, 128 + 100)  # the first record
    mount = Mount(backed.program, backed.folder)
    try:
        with pytest.raises(OSError, match="Input/output error"):
            (disks_of(mount)[0] / "vda.raw").read_bytes()
        with (disks_of(mount)[0] / "vda.raw").open("rb", buffering=0) as file:
            file.seek(SIZE - 1000)
            assert len(file.read(1000)) == 1000
        done = mount.end(signal.SIGINT)
    finally:
        mount.take_away()
    assert (done.code, len(done.err.splitlines())) == (0, 1)
    assert "vda.raw: " in done.err
