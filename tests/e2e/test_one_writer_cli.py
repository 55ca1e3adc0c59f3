# SPDX-License-Identifier: AGPL-3.0-or-later
"""A file system with neither hard links nor an exclusive rename: `init` finds out, and writers take turns from then on."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from everywhen.interfaces.cli.main import main
from everywhen.repository.alone import alone
from everywhen.storage.posix import PosixStore
from everywhen.storage.posix_calls import PosixCalls
from tests.laboratory import PASSPHRASE, World


def test_one_writer_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def no_exclusive_rename(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(PosixCalls, "link", no_links)
    monkeypatch.setattr(PosixCalls, "rename_new", no_exclusive_rename)
    monkeypatch.setenv("EVERYWHEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EVERYWHEN_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("EVERYWHEN_REPO", str(tmp_path / "repo"))
    (tmp_path / "pass").write_text(f"{PASSPHRASE}\n")
    monkeypatch.setenv("EVERYWHEN_PASSPHRASE_FILE", str(tmp_path / "pass"))
    (tmp_path / "a.img").write_bytes(b"a" * 65536)

    def run(*arguments: str) -> int:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--json"])
        return int(ended.value.code or 0)

    assert run("init", str(tmp_path / "repo"), "--no-reserve") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["several_writers"] is False
    assert "backups, captures and gc take turns" in shown.err
    backup = ("backup", "web1", f"vda={tmp_path / 'a.img'}")
    assert run(*backup) == 0
    with World(tmp_path / "world").open(PosixStore(tmp_path / "repo")) as elsewhere, alone(elsewhere, "backup"):
        new = ("--new-passphrase-file", str(tmp_path / "pass"))
        for command in (backup, ("gc",), ("key", "add", *new), ("key", "rotate", *new), ("key", "recovery")):
            assert run(*command) == 4
            assert "cannot keep two writers apart" in json.loads(capsys.readouterr().out)["error"]["what"]
    assert run(*backup) == 0
    assert run("gc") == 0
    assert run("key", "rotate", *new) == 0
