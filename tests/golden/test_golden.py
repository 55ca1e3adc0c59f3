# SPDX-License-Identifier: AGPL-3.0-or-later
"""Repositories that earlier programs wrote: opened, restored, verified, cleaned and written to by this one."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import time
from pathlib import Path
from typing import IO, Any, cast

import pytest

from tests.long_forms import SOAK
from tests.moments import nanoseconds
from tests.program import Program

HERE = Path(__file__).parent
_ALL = sorted(path.name.removesuffix(".json") for path in HERE.glob("format-*.json"))
CAPTURED = [name for name in _ALL if name.endswith("-captured")]
ROLLED_BACK = [name for name in _ALL if name.endswith("-rolled-back")]
FORMATS = [name for name in _ALL if name not in CAPTURED + ROLLED_BACK]
ENCRYPTIONS = ("aes-256-gcm", "none")
PASSPHRASE = "golden passphrase"  # noqa: S105 - of a repository that everybody may open


class Golden:
    def __init__(self, folder: Path, name: str, encryption: str) -> None:
        self.folder = folder
        self.expected: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())[encryption]
        with tarfile.open(HERE / f"{name}.tar.xz") as archive:
            # By hand: Debian 12's Python knows no extraction filters, and newer ones warn of none.
            for member in archive:
                if member.isfile() and member.name.startswith(encryption + "/"):
                    place = folder / member.name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(cast("IO[bytes]", archive.extractfile(member)).read())
                    os.utime(place, (member.mtime, member.mtime))
        self.repository = folder / encryption
        self.encrypted = encryption != "none"
        (folder / "secret").write_text(PASSPHRASE + "\n")
        (folder / "key").write_text(f"{self.expected['recovery_key']}\n")
        self.program = Program(folder, encryption)

    def run(self, *arguments: str, recovery_key: bool = False, code: int = 0) -> str:
        secret = ("--recovery-key-file", "key") if recovery_key else ("--passphrase-file", "secret")
        done = self.program.run(*arguments, *(secret if self.encrypted else ()))
        assert done.code == code, done
        return done.out

    def check_restores(self) -> None:
        for point in self.expected["points"]:
            for disk, wanted in point["sha256"].items():
                target = self.folder / f"{point['point']}-{disk}"
                self.run("restore", f"gold/{disk}@{point['point']}", "--to", str(target), "--overwrite")
                assert hashlib.sha256(target.read_bytes()).hexdigest() == wanted


@pytest.fixture(params=[(name, encryption) for name in FORMATS for encryption in ENCRYPTIONS], ids="-".join)
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
    assert Golden(tmp_path, name, "aes-256-gcm").run("points", "--json", recovery_key=True)


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


@pytest.mark.parametrize("encryption", ENCRYPTIONS)
@pytest.mark.parametrize("name", CAPTURED)
def test_what_was_captured_is_there(name: str, encryption: str, tmp_path: Path) -> None:
    """Points and moments of two streams, the gap between them, a group's instant, and what was counted minute by minute."""
    golden = Golden(tmp_path, name, encryption)
    expected = golden.expected
    golden.program.later_s = (nanoseconds(expected["made"]) - time.time_ns()) // 10**9  # figures are of the last days

    def run(*arguments: str) -> Any:
        """By the recovery key, which opens in no time."""
        return json.loads(golden.run(*arguments, "--json", recovery_key=True))

    def sums(moment: str) -> dict[str, str]:
        run("restore", moment, "--to", "back", "--overwrite", "--exact")
        found = sorted((tmp_path / "back").glob("*.raw"))
        return {path.stem.partition("-")[2]: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}

    assert [{"id": point["id"], "time": point["time"]} for point in run("points", "gold")] == expected["points"]
    for moment in expected["moments"]:
        assert sums(f"gold@{moment['time']}") == moment["sha256"]
    assert sums("gold@mine") == expected["mine"]
    assert sums("gold@latest") == expected["latest"]
    ours = run("restore", "group:pair@ours", "--to", "both")
    assert (ours["time"], ours["write_order"]) == (expected["ours"]["time"], True)
    for vm, wanted in expected["ours"]["sha256"].items():
        for disk, digest in wanted.items():
            assert hashlib.sha256((tmp_path / "both" / vm / f"{vm}-{disk}.raw").read_bytes()).hexdigest() == digest
    assert run("timeline", "gold")["gaps"] == expected["gaps"]
    (numbers,) = run("stats", "gold")["vms"]
    assert {key: numbers[key] for key in ("write_amplification", "last_24_hours")} == {
        key: expected[key] for key in ("write_amplification", "last_24_hours")
    }
    run("verify", "--read-data")


@pytest.mark.parametrize("encryption", ENCRYPTIONS if SOAK else ENCRYPTIONS[1:])
@pytest.mark.parametrize("name", ROLLED_BACK)
def test_what_a_rollback_left_still_opens(name: str, encryption: str, tmp_path: Path) -> None:
    golden = Golden(tmp_path, name, encryption)
    points = json.loads(golden.run("points", "--json"))
    assert [{"id": point["id"], "rolled_back": point["rolled_back"]} for point in points] == golden.expected["points"]
    for moment, wanted in golden.expected["moments"].items():
        golden.run("restore", moment, "--to", "vda", "--overwrite")
        assert hashlib.sha256((tmp_path / "vda").read_bytes()).hexdigest() == wanted, moment
    golden.run("verify", "--read-data")
