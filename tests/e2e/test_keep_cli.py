# SPDX-License-Identifier: AGPL-3.0-or-later
"""Policies, prune, holds, figures, status, keys, help and completion, as a user types them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from everywhen.interfaces.cli.main import main

KIB = 1 << 10


class Ended(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


class Shell:
    """Runs the program in `folder`, with a repository, a passphrase file and a cache of its own there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "passphrase").write_text("correct horse\n")
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TZ": "Europe/Berlin",
            "EVERYWHEN_REPO": str(folder / "repository"),
            "EVERYWHEN_CACHE": str(folder / "cache"),
            "EVERYWHEN_STATE": str(folder / "state"),
            "EVERYWHEN_PASSPHRASE_FILE": str(folder / "passphrase"),
        }

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Standard output; the exit code must be `code`."""
        return self.run(*arguments, code=code).stdout

    def run(self, *arguments: str, code: int = 0) -> Ended:
        """The whole program but the interpreter's start, which would be nine tenths of the time of these tests."""
        out, err = io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, self.env, clear=True),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ending,
        ):
            main(list(arguments))
        ended = Ended(out.getvalue(), err.getvalue())
        assert ending.value.code == code, ended.stdout + ended.stderr
        return ended

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The one document on standard output."""
        return json.loads(self(*arguments, "--json", code=code))

    def backup(self, vm: str, *blocks: bytes) -> str:
        image = self.folder / f"{vm}.img"
        image.write_bytes(b"".join(block.ljust(64 * KIB, b"\0") for block in blocks))
        return str(self.json("backup", vm, f"vda={image}")["point"])


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """One whose repository is not encrypted: a passphrase costs a fifth of a second each time."""
    made = Shell(tmp_path)
    del made.env["EVERYWHEN_PASSPHRASE_FILE"]
    made("init", str(tmp_path / "repository"), "--no-reserve", "--encryption", "none")
    return made


@pytest.fixture
def locked(tmp_path: Path) -> Shell:
    """One with a passphrase."""
    made = Shell(tmp_path)
    made("init", str(tmp_path / "repository"), "--no-reserve")
    return made


def test_policy_prune_undo_and_hold(shell: Shell) -> None:
    points = [shell.backup("web1", os.urandom(64 * KIB), b"always") for _ in range(3)]
    shell.backup("web2", b"other")
    assert shell.json("policy", "list")["default"]["from"] == "built in"
    assert "one moment an hour for 14 days" in shell("policy", "show")
    said = shell("policy", "set", "web1", "last 1")
    assert "The next prune would drop 2 moments of web1" in said
    shown = shell.json("policy", "show", "web1")
    assert (shown["policy"], shown["zone"], shown["from"]) == ("last 1", "Europe/Berlin", "own")

    shell("hold", f"web1@{points[0]}", "--reason", "audit 2026", "--until", "30d")
    assert [hold["point"] for hold in shell.json("hold")] == [points[0]]
    dry = shell.json("prune", "--dry-run")
    [web1] = [vm for vm in dry["vms"] if vm["vm"] == "web1"]
    assert (web1["dropped"], web1["held"]) == ([points[1]], 1)
    assert 64 * KIB <= dry["frees_bytes"] <= 70 * KIB
    assert len(shell.json("points", "web1")) == 3

    # One of three is no more than a third: it passes. The hold gone, two of three stop and ask.
    assert "the next prune drops it" in shell("release", f"web1@{points[0]}")
    refused = shell.run("prune", code=2)
    assert "--yes-more-than-a-third" in refused.stderr
    assert len(shell.json("points", "web1")) == 3
    done = shell.json("prune", "--yes-more-than-a-third")
    assert done["dropped"] == sorted(points[:2])
    assert [point["id"] for point in shell.json("points", "web1")] == points[2:]
    assert shell.json("prune")["drop"] is None

    assert shell.json("prune", "--undo", points[1])["taken_back"] == [points[1]]
    assert "1 moments taken back" in shell("prune", "--undo")
    assert [point["id"] for point in shell.json("points", "web1")] == points[::-1]
    shell("policy", "set", "web1", "default")
    assert "Nothing to drop." in shell("prune")


class Terminal(io.StringIO):
    """Standard input as somebody types it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "code", "left"), [("n\n", 130, 3), ("y\n", 0, 1)])
def test_with_a_terminal_prune_asks(shell: Shell, monkeypatch: pytest.MonkeyPatch, typed: str, code: int, left: int) -> None:
    for number in range(3):
        shell.backup("web1", bytes([number]))
    shell("policy", "set", "web1", "last 1")
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    asked = shell.run("prune", code=code)
    assert "2 of 3 moments of web1 would go, more than a third" in asked.stderr
    assert len(shell.json("points", "web1")) == left


def test_what_people_decided_is_in_the_repository_alone(locked: Shell) -> None:
    """I-10: on another machine, with nothing but the repository and its passphrase, all of it is there."""
    points = [locked.backup("web1", bytes([number])) for number in range(4)]
    locked("policy", "set", "web1", "last 3", "--zone", "Asia/Tokyo", "--by-calendar")
    locked("policy", "set", "--default", "daily 9d")
    locked("policy", "set", "--delete-delay", "9d")
    locked("hold", f"web1@{points[3]}", "--reason", "audit 2026")
    locked("prune")
    before = [locked.json(*words) for words in (["policy", "list"], ["hold"], ["points"])]
    dropped = locked.json("status")["vms"][0]["dropped"]
    shutil.rmtree(locked.folder / "cache")
    shutil.move(locked.folder / "repository", locked.folder / "elsewhere")
    locked.env |= {"EVERYWHEN_REPO": str(locked.folder / "elsewhere"), "TZ": "America/New_York"}
    assert [locked.json(*words) for words in (["policy", "list"], ["hold"], ["points"])] == before
    assert before[0]["vms"]["web1"] | {"sentence": ""} == {
        "policy": "last 3",
        "zone": "Asia/Tokyo",
        "by_calendar": True,
        "from": "own",
        "sentence": "",
    }
    assert locked.json("status")["vms"][0]["dropped"] == dropped == 1
    assert locked.json("prune", "--undo")["taken_back"] == [points[0]]


def test_preview_shows_the_table_and_proposals(shell: Shell) -> None:
    for number in range(4):
        shell.backup("web1", os.urandom(64 * KIB), bytes([number]))
    text = shell("policy", "preview", "web1", "last 2")
    assert "FREES (±10 %)" in text
    assert "2 of 4 moments would go" in text
    assert "now none; then 2, back to" in text
    assert shell.json("policy", "preview", "last 2")["vms"][0]["ladder_after"]["last"]["moments"] == 2
    shell("policy", "set", "--default", "last 4", "--zone", "UTC")
    found = shell.json("policy", "preview", "--free", "100kB")
    [half] = found["proposals"]
    assert (half["moments_lost"], half["enough"]) == (2, True)
    assert half["do"] == 'everywhen policy set --default "last 2"'


def test_wrong_policies_are_refused(shell: Shell) -> None:
    shell.backup("web1", b"a")
    error = shell.json("policy", "set", "web1", "hourly 14dd", code=2)["error"]
    assert 'the nearest is "hourly 14d"' in error["what"]
    shell("policy", "set", code=2)
    shell("policy", "set", "web1", code=2)
    shell("policy", "set", "wbe1", "last 3", code=6)
    shell("policy", "set", "--default", "last 3", "--zone", "Mars/Olympus", code=2)
    assert shell.json("policy", "list")["default"]["from"] == "built in"


def test_the_delay(shell: Shell) -> None:
    found = shell.json("policy", "set", "--delete-delay", "1h")
    assert (found["delete_delay_seconds"], found["in_force_seconds"]) == (3600, 72 * 3600)
    assert shell.json("policy", "set", "--delete-delay", "7d")["in_force_seconds"] == 7 * 86400


def test_holds_want_a_reason_and_a_moment(shell: Shell) -> None:
    point = shell.backup("web1", b"a")
    shell("hold", "web1", code=2)
    shell("hold", "web1/vda", "--reason", "x", code=2)
    shell("hold", "web1@p-zzz", "--reason", "x", code=6)
    shell("hold", "web1", "--reason", "x", "--until", "2001-01-01", code=2)
    shell("release", "web1", code=6)
    assert shell.json("hold", "web1", "--reason", "x")["point"] == point


def test_stats(shell: Shell) -> None:
    shared, own = os.urandom(64 * KIB), os.urandom(64 * KIB)
    shell.backup("web1", shared, own)
    shell.backup("web2", shared)
    found = shell.json("stats", "web1")
    assert (found["logical_bytes"], found["unique_bytes"]) == (3 * 64 * KIB, 2 * 64 * KIB)
    assert (found["points"], found["chunks"]) == (2, 2)
    files = [path for path in (shell.folder / "repository").rglob("*") if path.is_file()]
    assert found["stored_bytes"] == sum(path.stat().st_size for path in files)
    [web1] = found["vms"]
    assert 64 * KIB <= web1["would_free_bytes"] <= 70 * KIB
    assert web1["shared_bytes"] == 64 * KIB
    assert "WOULD BE FREED" in shell("stats", "web1")
    assert "WOULD BE FREED" not in shell("stats")
    assert "unique" in shell("stats", "--help")


def test_status_and_check(shell: Shell) -> None:
    assert "0 of 0 VMs protected" in shell("status", "--check")
    point = shell.backup("web1", b"a")
    found = shell.json("status", "--check")
    assert (found["check"], found["vms"][0]["newest"]["point"]) == (0, point)
    assert "1 of 1 VMs protected." in shell("status")
    assert "NOT PROTECTED" in shell("status", "--check", "--max-age", "0s", code=1)
    shell("status", "--max-age", "0s")
    shell("status", "wbe1", code=6)


def test_status_takes_less_than_two_seconds(locked: Shell) -> None:
    locked.backup("web1", b"a")
    command = [sys.executable, "-c", "from everywhen.interfaces.cli.main import main; main(['status'])"]
    before = os.times()
    ended = subprocess.run(command, env=locked.env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    after = os.times()
    assert "1 of 1 VMs protected." in ended.stdout
    # Processor time: on a machine that others use, the clock on the wall says nothing.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2


def test_keys(locked: Shell) -> None:
    folder = locked.folder
    for name in ("second", "third"):
        (folder / name).write_text(f"{name} passphrase\n")
    locked.backup("web1", b"a")
    secret = (folder / "passphrase").read_text().strip()
    slots = locked.json("key", "list")["slots"]
    assert sorted(slot["kind"] for slot in slots) == ["passphrase", "recovery"]

    locked("key", "add", "--label", "ann", code=2)
    added = locked.json("key", "add", "--label", "ann", "--new-passphrase-file", "second")["slot"]
    locked("status", "--passphrase-file", "second")
    locked("key", "change", "--passphrase-file", "second", "--new-passphrase-file", "third")
    locked("status", "--passphrase-file", "second", code=7)
    locked("key", "remove", added, code=6)
    third = next(slot["slot"] for slot in locked.json("key", "list")["slots"] if slot["label"] == "ann")
    locked("key", "remove", third[:6], "--dry-run")
    locked("key", "remove", third[:6])
    locked("status", "--passphrase-file", "third", code=7)

    recovery = locked.json("key", "recovery")["recovery_key"]
    (folder / "paper").write_text(recovery.lower().replace("-", " ") + "\n")
    locked("status", "--recovery-key-file", "paper")
    locked("key", "change", "--recovery-key-file", "paper", "--new-passphrase-file", "second")
    locked("status", code=7)
    rotated = locked.json(
        "key", "rotate", "--passphrase-file", "second", "--new-passphrase-file", "third", "--also", "x=second"
    )
    assert rotated["generation"] == 2
    for file in ("second", "third"):
        locked("status", "--passphrase-file", file)
    locked("status", "--recovery-key-file", "paper", code=7)
    # What was stored before the rotation is still readable.
    locked("restore", "web1", "--to", "out.raw", "--passphrase-file", "third")
    assert (folder / "out.raw").read_bytes()[:1] == b"a"
    # No secret is in what commands print, or in a cache.
    for path in (folder / "cache").rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes()


def test_a_lost_passphrase_at_a_terminal(locked: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    recovery = locked.json("key", "recovery")["recovery_key"]
    (locked.folder / "new").write_text("new passphrase\n")
    locked("key", "change", "--recovery-key", code=2)
    monkeypatch.setattr(sys, "stdin", Terminal())
    typed = [recovery, "new passphrase", "new pasphrase", recovery, "new passphrase", "new passphrase"]
    asked: list[str] = []

    def getpass(prompt: str, stream: object) -> str:
        asked.append(prompt)
        return str(typed.pop(0))

    monkeypatch.setattr("getpass.getpass", getpass)
    locked("key", "change", "--recovery-key", code=2)
    locked("status")
    locked("key", "change", "--recovery-key")
    assert typed == []
    assert [words.split()[0] for words in asked] == ["Recovery", "New", "The"] * 2
    locked("status", code=7)
    locked("status", "--passphrase-file", "new")


def test_the_sheet(locked: Shell) -> None:
    key = locked.json("key", "recovery")["recovery_key"]
    (locked.folder / "paper").write_text(key)
    locked("key", "sheet", "--recovery-key-file", "paper", "--out", "sheet.txt")
    sheet = locked.folder / "sheet.txt"
    assert key in sheet.read_text()
    assert stat.S_IMODE(sheet.stat().st_mode) == 0o600
    locked("key", "sheet", "--recovery-key-file", "paper", "--out", "sheet.txt", code=1)
    assert "______-______" in locked("key", "sheet")
    # A passphrase must not end up on paper as if it were the recovery key; nor may a key that opens nothing.
    locked("key", "sheet", "--recovery-key-file", "passphrase", code=2)
    (locked.folder / "paper").write_text(key[:-1] + ("0" if key[-1] != "0" else "1"))
    locked("key", "sheet", "--recovery-key-file", "paper", code=7)
    new = locked.json("key", "sheet", "--new-recovery-key")
    (locked.folder / "paper").write_text(new["recovery_key"])
    assert new["recovery_key"] in new["sheet"]
    locked("status", "--recovery-key-file", "paper")


def test_an_unencrypted_repository_has_no_keys(shell: Shell) -> None:
    assert shell.json("key", "list")["slots"] == []
    shell("key", "add", "--new-passphrase-file", "passphrase", code=2)
    assert "not encrypted" in shell("key", "sheet")


def test_help_and_habits(shell: Shell) -> None:
    text = shell("--help")
    headings = [line for line in text.splitlines() if line in ("Look:", "Get back:", "Protect:", "Keep:", "Run:")]
    assert headings == ["Look:", "Get back:", "Protect:", "Keep:", "Run:"]
    assert "snapshots" not in text
    assert "everywhen help moments" in shell("help")
    assert "everywhen prune --undo" in shell("help", "retention")
    assert "--undo" in shell("help", "prune")
    error = shell.json("help", "momments", code=6)["error"]
    assert "Close: moments" in error["what"]
    for habit, ours in {"snapshots": "points", "forget": "prune", "check": "verify", "dump": "restore"}.items():
        refused = shell.run(habit, "--whatever", "-x", code=2)
        assert f"everywhen {ours}" in refused.stderr


BASH = """
source ./completion
COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}; COMP_WORDBREAKS=$' \\t\\n"\\'@><=;|&(:'
_everywhen
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
autoload -U compinit; compinit -u -d ./dump; source ./completion
compadd() { shift; print -l -- "$@" }
_files() { print files }
words=("${(@s: :)1}"); CURRENT=$#words
_everywhen
"""
FISH = 'source ./completion; complete -C "$argv[1]"'


def _offered(name: str, shell: Shell, line: str) -> list[str]:
    programs: dict[str, list[str]] = {
        "bash": ["bash", "--norc", "-c", BASH, "bash", line],
        "zsh": ["zsh", "-f", "-c", ZSH, "zsh", line],
        "fish": ["fish", "--no-config", "-c", FISH, line],
    }
    ended = subprocess.run(
        programs[name], cwd=shell.folder, env=shell.env, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
    )
    return sorted(ended.stdout.split())


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion(name: str, shell: Shell) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    shell.backup("web1", b"a")  # remembers the names
    (shell.folder / "completion").write_text(shell("completion", name))

    def offered(line: str) -> list[str]:
        return _offered(name, shell, line)

    assert offered("everywhen sta") == ["stats", "status"]
    assert offered("everywhen policy pre") == ["preview"]
    assert offered("everywhen points w") == ["web1"]
    place = "" if name == "bash" else "web1@"
    assert offered("everywhen restore web1@-1") == [f"{place}-10m", f"{place}-1d", f"{place}-1h"]
    assert offered("everywhen restore web1/v") == ["web1/vda", "web1/vda@latest"]


def test_completion_knows_what_a_command_has_just_seen(shell: Shell) -> None:
    def offered(word: str) -> list[str]:
        command = [sys.executable, "-m", "everywhen.interfaces.cli.completing", "words", "restore", word]
        return subprocess.run(command, env=shell.env, capture_output=True, text=True, check=True).stdout.split()

    shell("completion", "bash")  # remembers the commands
    first = shell.backup("web1", b"a")
    assert offered("web1@p-") == [f"web1@{first}"]
    second = shell.backup("web1", b"b")
    third = shell.backup("web2", b"c")
    assert offered("web1@p-") == [f"web1@{second}", f"web1@{first}"]
    assert offered("web2@p-") == [f"web2@{third}"]
    for command in (["points"], ["status"]):
        shutil.rmtree(shell.folder / "cache" / "completion")
        (shell.folder / "cache" / "completion").mkdir()
        shell(*command)
        assert list((shell.folder / "cache" / "completion").glob("names-*.json"))


def test_names_that_cannot_be_remembered_stop_no_command(shell: Shell) -> None:
    (shell.folder / "cache").mkdir()
    (shell.folder / "cache" / "completion").write_text("in the way")
    shell.backup("web1", b"a")
    assert len(shell.json("points")) == 1
    shell("status")
    # Nor does the name of a repository that is not text.
    other = os.fsdecode(b"repository-\xff")
    (shell.folder / "repository").rename(shell.folder / other)
    shell.env["EVERYWHEN_REPO"] = str(shell.folder / other)
    shell.backup("web1", b"b")


def test_completion_never_asks_and_fills_its_cache_by_itself(locked: Shell) -> None:
    locked.backup("web1", b"a")
    shutil.rmtree(locked.folder / "cache" / "completion")  # which knows the names by now
    command = [sys.executable, "-m", "everywhen.interfaces.cli.completing", "words", "points", "w"]

    def tab(env: dict[str, str]) -> tuple[str, float]:
        began = time.monotonic()
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
        assert ended.stderr == ""
        return ended.stdout, time.monotonic() - began

    shut = {**locked.env, "EVERYWHEN_CACHE": str(locked.folder / "other")}
    del shut["EVERYWHEN_PASSPHRASE_FILE"]
    assert tab(shut)[0] == ""
    tab(locked.env)
    names = locked.folder / "cache" / "completion"
    for _ in range(600):
        if list(names.glob("names-*.json")):
            break
        time.sleep(0.05)  # another process writes the file; there is nothing to wait on but the file itself
    assert tab(locked.env)[0] == "web1\n"
    assert stat.S_IMODE(names.stat().st_mode) == 0o700
