# SPDX-License-Identifier: AGPL-3.0-or-later
"""Each command runs with its own module alone, and help knows all of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from everywhen.interfaces.cli.main import ALONE, MODULES

_REPORT = """
import sys
from everywhen.interfaces.cli.main import load_commands, main
load_commands(sys.argv[1])
print(*sorted(name.rpartition(".")[2] for name in sys.modules if name.startswith("everywhen.interfaces.cli.")), file=sys.stderr)
main()
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _REPORT, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("word", ALONE)
def test_a_command_loads_no_other_one(word: str) -> None:
    done = _run(word, "--help")
    assert done.returncode == 0
    assert f"everywhen {word}" in done.stdout
    assert set(done.stderr.split()) & set(ALONE.values()) == {ALONE[word]}


@pytest.mark.parametrize("word", ["--help", "help", "completion", "snapshots", "nonsense"])
def test_anything_else_loads_all(word: str) -> None:
    assert set(MODULES) <= set(_run(word).stderr.splitlines()[0].split())


def test_help_lists_every_command() -> None:
    told = _run("--help").stdout
    assert all(f"  {word} " in told for word in ALONE)
