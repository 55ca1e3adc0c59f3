# SPDX-License-Identifier: AGPL-3.0-or-later
"""What TAB offers, by the real table of commands and some names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from everywhen.interfaces.cli.completing import after_break, candidates, commands_file, split_line
from everywhen.interfaces.cli.completion import write_commands
from everywhen.interfaces.cli.main import load_commands

load_commands("--help")  # registers all of them

NAMES = {
    "vms": {
        "web1": {"disks": ["vda", "vdb"], "marks": ["before update", "12 o'clock"], "points": ["p-aaa", "p-bbb"]},
        "web2": {"disks": ["vda"], "marks": [], "points": []},
    },
    "groups": {"group:erp": {"disks": [], "marks": ["before update"], "points": []}},
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    env = {"EVERYWHEN_CACHE": str(tmp_path_factory.mktemp("cache"))}
    write_commands(env)
    with open(commands_file(env), encoding="utf-8") as file:
        found: dict[str, object] = json.load(file)
    return found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("everywhen sta", ["stats", "status"]),
        ("everywhen policy s", ["set", "show"]),
        ("everywhen key ro", ["rotate"]),
        ("everywhen prune --un", ["--undo"]),
        ("everywhen timeline ", ["web1", "web2"]),
        ("everywhen points ", ["web1", "web2", "group:erp"]),
        ("everywhen mark gr", ["group:erp"]),
        ("everywhen restore group:erp@be", ["before%20update"]),
        ("everywhen restore group:erp@", ["latest", "yesterday", "-10m", "-1h", "-1d", "-7d", "before%20update"]),
        ("everywhen hold gr", []),
        ("everywhen points web1 ", []),
        ("everywhen status web1 web", ["web1", "web2"]),
        ("everywhen status --max-age 2h web2", ["web2"]),
        ("everywhen restore we", ["web1", "web2"]),
        ("everywhen restore web1@", ["latest", "yesterday", "-10m", "-1h", "-1d", "-7d", "before%20update", "p-aaa", "p-bbb"]),
        ("everywhen restore web1@-1", ["-10m", "-1h", "-1d"]),
        ("everywhen restore web1/vdb@p-b", ["p-bbb"]),
        ("everywhen restore nobody@", []),
        (
            "everywhen hold web2",
            ["web2", "web2/vda", *(f"web2@{w}" for w in ("latest", "yesterday", "-10m", "-1h", "-1d", "-7d"))],
        ),
        ("everywhen restore web1/", ["web1/vda", "web1/vda@latest", "web1/vdb", "web1/vdb@latest"]),
        ("everywhen restore web1 --format vhd", ["vhd", "vhd-fixed", "vhdx"]),
        ("everywhen restore web1 --to ", [":files"]),
        ("everywhen backup web1 v", ["vda=", "vdb="]),
        ("everywhen backup web1 vda=/im", [":files"]),
        ("everywhen backup web1 vda=x --since p-", ["p-aaa", "p-bbb"]),
        ("everywhen --repo", []),
        ("everywhen status --repo ", [":files"]),
        ("everywhen help ex", ["exit-codes"]),
        ("everywhen completion ", ["bash", "fish", "zsh"]),
        ("everywhen hold web1 --reason ", []),
        ("everywhen __", []),
    ],
)
def test_candidates(table: dict[str, object], line: str, expected: list[str]) -> None:
    words = split_line(line)
    place, at, _ = words[-1].rpartition("@")
    found = candidates(words, table, NAMES)
    assert [word.removeprefix(place + at) for word in found] == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", [""]),
        ("everywhen", [""]),
        ("everywhen ", [""]),
        ("everywhen a b", ["a", "b"]),
        ('everywhen restore "web1@yesterday 1', ["restore", "web1@yesterday 1"]),
        ("everywhen restore it's", ["restore", "its"]),
    ],
)
def test_a_line_as_far_as_it_was_typed(line: str, words: list[str]) -> None:
    assert split_line(line) == words


def test_bash_replaces_only_what_stands_after_its_last_break() -> None:
    breaks = " \t\n\"'@><=;|&(:"
    assert after_break("web1@-1", breaks, ["web1@-10m", "web1@-1h"]) == ["-10m", "-1h"]
    assert after_break("web1/v", breaks, ["web1/vda"]) == ["web1/vda"]
    assert after_break("vda=/im", breaks, [":files"]) == [":files"]


def test_a_tab_loads_nothing_large(tmp_path: Path) -> None:
    code = "import sys; import everywhen.interfaces.cli.completing; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "typer", "rich", "cryptography", "obstore", "everywhen.interfaces.cli.app"} & set(loaded)
