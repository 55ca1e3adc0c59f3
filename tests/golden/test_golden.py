# SPDX-License-Identifier: AGPL-3.0-or-later
"""Repositories that earlier programs wrote: opened, restored, verified, cleaned and written to by this one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FORMATS = sorted(path.name.removesuffix(".json") for path in HERE.glob("format-*.json"))
PASSPHRASE = "golden passphrase"  # noqa: S105 - of a repository that everybody may open


class Golden:
    def __init__(self, folder: Path, name: str, encryption: str) -> None:
        self.folder = folder
        self.expected: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())[encryption]
        with tarfile.open(HERE / f"{name}.tar.xz") as archive:
            members = [member for member in archive if member.name.startswith(encryption + "/")]
            archive.extractall(folder, members, filter="data")
        self.repository = folder / encryption
        (folder / "secret").write_text(PASSPHRASE + "\n")

    def run(self, *arguments: str, secret: str = "--passphrase-file", code: int = 0) -> str:  # noqa: S107 - an option's name
        program = str(Path(sys.executable).parent / "everywhen")
        environment = {**os.environ, "EVERYWHEN_CACHE": str(self.folder / "cache"), "EVERYWHEN_REPO": str(self.repository)}
        command = [program, *arguments, secret, str(self.folder / "secret")]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout

    def check_restores(self) -> None:
        for point in self.expected["points"]:
            for disk, wanted in point["sha256"].items():
                target = self.folder / f"{point['point']}-{disk}"
                self.run("restore", f"gold/{disk}@{point['point']}", "--to", str(target), "--overwrite")
                assert hashlib.sha256(target.read_bytes()).hexdigest() == wanted


@pytest.fixture(params=[(name, encryption) for name in FORMATS for encryption in ("aes-256-gcm", "none")], ids="-".join)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    return Golden(tmp_path, *request.param)


def test_every_point_restores(golden: Golden) -> None:
    points = json.loads(golden.run("points", "--json"))
    assert [(p["id"], p["time"]) for p in reversed(points)] == [(p["point"], p["time"]) for p in golden.expected["points"]]
    assert points[-1]["held"] == [{"reason": "golden", "until": None}]
    golden.check_restores()


def test_it_verifies_and_can_be_written_to(golden: Golden) -> None:
    golden.run("verify", "--read-data")
    stored = json.loads(golden.run("backup", "gold", f"vda={golden.folder / 'secret'}", "--image-format", "vda=raw", "--json"))
    assert stored["disks"]["vda"]["size"] == len(PASSPHRASE) + 1
    golden.run("gc")
    golden.check_restores()


@pytest.mark.parametrize("name", FORMATS)
def test_the_recovery_key_still_opens_it(name: str, tmp_path: Path) -> None:
    golden = Golden(tmp_path, name, "aes-256-gcm")
    (tmp_path / "secret").write_text(golden.expected["recovery_key"] + "\n")
    assert golden.run("points", "--json", secret="--recovery-key-file")  # noqa: S106 - the name of an option


@pytest.mark.parametrize("broken", ["data", "meta"])
def test_a_broken_one_is_told_exactly(golden: Golden, broken: str) -> None:
    """A flip in the largest pack (data: something is lost) or in a pack with a twin (nothing is)."""
    packs = sorted((golden.repository / "packs").rglob("*/*"), key=lambda path: path.stat().st_size)
    twins = {path.name for path in (golden.repository / "twins/packs").rglob("*/*")}
    chosen = [path for path in packs if (path.name in twins) == (broken == "meta")][-1]
    content = bytearray(chosen.read_bytes())
    content[200] ^= 1
    chosen.write_bytes(content)
    found = json.loads(golden.run("verify", "--read-data", "--json", code=3))
    assert chosen.name in json.dumps(found)
    lost = "vda" in json.dumps([finding.get("losses") for finding in found["findings"]])
    assert lost == (broken == "data")
