# SPDX-License-Identifier: AGPL-3.0-or-later
"""Journals in test images of e2fsprogs, which are not part of this repository: a folder beside it holds them."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.ext_journals import by_e2fsck, differences, replayed, tool, whole

SOURCE = Path(__file__).parents[3] / "shared" / "images"
IMAGES = "raw/ext/e2fsprogs"

pytestmark = pytest.mark.skipif(not (SOURCE / "images.json").exists(), reason="the folder with others' images is not here")


def unpacked(folder: Path, *patterns: str) -> None:
    with (SOURCE / "images.tar.zst").open("rb") as archive:
        unpacker = subprocess.Popen(["zstd", "-dc"], stdin=archive, stdout=subprocess.PIPE)
        extract = ["tar", "--sparse", "-xf", "-", "-C", str(folder), "--wildcards", *patterns]
        subprocess.run(extract, stdin=unpacker.stdout, check=True)
        assert unpacker.stdout
        unpacker.stdout.close()
        assert unpacker.wait() == 0


def test_what_was_only_in_the_journal_is_there(tmp_path: Path) -> None:
    unpacked(tmp_path, "*f_jnl_64bit.img", "*j_recover_csum2_32bit.img", "manifests/*f_jnl_64bit.img#*")
    image = tmp_path / IMAGES / "f_jnl_64bit.img"
    content = whole(replayed(image))
    assert differences(content, by_e2fsck(image)) == []
    second = tmp_path / IMAGES / "j_recover_csum2_32bit.img"
    assert differences(whole(replayed(second)), by_e2fsck(second)) == []

    (tmp_path / "replayed").write_bytes(content)
    (tmp_path / "files").mkdir()
    tool("debugfs", "-R", f"rdump / {tmp_path}/files", tmp_path / "replayed")
    packed = next((tmp_path / "manifests").iterdir())
    entries = json.loads(gzip.decompress(packed.read_bytes()))["entries"]
    listed = {entry["path"]: entry["sha256"] for entry in entries if entry["type"] == "file"}
    found = {}
    for folder, _, names in os.walk(tmp_path / "files"):
        for name in names:
            path = Path(folder) / name
            found["/" + str(path.relative_to(tmp_path / "files"))] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(found) == 1206
    assert found == listed
