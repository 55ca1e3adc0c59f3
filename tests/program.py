# SPDX-License-Identifier: AGPL-3.0-or-later
"""The program as a user runs it: a process of its own, with cache and configuration below the test's folder.

`Program.start` runs the installed command. `Program.run` forks a server that has imported the program already, since
the imports take longer than most commands do: 0.4 s each, two hundred times.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everywhen.interfaces.cli.main import MODULES, main
from tests.processes import TIED

PROGRAM = Path(sys.executable).parent / "everywhen"
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["everywhen.interfaces.cli.main", *(f"everywhen.interfaces.cli.{name}" for name in MODULES)])
BLOCK = 65536
WITHOUT_PRIVILEGE = () if os.geteuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""A prefix with which root, too, may read and write only what a file's mode says."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The failure in the document."""
        found: dict[str, Any] = self.document["error"]
        assert found["exit"] == self.code
        return found


class Program:
    """Runs `everywhen` in `folder`, where the repository is `repo`, unencrypted unless told otherwise."""

    def __init__(self, folder: Path, repo: str = "repo", more: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.later_s = 0
        """How far ahead the clock is of those whose runs `run` starts, in seconds."""
        self.repo = folder / repo
        self.environment = {
            "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "TZ": "UTC",
            "EVERYWHEN_STATE": str(folder / "host"),
            "EVERYWHEN_CACHE": str(folder / "cache"),
            "EVERYWHEN_REPO": str(self.repo),
            **(more or {}),
        }

    def start(self, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start a run that the test talks to."""
        return subprocess.Popen(
            [*TIED, *prefix, str(PROGRAM), *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> Done:
        """Run to the end; with `prefix`, as arguments of another program."""
        if prefix:
            return ended(self.start(*arguments, prefix=prefix))
        given = [str(argument) for argument in arguments]
        out, err = self.folder / ".out", self.folder / ".err"
        process = _SERVER.Process(target=_run_here, args=(given, self.environment, self.folder, self.later_s, out, err))
        process.start()
        process.join(60)
        assert process.exitcode is not None, "it does not end"
        return Done(process.exitcode, out.read_text(), err.read_text())

    def ok(self, *arguments: str | Path) -> Any:
        """Run with `--json`; must succeed. Gives the document."""
        done = self.run(*arguments, "--json")
        assert done.code == 0, (arguments, done)
        return done.document

    def init(self, *more: str) -> Program:
        """Make the repository: without encryption, whose key derivation takes half a second each time."""
        self.ok("init", self.repo, "--encryption", "none", "--no-reserve", *more)
        return self

    def backup(self, vm: str = "web1", *arguments: str | Path) -> Any:
        """A backup that must succeed."""
        return self.ok("backup", vm, *arguments)

    def restore(self, moment: str, to: Path, *arguments: str) -> Any:
        """A restore that must succeed."""
        return self.ok("restore", moment, "--to", to, *arguments)

    def packs(self) -> int:
        """Bytes of all packs, without their twins and what a killed run left unfinished."""
        return sum(path.stat().st_size for path in self.repo.glob("packs/*/[0-9a-f]*"))


def _run_here(arguments: list[str], environment: dict[str, str], folder: Path, later_s: int, out: Path, err: Path) -> None:
    """In a child of the server: be the program."""
    now = time.time_ns
    time.time_ns = lambda: now() + later_s * 10**9
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    main(arguments)


def ended(process: subprocess.Popen[str]) -> Done:
    """Wait for a run."""
    out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err)


def await_(process: subprocess.Popen[str], what: Callable[[], object]) -> None:
    """Wait until `what` is so, while the process runs; it is asked every millisecond."""
    deadline = time.monotonic() + 30
    while not what():
        assert process.poll() is None, ended(process)
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.001)  # between two questions


def freeze(process: subprocess.Popen[str], what: Callable[[], object]) -> None:
    """Stop the process (SIGSTOP) as soon as `what` is so."""
    await_(process, what)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert process.poll() is None, "it was faster than the test: give it more to do"


def qemu_img(*arguments: str | Path) -> str:
    """Run qemu-img."""
    return subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def same(first: Path, second: Path, *, formats: tuple[str, str] = ("raw", "raw")) -> None:
    """Both images show the same bytes, as QEMU sees it."""
    qemu_img("compare", "-f", formats[0], "-F", formats[1], first, second)
