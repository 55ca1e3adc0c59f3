# SPDX-License-Identifier: AGPL-3.0-or-later
"""Nothing outside capture needs Linux: a disk is backed up and restored where Linux's modules, calls and sockets are missing.

A Windows played by this machine. It shows what is asked of the system that is not there; how a real one behaves (its locks, its
names, its files that are in use) it does not show, and the program was never run on one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.program import Program, same

PLAYED = """
import os, select, signal, socket, sys, sysconfig, types
# Other people's modules are as this machine has them.
import asyncio, blake3, concurrent.futures, cryptography.hazmat.primitives.ciphers.aead, numpy, obstore, rich.console
import rich.progress, subprocess, tempfile, typer

sysconfig.get_config_vars()
for module in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[module] = None
windows = types.ModuleType("msvcrt")
windows.LK_LOCK, windows.LK_NBLCK, windows.LK_UNLCK = 1, 2, 0
windows.locking = lambda descriptor, mode, count: None
windows.get_osfhandle = lambda descriptor: descriptor
sys.modules["msvcrt"] = windows
missing = {
    os: "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK SEEK_DATA SEEK_HOLE chown fdatasync fork geteuid getuid major makedev"
    " minor posix_fadvise posix_fallocate pread preadv pwrite pwritev sched_getaffinity setsid sync writev",
    select: "EPOLLIN epoll poll",
    signal: "SIGCONT SIGHUP SIGKILL SIGSTOP SIGUSR1 pthread_sigmask",
    socket: "AF_UNIX recv_fds send_fds",
}
for module, names in missing.items():
    for name in names.split():
        delattr(module, name)
sys.platform = "win32"
"""

LOADED = (
    PLAYED
    + """
import importlib, pkgutil
import everywhen

for found in pkgutil.walk_packages(everywhen.__path__, "everywhen."):
    if not found.name.endswith("__main__"):
        try:
            importlib.import_module(found.name)
        except ImportError:
            print(found.name)
"""
)

RUN = (
    PLAYED
    + """
from everywhen.storage import posix_calls
posix_calls.WINDOWS = True  # os.name is what it is: pathlib would not work
from everywhen.interfaces.cli.main import main
main(sys.argv[2:])  # the first one is the program that this stands for
"""
)


def test_all_but_capture_can_be_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    of_capture = (
        "everywhen.capture.",
        "everywhen.hypervisor.",
        "everywhen.services.protect.",
        "everywhen.services.returning.",
        "everywhen.services.rollback.",
        "everywhen.services.instant.",
        "everywhen.interfaces.cli.hypervisors",
        "everywhen.interfaces.cli.define",  # of a VM, and of a group, and their words
        "everywhen.interfaces.cli.plan_words",
        "everywhen.interfaces.cli.restore_plan",
        "everywhen.interfaces.cli.rollback",
    )
    needs_it = {
        "everywhen.guest.confinement",
        "everywhen.guest.process",
        "everywhen.interfaces.cli.boot",
        "everywhen.interfaces.cli.boot_production",
        "everywhen.interfaces.cli.console",
        "everywhen.interfaces.cli.cp",
        "everywhen.interfaces.cli.doctor",
        "everywhen.interfaces.cli.protect",
        "everywhen.interfaces.cli.unprotect",
        "everywhen.interfaces.service_words",
        "everywhen.interfaces.webdav.server",  # cheroot asks Windows itself, which is not there
        "everywhen.services.boot.emulator",
        "everywhen.services.boot.plan",
        "everywhen.services.diagnosis",
        "everywhen.services.host_checks",
        "everywhen.services.view.copying",
        "everywhen.services.view.target_folder",
    }
    refused = set(done.stdout.split())
    assert "everywhen.capture.watchdog" in refused, "nothing was missing"
    assert {name for name in refused if not name.startswith(of_capture)} <= needs_it


def test_a_disk_comes_back(tmp_path: Path) -> None:
    program = Program(tmp_path, more={"USERNAME": "somebody"})
    disk, changed, back = tmp_path / "disk.raw", tmp_path / "changed.raw", tmp_path / "back.vhdx"
    content = bytes(1 << 20) + bytes(range(256)) * 4096 + bytes(1 << 20)
    disk.write_bytes(content)
    changed.write_bytes(content[:100] + b"changed" + content[107:])

    def run(*words: str | Path) -> str:
        done = program.run(*words, prefix=(sys.executable, "-c", RUN))
        assert done.code == 0, (words, done)
        return done.out

    run("init", program.repo, "--encryption", "none", "--no-reserve")
    for image in (disk, changed):
        run("backup", "web1", f"vda={image}")
    run("restore", "web1@latest", "--to", back, "--format", "vhdx")
    same(changed, back, formats=("raw", "vhdx"))
    run("restore", "web1@latest", "--to", disk, "--in-place")
    assert disk.read_bytes() == changed.read_bytes()
    run("verify", "--read-data")
    run("gc")
    assert "protected" in run("status")
    told = run("--help")
    assert "restore" in told
    assert "unprotect" not in told
