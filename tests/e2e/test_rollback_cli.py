# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen rollback` of a VM that is off, as a user runs it: there and forward again, and what it refuses."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everywhen.block.target_mark import Mark, leave_mark, mark_path
from tests.program import Done, Program, await_, ended

MIB = 1 << 20


class Vm:
    """One raw disk of a MiB, backed up as it was and as it is."""

    def __init__(self, folder: Path) -> None:
        self.program = Program(folder).init()
        self.image = folder / "vda.raw"
        self.then = os.urandom(MIB)
        self.image.write_bytes(self.then)
        self.first = self.program.backup("web1", f"vda={self.image}")["point"]
        self.write(300_000, b"newer")

    def write(self, offset: int, data: bytes) -> None:
        with self.image.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def run(self, *arguments: str) -> Done:
        return self.program.run("rollback", *arguments, "--disk", f"vda={self.image}", "--json")

    def ok(self, *arguments: str) -> Any:
        done = self.run(*arguments)
        assert done.code == 0, done
        return done.document["vms"]["web1"]

    def content(self, moment: str) -> bytes:
        target = self.program.folder / "restored"
        self.program.restore(moment, target, "--overwrite")
        return target.read_bytes()


@pytest.fixture
def vm(tmp_path: Path) -> Vm:
    return Vm(tmp_path)


def test_back_and_forward_again(vm: Vm) -> None:
    now = vm.image.read_bytes()
    packs = vm.program.packs()
    done = vm.ok(f"web1@{vm.first}")
    assert vm.image.read_bytes() == vm.then
    assert (done["bytes_written"], done["branch"]) == (65536, "web1~1")
    assert vm.program.packs() - packs < 20_000, "nothing but what was written since"
    assert vm.content("web1@latest") == vm.then
    assert vm.content("web1~1") == vm.content("web1~1@latest") == now
    newest = vm.program.ok("points")[0]
    assert newest["rolled_back"]["branch"] == "web1~1"
    assert newest["parent"] == done["present"]
    told = vm.program.run("timeline", "web1").out
    assert "before: web1~1" in told
    vm.write(0, b"on this branch")
    other = vm.image.read_bytes()
    assert vm.ok("web1~1")["branch"] == "web1~2"
    assert vm.image.read_bytes() == now
    assert vm.content("web1~2") == other
    assert vm.ok("web1", "--undo")["branch"] == "web1~3"
    assert vm.image.read_bytes() == other
    assert vm.program.run("restore", "web1~4", "--to", "x").code == 6
    assert vm.program.run("verify", "--read-data").code == 0


def test_nothing_is_done_where_it_is_only_asked_what_would_be(vm: Vm) -> None:
    now = vm.image.read_bytes()
    points = vm.program.ok("points")
    found = vm.ok(f"web1@{vm.first}", "--dry-run")
    assert (found["runs"], found["branch"], found["disks"]["vda"]["size"]) == (False, "web1~1", MIB)
    assert vm.image.read_bytes() == now
    assert vm.program.ok("points") == points


def test_what_is_refused(vm: Vm, tmp_path: Path) -> None:
    now = vm.image.read_bytes()
    assert vm.run("web1").code == 2, "back to when?"
    assert vm.run("web1@latest:/etc").code == 2
    assert vm.run("web1~1").code == 6
    assert vm.run("web1", "--undo").code == 6
    assert vm.run("web1/vdb@latest").code == 6
    assert vm.run("other@latest").code == 6
    assert vm.program.run("rollback", f"web1@{vm.first}", "--disk", "vda=missing.raw").code == 6
    (tmp_path / "b.raw").write_bytes(bytes(512))
    found = vm.program.run("rollback", f"web1@{vm.first}", "--disk", f"vdb={tmp_path / 'b.raw'}", "--json")
    assert (found.code, "had a disk vda then" in found.error["what"]) == (6, True)
    assert vm.program.run("rollback", f"web1@{vm.first}", f"web1@{vm.first}", "--disk", "vda=x").code == 2
    place = mark_path(str(vm.image))
    leave_mark(place, Mark("web1/vda@12:00", str(vm.image), MIB))
    assert vm.run(f"web1@{vm.first}").code == 4
    Path(place).unlink()
    assert vm.image.read_bytes() == now
    assert len(vm.program.ok("points")) == 1


def test_an_image_that_a_running_machine_has_is_not_touched(vm: Vm, tmp_path: Path) -> None:
    now = vm.image.read_bytes()
    socket = tmp_path / "s"
    with subprocess.Popen(["qemu-nbd", "-f", "raw", "-k", str(socket), "--persistent", str(vm.image)], text=True) as server:
        try:
            await_(server, socket.exists)
            assert vm.run(f"web1@{vm.first}").code == 4
        finally:
            server.terminate()
    assert vm.image.read_bytes() == now
    assert not (tmp_path / "host/web1/rollback.json").exists(), "nothing is under way"


def test_one_disk_alone(vm: Vm, tmp_path: Path) -> None:
    other = tmp_path / "vdb.raw"
    other.write_bytes(bytes(MIB))
    images = (f"vda={vm.image}", f"vdb={other}")
    both = vm.program.backup("web1", *images)["point"]
    now = vm.image.read_bytes()
    vm.write(0, b"more")
    other.write_bytes(b"x" * MIB)
    done = vm.program.run("rollback", f"web1/vda@{both}", "--disk", images[0], "--disk", images[1], "--json")
    assert done.code == 0, done
    assert (vm.image.read_bytes(), other.read_bytes()) == (now, b"x" * MIB)
    assert "stay as they are" in done.err
    vm.program.restore("web1", tmp_path / "back")
    assert (tmp_path / "back/web1-vda.raw").read_bytes() == now
    assert (tmp_path / "back/web1-vdb.raw").read_bytes() == b"x" * MIB
    listed = vm.program.run("ls", "web1~1/vda@latest:/", "--json")
    assert listed.code in (0, 6), "no file system, but the branch is one"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_where_there_is_no_room_for_what_it_held(vm: Vm, small: Path) -> None:
    """Its image is thin, and was moved to where it has less room than it took then."""
    thin = small / "vda.raw"
    with thin.open("wb") as file:
        file.truncate(MIB)
    (small / "other").write_bytes(bytes(MIB + MIB // 2))
    found = vm.program.run("rollback", f"web1@{vm.first}", "--disk", f"vda={thin}", "--json")
    assert (found.code, "may grow by" in found.error["what"]) == (8, True)
    assert thin.read_bytes() == bytes(MIB)
    assert "rollback of web1 is under way" in vm.program.run("status").out
    (small / "other").unlink()
    thin.write_bytes(bytes(MIB))
    assert vm.program.run("rollback", f"web1@{vm.first}", "--disk", f"vda={thin}").code == 0
    assert thin.read_bytes() == vm.then


def test_no_libvirt_is_needed_for_images_that_are_named(vm: Vm, tmp_path: Path) -> None:
    (tmp_path / "libvirt.py").write_text("raise ImportError('no libvirt here')")
    vm.program.environment["PYTHONPATH"] = str(tmp_path)
    done = ended(vm.program.start("rollback", f"web1@{vm.first}", "--disk", f"vda={vm.image}"))
    assert done.code == 0, done
    assert vm.image.read_bytes() == vm.then
    without = ended(vm.program.start("rollback", f"web1@{vm.first}"))
    assert (without.code, "--disk DISK=IMAGE" in without.err) == (1, True)
