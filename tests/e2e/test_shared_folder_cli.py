# SPDX-License-Identifier: AGPL-3.0-or-later
"""A repository in a folder that holds other files: `init` says so, and nobody counts, follows or deletes them."""

from __future__ import annotations

import os
from pathlib import Path

from tests.program import Program


def test_other_files_in_the_folder(tmp_path: Path) -> None:
    program = Program(tmp_path)
    (program.repo / "photos").mkdir(parents=True)
    foreign = [
        program.repo / name for name in (".tmp-mine", ".tmp-1-1x", "photos/.tmp-mine", "photos/.tmp-1-1", "photos/a.jpg")
    ]
    for path in foreign:
        path.write_bytes(b"mine" * 1000)
        os.utime(path, (0, 0))
    (program.repo / "elsewhere").symlink_to(tmp_path)
    done = program.run("init", program.repo, "--encryption", "none", "--no-reserve")
    assert done.code == 0, done
    assert f"there is something else in {program.repo} (.tmp-1-1x, .tmp-mine, elsewhere, …)" in done.err

    (tmp_path / "a.img").write_bytes(b"a" * 65536)
    program.backup("web1", "vda=a.img")
    program.ok("gc")
    assert all(path.exists() for path in foreign)
    ours = [path for path in program.repo.rglob("*") if path.is_file() and path not in foreign]
    assert program.ok("stats")["stored_bytes"] == sum(path.stat().st_size for path in ours)
    program.ok("verify", "--read-data")


def test_an_empty_folder_is_nothing_to_speak_of(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program.repo.mkdir()
    assert "something else" not in program.run("init", program.repo, "--encryption", "none", "--no-reserve").err
