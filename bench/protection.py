# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who receives a guest's writes while they are measured: `everywhen protect`, or an nbdkit that throws them away."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.guest import Guest, await_
from bench.lab import Lab
from bench.measured import ToolFailed
from bench.proof import content_of, prove
from bench.tools import Everywhen
from everywhen.capture import leftovers
from everywhen.capture.counters import FINE, STATE, Counters
from everywhen.capture.nodes import find_disks
from everywhen.capture.tap import Tap
from everywhen.interfaces.control_socket import NobodyThere, ask

NBDKIT = "nbdkit"
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_LATE_S = 600


class Protection:
    """A running `everywhen protect`, which follows every write once this is made.

    `state`: the folder of the host's captures; `monitor`: options that say where the VM runs.
    """

    def __init__(self, lab: Lab, tool: Everywhen, vm: str, state: Path, monitor: list[str], *options: str) -> None:
        self.vm = vm
        self.folder = state / vm
        self._said = lab.work / f"{vm}.said"
        command = [lab.program, "protect", vm, *monitor, "--pace", "0", "--quiet", *options]
        env = tool.env | {"EVERYWHEN_STATE": str(state)}
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            self.followed()
        except BaseException:
            self._kill()
            raise

    @classmethod
    def of(cls, lab: Lab, tool: Everywhen, vm: str, guest: Guest, *options: str) -> Self:
        """Of a storage daemon's disk; the spool lies below the work folder, by a name that is short enough for sockets."""
        folder, short = lab.work / "host", guest.sockets / "h"
        folder.mkdir(exist_ok=True)
        short.unlink(missing_ok=True)
        short.symlink_to(folder)
        return cls(lab, tool, vm, short, ["--qmp", str(guest.qmp)], *options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._kill()

    def _kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def said(self) -> str:
        """Its warnings."""
        return self._said.read_text()

    def followed(self) -> None:
        """Wait until it follows every write. Raises ToolFailed."""
        await_(self._stands, f"{self.vm} is followed; it said: {self.said}", _LATE_S)
        self._sink = self.processes()["sink"]

    def _stands(self) -> bool:
        """It says so, and its sink is there: what it says can be a second old."""
        try:
            return self.state() == "following" and self._takes(self.processes()["sink"])
        except ToolFailed:
            if self.process.poll() is not None:
                raise
            return False

    def state(self) -> str | None:
        """What it says of itself; None while nobody answers. Raises ToolFailed when it has ended."""
        if self.process.poll() is not None:
            raise ToolFailed(f"everywhen protect {self.vm} ended: {self.said}")
        try:
            return str(self.ask({"wish": "status"})["state"])
        except NobodyThere:
            return None

    def ask(self, wish: dict[str, Any]) -> dict[str, Any]:
        """What it answers. Raises ToolFailed."""
        answer = ask(self.folder, wish)
        if "error" in answer:
            raise ToolFailed(f"{self.vm}: {wish}: {answer['error']}")
        return answer

    def stop(self) -> None:
        """End it in order; the newest point has everything then. Raises ToolFailed."""
        self.process.send_signal(signal.SIGINT)
        if self.process.wait(_LATE_S):
            raise ToolFailed(f"everywhen protect {self.vm}: {self.said}")

    def lost(self) -> int:
        """How often capture was lost."""
        return self.said.count("capture was lost")

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the body runs only the sink and its watchdog do."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def receives(self) -> bool:
        """Whether the sink has not let go of the guest since the capture began."""
        try:
            return self._sink == self.processes()["sink"] and self._takes(self._sink)
        except ToolFailed:
            return False

    def _takes(self, sink: int) -> bool:
        counters = self.counters()
        try:
            state = counters.get(STATE)
        finally:
            counters.close()
        try:
            stat = Path(f"/proc/{sink}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False  # it has ended
        return state == FINE and stat.rpartition(")")[2].split()[0] != "Z"

    def processes(self) -> dict[str, int]:
        """The processes on this host, by what they are."""
        found = {"protect": self.process.pid}
        for name, module in (("sink", "sink_process"), ("watchdog", "watchdog")):
            found[name] = _child(self.process.pid, module)
        return found

    def counters(self) -> Counters:
        """The page in which the sink counts; a view of our own. Raises ToolFailed."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        for name in os.listdir(folder) if folder.exists() else ():
            try:
                if "everywhen-counters" in os.readlink(folder / name):
                    return Counters(os.open(folder / name, os.O_RDWR))
            except FileNotFoundError:
                continue  # it was closed meanwhile
        raise ToolFailed(f"{self.vm}: no page of counters was found")


class NullSink:
    """`nbdkit null` in the sink's place: attached by the code that attaches ours, with the same options."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        path = guest.sockets / "null"
        path.unlink(missing_ok=True)
        disk = find_disks(guest.monitor)[0]
        self._nbdkit = subprocess.Popen(
            [NBDKIT, "--foreground", "--unix", str(path), "null", str(disk.size)], stdin=subprocess.DEVNULL
        )
        self._disks = [disk]
        await_(path.exists, "nbdkit listens")
        Tap(guest.monitor, disk, 0).attach(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        leftovers.clear(self._guest.monitor, answered=True)
        self._nbdkit.kill()
        self._nbdkit.wait()


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has had, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def prove_newest(tool: Everywhen, vm: str, image: Path) -> None:
    """The newest point holds what the disk holds. Raises WrongResult."""
    _, restored = tool.restore(f"{vm}@latest", image.name)
    prove(restored, content_of(image), f"{vm}, captured")
    tool.clear_restored()


def forget(lab: Lab, tool: Everywhen) -> None:
    """Remove a repository, and what captures into it left on this host."""
    tool.clear()
    shutil.rmtree(lab.work / "host", ignore_errors=True)


def _child(parent: int, module: str) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # it has ended
        if above == parent and any(word.endswith(module) for word in words):
            return int(folder.name)
    raise ToolFailed(f"no {module} below process {parent}")
