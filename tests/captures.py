# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect` as a test runs it: started, followed, hurt, and ended in order."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from everywhen.formats.fields import Json
from everywhen.interfaces.control_socket import NobodyThere, ask
from tests.hypervisor import eventually
from tests.processes import TIED
from tests.program import PROGRAM, Program


class Capture:
    """A running `everywhen protect VM`, whatever it says in a file. Left alone, it is killed at the end."""

    def __init__(self, program: Program, vm: str, qmp: Path, *more: str) -> None:
        """Started; `followed` waits until every write is captured."""
        self._program = program
        self._vm = vm
        self._said = program.folder / f"{vm}-{len(list(program.folder.glob(f'{vm}-*.said')))}.said"
        command: list[str | Path] = [*TIED, PROGRAM, "protect", vm, "--qmp", qmp, *more]
        with self._said.open("ab") as said:
            # No pipe: nobody reads it while the test does something else.
            self.process = subprocess.Popen(
                command, cwd=program.folder, env=program.environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self._said.read_text()

    def followed(self) -> Self:
        """Every write is captured."""
        self._until(lambda: self.state() == "following", "it follows")
        return self

    def ask(self, request: Json) -> Json:
        """What it answers to a wish."""
        return ask(Path(self._program.environment["EVERYWHEN_STATE"]) / self._vm, request)

    def state(self) -> str | None:
        """What it says of itself; None while nobody answers."""
        try:
            return str(self.ask({"wish": "status"})["state"])
        except NobodyThere:
            return None

    def reaches(self, state: str) -> None:
        """Wait until it says this of itself."""
        self._until(lambda: self.state() == state, state)

    def another_point(self) -> None:
        """Wait until it says that one more is made."""
        self.says("recovery point p-")

    def says(self, what: str) -> None:
        """Wait until it says something that it has not said yet."""
        before = self.said.count(what)
        self._until(lambda: self.said.count(what) > before, what)

    def sink(self) -> int:
        """The process that receives the writes now."""
        return child(self.process.pid, "sink_process")

    def watchdog(self) -> int:
        """The process that watches it."""
        return child(self.process.pid, "watchdog")

    def kill(self) -> None:
        """It ends without a word."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """It ends in order."""
        self.process.send_signal(signal.SIGINT)
        try:
            assert self.process.wait(60) == 0, self.said
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end for 60 s; it is {self.state()}, and said: {self.said}") from None

    def _until(self, done: Callable[[], bool], what: str) -> None:
        try:
            eventually(lambda: self.process.poll() is not None or done(), what, 60)
        except AssertionError as late:
            raise AssertionError(f"{late}; it said: {self.said}") from None
        assert self.process.poll() is None, self.said


def child(parent: int, module: str) -> int:
    """The process that runs a module of ours, started by `parent`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
            above = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue  # it has ended
        if above == parent and any(word.endswith(module) for word in words):
            return int(folder.name)
    raise AssertionError(f"no {module} below {parent}")
