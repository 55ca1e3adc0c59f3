# SPDX-License-Identifier: AGPL-3.0-or-later
"""The program with a repository on an object store, as a user names it: S3 (SeaweedFS) and Azure (Azurite)."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.contract.storage.conftest import azure, s3
from tests.program import BLOCK, Program, ended, same

__all__ = ["azure", "s3"]

VARIABLES = {
    "s3": {"endpoint": "AWS_ENDPOINT_URL", "access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"}
    | {"region": "AWS_REGION"},
    "azure": {"account_name": "AZURE_STORAGE_ACCOUNT_NAME", "account_key": "AZURE_STORAGE_ACCOUNT_KEY"}
    | {"endpoint": "AZURE_STORAGE_ENDPOINT"},
}
HOUR = 3600


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.xdist_group("clouds")) for name in VARIABLES])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Program:
    """A repository of this test's own, encrypted."""
    bucket: str
    options: Mapping[str, str]
    bucket, options = request.getfixturevalue(request.param)
    environment = {VARIABLES[request.param][key]: value for key, value in options.items()}
    environment |= {"EVERYWHEN_REPO": f"{bucket}/{uuid.uuid4().hex}", "EVERYWHEN_PASSPHRASE_FILE": str(tmp_path / "passphrase")}
    (tmp_path / "passphrase").write_text("correct horse\n")
    program = Program(tmp_path, more=environment)
    made = program.ok("init", environment["EVERYWHEN_REPO"])
    assert made["several_writers"]
    assert made["url"] == environment["EVERYWHEN_REPO"]
    return program


def test_from_init_to_gc(program: Program, tmp_path: Path) -> None:
    image, rng = tmp_path / "a.img", random.Random(1)
    image.write_bytes(rng.randbytes(80 * BLOCK))
    os.truncate(image, 1000 * BLOCK)
    first = program.backup("web1", f"vda={image}")
    assert first["bytes_stored"] >= 80 * BLOCK
    old = image.read_bytes()
    with image.open("r+b") as file:
        file.write(rng.randbytes(40 * BLOCK))
    second = program.backup("web1", f"vda={image}")
    assert 40 * BLOCK <= second["bytes_stored"] < 41 * BLOCK
    assert [point["id"] for point in program.ok("points")] == [second["point"], first["point"]]
    program.restore("web1/vda", tmp_path / "new.img")
    same(image, tmp_path / "new.img")
    # Another computer, without the caches of this one.
    program.environment["EVERYWHEN_CACHE"] = str(tmp_path / "elsewhere")
    program.restore(f"web1/vda@{first['point']}", tmp_path / "old.img")
    assert (tmp_path / "old.img").read_bytes() == old

    program.ok("policy", "set", "--default", "last 1")
    program.ok("prune", "--yes-more-than-a-third")
    program.later_s = 100 * HOUR
    freed = program.ok("gc", "--yes-the-clock-is-right")
    assert freed["points_deleted"] == 1
    assert freed["bytes_freed"] >= 40 * BLOCK
    assert program.ok("verify", "--read-data")
    program.restore("web1/vda", tmp_path / "new.img", "--overwrite")
    same(image, tmp_path / "new.img")


def test_two_computers_at_once(program: Program, tmp_path: Path) -> None:
    images, running = [], []
    for number in range(2):
        image = tmp_path / f"{number}.img"
        image.write_bytes(random.Random(0).randbytes(60 * BLOCK) + random.Random(number).randbytes(60 * BLOCK))
        program.environment["EVERYWHEN_CACHE"] = str(tmp_path / f"cache-{number}")
        images.append(image)
        running.append(program.start("backup", "web1", f"vda={image}", "--json"))
    for image, process in zip(images, running, strict=True):
        point = ended(process).document["point"]
        program.restore(f"web1/vda@{point}", tmp_path / f"{point}.img")
        same(image, tmp_path / f"{point}.img")
    assert len(program.ok("points", "web1")) == 2


def test_wrong_credentials_and_addresses_are_said(program: Program) -> None:
    wrong = program.run("points", "--repo", program.environment["EVERYWHEN_REPO"] + "-not", "--json")
    assert wrong.code == 6, wrong
    secret = next(name for name in program.environment if name.endswith(("SECRET_ACCESS_KEY", "ACCOUNT_KEY")))
    program.environment[secret] = "bm90IHRoZSByaWdodCBrZXk="
    denied = program.run("points", "--json")
    assert denied.code == 7, denied
    assert program.environment[secret] not in denied.out + denied.err
