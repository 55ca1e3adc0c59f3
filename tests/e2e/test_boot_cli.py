# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen boot`: a real kernel from a disk that was backed up, its console, what it writes, and that nothing stays of it."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bootable import bootable, needs_bootable
from tests.guest_agent import needs_agent
from tests.hypervisor import eventually
from tests.long_forms import in_soak
from tests.processes import TIED
from tests.program import PROGRAM, Program, same

pytestmark = [needs_bootable, pytest.mark.timeout(300)]

BOOT_S = 100.0
_EMULATED = """#!/bin/bash
# KVM may be there and fail, which takes long to find out.
words=()
for word in "$@"; do [ "$word" = kvm ] && word=tcg; words+=("$word"); done
exec {qemu} "${{words[@]}}"
"""
DEFINITION = """<domain type='kvm'><name>web1</name><uuid>6a0ac472-495a-4ca2-95f7-8bbf4dc88772</uuid>
  <memory unit='MiB'>256</memory><vcpu>1</vcpu><os{firmware}><type arch='x86_64' machine='pc-q35-99.1'>hvm</type></os>
  <devices><disk type='file' device='disk'><target dev='vda' bus='virtio'/></disk></devices></domain>"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its guest shows a login prompt."""
    return bootable(tmp_path_factory.mktemp("disk"), "login")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, disk: Path) -> Program:
    """The program, with a QEMU that does without KVM, and a repository that has `disk` as that of web1."""
    folder = tmp_path_factory.mktemp("boot")
    for name in ("tools", "t"):
        (folder / name).mkdir()
    tool = folder / "tools" / "qemu-system-x86_64"
    tool.write_text(_EMULATED.format(qemu=shutil.which("qemu-system-x86_64")))
    tool.chmod(0o755)
    program = Program(folder, more={"PATH": f"{folder / 'tools'}:{os.environ['PATH']}", "TMPDIR": str(folder / "t")}).init()
    program.backup("web1", f"vda={disk}")
    return program


@contextmanager
def booting(program: Program, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    process = program.start("boot", *arguments)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=BOOT_S)
    assert process.returncode == 0, (out, err)
    return out, err


def until(process: subprocess.Popen[str], words: str) -> str:
    """What it said on standard error up to a line with these words."""
    assert process.stderr
    said = ""
    for line in process.stderr:
        said += line
        if words in line:
            return said
    raise AssertionError(said)


def children(process: subprocess.Popen[str]) -> list[int]:
    """Of all its threads: whoever started them."""
    return [int(pid) for tasks in Path(f"/proc/{process.pid}/task").glob("*/children") for pid in tasks.read_text().split()]


@in_soak
def test_a_copy_boots_and_what_it_writes_is_kept_or_forgotten(program: Program, disk: Path) -> None:
    keep = program.folder / "keep"
    keep.mkdir()
    with booting(program, "web1", "--keep-in", keep) as process:
        said = until(process, "guest up after")
        assert "login prompt" in said
        assert "QEMU started after" in said
        (session,) = program.ok("sessions")
        assert (session["what"], session["pid"]) == ("boot web1", process.pid)
        process.send_signal(signal.SIGTERM)
        out, err = ended(process)
    assert out.splitlines() == ["boot number 1 \\x1b[31m", "firmware BIOS", "guest login: "]
    assert str(keep) in err
    with booting(program, "web1", "--keep-in", keep, "--until-up") as process:
        assert "boot number 2 " in ended(process)[0]
    assert sorted(path.suffix for path in keep.iterdir()) == [".content", ".map"]
    program.restore("web1/vda@latest", program.folder / "restored.raw")
    same(program.folder / "restored.raw", disk)
    assert program.ok("sessions") == []
    assert not list((program.folder / "t").iterdir())


def test_the_console_on_a_terminal(program: Program, disk: Path) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [*TIED, str(PROGRAM), "boot", "web1", "--memory", "200MiB"]
    process = subprocess.Popen(command, env=program.environment, stdin=theirs, stdout=theirs, stderr=theirs)
    seen = b""

    def shows(text: bytes) -> bool:
        nonlocal seen
        while select.select([ours], [], [], 0)[0]:
            seen += os.read(ours, 65536)
        return text in seen

    try:
        eventually(lambda: shows(b"guest login: \r\nguest up after "), "a prompt", BOOT_S)
        assert b"boot number 1 \x1b[31m" in seen
        os.write(ours, b"hello\r")
        eventually(lambda: shows(b"heard hello"), "an echo", BOOT_S)
        assert termios.tcgetattr(theirs) != before
        os.write(ours, b"off\r")
        assert process.wait(BOOT_S) == 0
        assert shows(b"Ended.")
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


@in_soak
@needs_agent
def test_the_agent_says_that_a_guest_is_up(program: Program, tmp_path: Path) -> None:
    (tmp_path / "domain.xml").write_text(DEFINITION.format(firmware=""))
    program.backup("agent1", f"vda={bootable(tmp_path / 'disk', 'wait', agent=True)}", "--config", tmp_path / "domain.xml")
    with booting(program, "agent1@latest", "--until-up", "--json") as process:
        out, err = ended(process)
    found = json.loads(out)
    assert (found["seen_by"], found["accelerator"], found["vm"]) == ("guest agent", "tcg", "agent1")
    assert 0 < found["seconds_started"] < found["seconds_up"] < BOOT_S
    assert "machine type pc-q35-99.1 is not there: pc-q35-" in err


def test_killed_it_leaves_nothing_running(program: Program, disk: Path) -> None:
    with booting(program, "web1") as process:
        until(process, "QEMU started")
        (qemu,) = children(process)
        assert "qemu" in Path(f"/proc/{qemu}/cmdline").read_text()
        process.kill()
        process.wait()
        eventually(lambda: _is_gone(qemu), "QEMU ends, too", BOOT_S)
    assert program.ok("sessions") == []


def _is_gone(pid: int) -> bool:
    """Nobody may be there to take its exit code."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def test_one_that_is_not_up_in_time(program: Program) -> None:
    (program.folder / "empty.raw").write_bytes(bytes(1 << 20))
    program.backup("empty1", f"vda={program.folder / 'empty.raw'}")
    began = time.monotonic()
    done = program.run("boot", "empty1/vda", "--until-up", "--wait", "1s", "--json")
    assert (done.code, done.document["seen_by"], done.document["seconds_up"]) == (1, None, None)
    assert "neither a login prompt" in done.err
    assert time.monotonic() - began < BOOT_S


def test_what_cannot_be_booted_is_refused(program: Program) -> None:
    (program.folder / "empty.raw").write_bytes(bytes(1 << 20))
    (program.folder / "domain.xml").write_text("<domain><os><type arch='aarch64' machine='virt'>hvm</type></os></domain>")
    program.backup("arm1", f"vda={program.folder / 'empty.raw'}", "--config", program.folder / "domain.xml")
    assert program.run("boot", "arm1:/etc", "--json").error["code"] == "wrong_usage"
    assert program.run("boot", "web2", "--json").error["code"] == "not_found"
    assert program.run("boot", "arm1", "--keep-in", program.folder / "nowhere", "--json").error["code"] == "not_found"
    assert "aarch64" in program.run("boot", "arm1", "--json").error["what"]


@in_soak
@pytest.mark.skipif(not Path("/usr/share/OVMF/OVMF_CODE_4M.fd").exists(), reason="no UEFI for guests (Debian: ovmf)")
def test_by_uefi(program: Program, tmp_path: Path) -> None:
    (tmp_path / "domain.xml").write_text(DEFINITION.format(firmware=" firmware='efi'"))
    program.backup("uefi1", f"vda={bootable(tmp_path / 'disk', 'login', uefi=True)}", "--config", tmp_path / "domain.xml")
    with booting(program, "uefi1", "--until-up") as process:
        assert "firmware UEFI" in ended(process)[0]


@in_soak
def test_with_the_kvm_that_there_is(program: Program) -> None:
    """One that is there and fails is done without."""
    plain = Program(program.folder)
    with booting(plain, "web1", "--until-up") as process:
        assert "guest up after" in ended(process)[1]
