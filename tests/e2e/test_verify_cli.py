# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen verify` as it is typed: exit codes, the document, what people read, repair from a copy and from a disk."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from everywhen.storage.posix import PosixStore
from tests import damage_recipes as broken

BLOCK = 65536


@dataclass
class Machine:
    """A folder with a repository `repo`, an image, and the environment of its user."""

    folder: Path
    env: dict[str, str]

    def run(self, *words: str, code: int = 0) -> str:
        return self.ended(*words, code=code).stdout

    def ended(self, *words: str, code: int) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", "from everywhen.interfaces.cli.main import main; main()", *words],
            env=self.env,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=100,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def document(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", code=code))

    @property
    def store(self) -> PosixStore:
        return PosixStore(str(self.folder / "repo"))

    @property
    def image(self) -> Path:
        return self.folder / "web1.raw"

    def largest_pack(self) -> str:
        return max(self.store.list("packs/"), key=lambda found: found.size).name


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    env = {
        "PATH": os.environ["PATH"],
        "EVERYWHEN_REPO": str(tmp_path / "repo"),
        "EVERYWHEN_CACHE": str(tmp_path / "cache"),
        "EVERYWHEN_STATE": str(tmp_path / "state"),
        "EVERYWHEN_PASSPHRASE_FILE": str(secret),
        "TZ": "UTC",
    }
    made = Machine(tmp_path, env)
    made.image.write_bytes(random.Random(5).randbytes(20 * BLOCK))
    made.run("init", str(tmp_path / "repo"), "--no-reserve")
    made.run("backup", "web1", f"vda={made.image}")
    return made


def test_a_whole_repository(machine: Machine) -> None:
    assert "No damage found." in machine.run("verify", "--read-data")
    found = machine.document("verify")
    assert (found["damaged"], found["findings"], found["points"], found["repaired"]) == (False, [], 1, None)
    assert stat.S_IMODE((machine.folder / "cache").stat().st_mode) == 0o700


def test_damage_is_named_and_repaired_from_the_disk(machine: Machine) -> None:
    pack = machine.largest_pack()
    broken.flip(machine.store, pack, 128 + 100)  # the first record
    refused = machine.document("restore", "web1/vda", "--to", str(machine.folder / "back.raw"), code=3)["error"]
    assert "everywhen verify --read-data" in str(refused["do"])
    streamed = machine.ended("restore", "web1/vda", "--to", "-", code=3).stderr
    text = machine.run("verify", "--read-data", code=3)
    assert f"DAMAGED  1 chunk in {pack} at byte 128: authentication tag wrong" in text
    assert "  web1/vda  bytes " in text
    assert "in 1 moment, " in text
    assert "Not affected: everything else of web1/vda, and all other disks and VMs." in text
    found = machine.document("verify", code=3)
    [finding] = found["findings"]
    [loss] = finding["losses"]
    assert (finding["object"], finding["offset"], loss["vm"], loss["name"]) == (pack, 128, "web1", "vda")
    [[start, end]] = loss["ranges"]
    assert (start % BLOCK, end - start) == (0, BLOCK)
    for told in (refused["what"], streamed):
        assert f"web1/vda@{loss['points'][0]} is damaged: bytes {start:,} - {end - 1:,}: no readable copy" in told
    repaired = machine.document("verify", "--repair-from", f"web1/vda={machine.image}")
    assert repaired["repaired"]["chunks"] == {str(machine.image): 1}
    assert not repaired["damaged"]
    assert "Nothing is left to repair." in machine.run("verify", "--read-data")
    machine.run("restore", "web1@latest", "--to", str(machine.folder / "back.raw"))
    assert (machine.folder / "back.raw").read_bytes() == machine.image.read_bytes()


def test_repair_from_an_image_with_a_parent_elsewhere(machine: Machine) -> None:
    overlay = machine.folder / "below" / "web1.qcow2"
    overlay.parent.mkdir()
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(machine.image), str(overlay)]
    subprocess.run(create, check=True)
    broken.flip(machine.store, machine.largest_pack(), 128 + 100)
    machine.run("verify", "--read-data", code=3)
    source = ("verify", "--repair-from", f"web1/vda={overlay}")
    refused = machine.ended(*source, code=1)
    assert "if you trust this image: --allow-outside" in refused.stderr
    # Said to be raw, it is another disk: nothing of it is what is lost.
    assert not machine.document(*source, "--image-format", "web1/vda=raw", code=3)["repaired"]["chunks"]
    machine.run(*source, "--image-format", "web2/vda=raw", code=2)
    assert machine.document(*source, "--allow-outside")["repaired"]["chunks"] == {str(overlay): 1}


def test_a_copy_is_whole_although_a_backup_came_between(machine: Machine) -> None:
    """As `everywhen help repository` says to do it."""
    copy, first = machine.folder / "copy", ("points", "twins/points")
    for name in first:
        shutil.copytree(machine.folder / "repo" / name, copy / name)
    machine.image.write_bytes(random.Random(6).randbytes(20 * BLOCK))
    machine.run("backup", "web1", f"vda={machine.image}")
    rest = shutil.ignore_patterns("points")
    shutil.copytree(machine.folder / "repo", copy, ignore=rest, dirs_exist_ok=True)
    assert machine.document("verify", "--read-data", "--repo", str(copy))["points"] == 1


def test_repair_from_a_copy_of_the_same_repository(machine: Machine) -> None:
    shutil.copytree(machine.folder / "repo", machine.folder / "copy")
    machine.store.delete(machine.largest_pack())
    machine.image.unlink()
    assert "no pack" in machine.run("verify", code=3)
    text = machine.run("verify", "--repair-from", str(machine.folder / "copy"))
    assert "chunks stored anew from" in text
    assert not machine.document("verify", "--read-data")["damaged"]
    machine.run("restore", "web1@latest", "--to", str(machine.folder / "back.raw"))
    assert (machine.folder / "back.raw").read_bytes() == random.Random(5).randbytes(20 * BLOCK)


def test_repair_writes_second_copies_again(machine: Machine) -> None:
    broken.remove(machine.store, "everywhen")
    assert "nothing is lost: there is a good copy, twins/everywhen" in machine.run("verify", code=3)
    assert machine.document("verify", "--repair")["repaired"]["objects"] == 1
    assert not machine.document("verify")["findings"]


def test_a_source_of_another_family_is_refused(machine: Machine) -> None:
    machine.run("init", str(machine.folder / "stranger"), "--no-reserve")
    machine.store.delete(machine.largest_pack())
    found = machine.document("verify", "--repair-from", str(machine.folder / "stranger"), code=2)
    assert found["error"]["code"] == "wrong_usage"


def test_a_disk_that_never_was_is_refused(machine: Machine) -> None:
    machine.store.delete(machine.largest_pack())
    assert machine.document("verify", "--repair-from", f"web1/vdz={machine.image}", code=6)["error"]["code"] == "not_found"


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere; the read-only store is a unit test")
def test_a_folder_that_cannot_be_written(machine: Machine) -> None:
    for folder in [machine.folder / "repo", *(p for p in (machine.folder / "repo").rglob("*") if p.is_dir())]:
        folder.chmod(0o500)
    assert not machine.document("verify")["damaged"]
