# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whoever can write where the repository lies exchanges it: who gave a secret is never made to write in the clear (I-8)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.program import Program

BACKUP = ("backup", "web1", "vda=disk.img")
SECRET = b"not for everybody " * 4000


@pytest.fixture
def exchanged(tmp_path: Path) -> Program:
    """An encrypted repository with a moment, in whose place now lies one without encryption."""
    program = Program(tmp_path)
    (tmp_path / "pass").write_text("correct horse\n")
    (tmp_path / "disk.img").write_bytes(SECRET)
    program.environment["EVERYWHEN_PASSPHRASE_FILE"] = str(tmp_path / "pass")
    key = program.ok("init", program.repo, "--no-reserve")["recovery_key"]
    (tmp_path / "paper").write_text(key + "\n")
    program.backup("web1", "vda=disk.img")
    shutil.rmtree(program.repo)
    del program.environment["EVERYWHEN_PASSPHRASE_FILE"]
    Program(tmp_path, more={name: str(tmp_path / "theirs") for name in ("EVERYWHEN_STATE", "EVERYWHEN_CACHE")}).init()
    return program


def test_no_secret_is_left_aside(exchanged: Program) -> None:
    """By environment or option, to write or to look: the same refusal, and nothing is stored."""
    by_option = [
        (*BACKUP, "--passphrase-file", "pass"),
        (*BACKUP, "--recovery-key-file", "paper"),
        ("status", "--passphrase-file", "pass"),
    ]
    for arguments in by_option:
        refused(exchanged, *arguments)
    exchanged.environment["EVERYWHEN_PASSPHRASE_FILE"] = str(exchanged.folder / "pass")
    for arguments in (BACKUP, ("status",), ("gc",), ("key", "add", "--new-passphrase-file", "pass")):
        refused(exchanged, *arguments)
    assert not list(exchanged.repo.glob("packs/*/*"))


def refused(program: Program, *arguments: str) -> None:
    done = program.run(*arguments, "--json")
    assert done.code == 2, (arguments, done)
    assert "says that it is not encrypted, but a passphrase was given" in done.error["what"]
    assert "somebody has replaced its superblock" in done.error["what"]


def test_who_would_have_typed_the_passphrase_is_refused_where_the_repository_was_encrypted(exchanged: Program) -> None:
    """Nobody asks for it any more; this computer remembers."""
    for arguments in (BACKUP, ("status",), ("restore", "web1", "--to", "out"), ("gc",)):
        remembered(exchanged, *arguments)
    shutil.rmtree(exchanged.folder / "cache")  # caches may be deleted at any time
    (note,) = (exchanged.folder / "host" / "_encrypted").iterdir()
    assert f"remove {note}" in str(remembered(exchanged, "status")["do"])

    # One without encryption, with the id of the encrypted one, and another way to it.
    identity = exchanged.ok("key", "list")["repository"]
    note.write_text(json.dumps({"url": "/another/way", "repository": identity}))
    remembered(exchanged, *BACKUP)
    assert not list(exchanged.repo.glob("packs/*/*"))

    # On a computer that never opened it, it cannot be noticed, and docs/threat-model.md says so.
    exchanged.environment["EVERYWHEN_STATE"] = str(exchanged.folder / "elsewhere")
    exchanged.ok(*BACKUP)


def test_who_makes_it_anew_without_encryption_knows_what_he_does(exchanged: Program) -> None:
    shutil.rmtree(exchanged.repo)
    exchanged.init()
    exchanged.ok(*BACKUP)


def remembered(program: Program, *arguments: str) -> dict[str, object]:
    done = program.run(*arguments, "--json")
    assert done.code == 7, (arguments, done)
    assert "it was when it was opened here before" in done.error["what"]
    return done.error
