# SPDX-License-Identifier: AGPL-3.0-or-later
"""A recovery key that nobody saw opens nothing; `key rotate` would even have taken away the one on paper. So `-q` shows it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.program import Program

KEY = re.compile(r"\b([0-9A-Z]{6}-){7}[0-9A-Z]{6}\b")


def test_quiet_shows_a_recovery_key(tmp_path: Path) -> None:
    program = Program(tmp_path)
    (tmp_path / "pass").write_text("correct horse\n")
    given = ("--passphrase-file", "pass")
    for command in (
        ("init", str(program.repo), "--no-reserve"),
        ("key", "recovery"),
        ("key", "sheet", "--new-recovery-key"),
        ("key", "rotate", "--new-passphrase-file", "pass"),
    ):
        done = program.run(*command, *given, "-q")
        assert done.code == 0, done
        shown = KEY.search(done.out)
        assert shown, (command, done)
        (tmp_path / "paper").write_text(shown[0] + "\n")
        assert program.run("status", "--recovery-key-file", "paper", "-q") == type(done)(0, "", "")
