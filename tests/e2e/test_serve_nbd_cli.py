# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen serve nbd` and `everywhen sessions`: moments as devices, opened by the programs that people use."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.hypervisor import eventually
from tests.program import Program

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed (Debian: qemu-utils)")

SIZE = 3 * 65536 * 7 + 512


class Served:
    """A running `everywhen serve nbd` at a unix socket."""

    def __init__(self, program: Program, process: subprocess.Popen[str], path: Path) -> None:
        self.program = program
        self.process = process
        self.path = path

    def url(self, name: str) -> str:
        return f"nbd+unix:///{quote(name)}?socket={self.path}"

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code, and what it said on standard error."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@contextmanager
def serving(program: Program, *arguments: str | Path) -> Iterator[Served]:
    path = program.folder / "nbd.sock"
    process = program.start("serve", "nbd", *arguments, "--socket", path, "--json")
    try:
        eventually(lambda: process.poll() is not None or _answers(path), "the server")
        yield Served(program, process, path)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def qemu_img(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def points(program: Program) -> list[str]:
    """web1 with two points; `then.raw` and `now.raw` are what its disk was."""
    chance = random.Random(9)
    then = bytearray(chance.randbytes(SIZE // 2)) + bytes(SIZE - SIZE // 2)
    now = bytearray(then)
    now[100_000:104_096] = chance.randbytes(4096)
    found = []
    for name, content in (("then", then), ("now", now)):
        (program.folder / f"{name}.raw").write_bytes(content)
        done = program.run("backup", "web1", f"vda={program.folder / f'{name}.raw'}", "--json")
        assert done.code == 0, done.err
        found.append(done.document["point"])
    return found


def test_any_moment_is_a_device(program: Program, points: list[str]) -> None:
    with serving(program) as served:
        for name, image in (
            (f"web1/vda@{points[0]}", "then"),
            ("web1/vda@latest", "now"),
            ("web1", "now"),
            ("web1/vda@-0s", "now"),
        ):
            assert "identical" in qemu_img(
                "compare", "-f", "raw", "-F", "raw", served.url(name), program.folder / f"{image}.raw"
            )
        listed = json.loads(qemu_img("map", "--output=json", "-f", "raw", served.url("web1")))
        assert not listed[-1]["data"]
        assert listed[-1]["start"] + listed[-1]["length"] == SIZE
        assert 'No VM "wbe1"' in qemu_img("info", served.url("wbe1/vda"), code=1)
        assert "had no disk vdb" in qemu_img("info", served.url("web1/vdb"), code=1)
        code, err = served.end()
    assert code == 0
    assert f"recovery point {points[0]}" in err
    assert not served.path.exists()


def test_what_is_open_is_listed_and_kept(program: Program, points: list[str]) -> None:
    with serving(program) as served:
        connected = subprocess.Popen(
            ["qemu-io", "-r", "-f", "raw", served.url(f"web1/vda@{points[0]}")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            eventually(lambda: len(program.ok("sessions")) == 2, "a session")
            server, session = program.ok("sessions")
            assert (server["what"], server["moments"]) == (f"serve nbd nbd+unix:///?socket={served.path}", [])
            assert session["moments"] == [{"vm": "web1", "point": points[0]}]
            assert session["what"] == "serve nbd web1"
            assert session["pid"] == served.process.pid
            assert points[0] in program.run("sessions").out
            assert program.run("policy", "set", "web1", "last 1").code == 0
            pruned = program.run("prune", "--yes-more-than-a-third", "--json").document
            assert (pruned["dropped"], pruned["vms"][0]["open"]) == ([], [points[0]])
            assert connected.stdin
            connected.stdin.write("read -v 100000 16\nquit\n")
            out, _ = connected.communicate(timeout=60)
            expected = (program.folder / "then.raw").read_bytes()[100_000:100_016]
            assert expected.hex(" ") in out
        finally:
            connected.kill()
            connected.communicate()
        served.end(signal.SIGKILL)
    assert program.run("sessions", "--json").document == []
    assert program.run("sessions").out == "Nothing is open.\n"
    assert program.run("prune", "--yes-more-than-a-third", "--json").document["dropped"] == [points[0]]


def test_writes_go_to_an_overlay_and_are_forgotten(program: Program, points: list[str]) -> None:
    with serving(program, "--overlay") as served:
        url = served.url("web1/vda@latest")
        write = ["qemu-io", "-f", "raw", "-c", "write -P 7 4000 100", "-c", "flush", url]
        subprocess.run(write, check=True, capture_output=True, timeout=60)
        for same in (url, served.url(f"web1/vda@{points[1]}")):
            read = ["qemu-io", "-f", "raw", "-c", "read -P 7 4000 100", same]
            assert "Pattern verification failed" not in subprocess.run(read, check=True, capture_output=True, text=True).stdout
        served.end()
    with serving(program, "--overlay") as served:
        assert "identical" in qemu_img("compare", "-f", "raw", "-F", "raw", served.url("web1"), program.folder / "now.raw")


def test_a_kept_overlay_is_taken_up_again_after_a_kill(program: Program, points: list[str]) -> None:
    keep = program.folder / "kept"
    keep.mkdir()
    for number in (7, 8):
        with serving(program, "web1/vda@latest", "--keep-in", keep) as served:
            check = [] if number == 7 else ["-c", "read -P 7 4000 100"]
            done = subprocess.run(
                ["qemu-io", "-f", "raw", *check, "-c", f"write -P {number} 4000 100", "-c", "flush", served.url("")],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            assert "failed" not in done.stdout
            served.end(signal.SIGKILL)
    assert sorted(os.listdir(keep)) == [f"web1-vda@{points[1]}.content", f"web1-vda@{points[1]}.map"]


def test_what_is_not_offered_is_refused(program: Program, points: list[str]) -> None:
    with serving(program, f"web1/vda@{points[0]}") as served:
        assert "identical" in qemu_img("compare", "-f", "raw", "-F", "raw", served.url(""), program.folder / "then.raw")
        assert "is not offered here" in qemu_img("info", served.url("web1/vda@latest"), code=1)
    done = program.run("serve", "nbd", "web1@2001-01-01", "--socket", program.folder / "s", "--json")
    assert done.error["code"] == "not_found"
    done = program.run("serve", "nbd", "--listen", "0.0.0.0:0", "--json")
    assert done.error["code"] == "not_allowed"
    (program.folder / "file").write_text("mine")
    done = program.run("serve", "nbd", "--socket", program.folder / "file")
    assert "is no socket" in done.err
    assert (program.folder / "file").read_text() == "mine"
    assert program.run("serve", "nbd").code == 2
