# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whole processes, measured: wall, processor, peak memory, with the page cache in a known state before."""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

CacheState = Literal["cold", "warm"]

_DROP = "/proc/sys/vm/drop_caches"
_LAUNCHER = Path(__file__).with_name("launcher.py")


class ToolFailed(Exception):
    """A command ended with an error; the message has the end of what it wrote."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run. Seconds and bytes; `sync_s` is what os.sync() took after the command had ended."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    sync_s: float
    out: str


@dataclass
class Series:
    """Runs of the same work in the same state of the cache."""

    runs: list[Run] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    """Bytes by which the repository grew, by run; empty where nothing is stored."""

    @property
    def wall_s(self) -> float:
        """Median, seconds."""
        return statistics.median(run.wall_s for run in self.runs)

    @property
    def cpu_s(self) -> float:
        """Median of user and system time, seconds."""
        return statistics.median(run.cpu_s for run in self.runs)

    @property
    def sync_s(self) -> float:
        """Median, seconds."""
        return statistics.median(run.sync_s for run in self.runs)

    @property
    def peak_bytes(self) -> int:
        """The largest."""
        return max(run.peak_bytes for run in self.runs)

    @property
    def stored_bytes(self) -> float:
        """Median."""
        return statistics.median(self.stored)

    @property
    def spread(self) -> str:
        """Fastest and slowest run."""
        return f"{min(run.wall_s for run in self.runs):.2f} to {max(run.wall_s for run in self.runs):.2f}"


class Machine:
    """Runs commands. `log` is told each one."""

    def __init__(self, scratch: Path, log: Callable[[str], None]) -> None:
        self._scratch = scratch
        self._log = log
        scratch.mkdir(parents=True, exist_ok=True)

    def run(
        self, command: list[str], *, cwd: Path, env: Mapping[str, str], accept: Iterable[int] = (0,), quiet: bool = False
    ) -> Run:
        """Run to the end. Raises ToolFailed on an exit code that is not in `accept`."""
        report, out, err = (self._scratch / name for name in ("report", "out", "err"))
        report.unlink(missing_ok=True)
        launch = [sys.executable, "-I", "-S", str(_LAUNCHER), str(report), str(out), str(err), *command]
        subprocess.run(launch, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, check=True)
        code, wall, cpu, peak, synced = report.read_text().split()
        run = Run(float(wall), float(cpu), int(peak), float(synced), out.read_text(errors="replace"))
        if int(code) not in accept:
            said = (err.read_text(errors="replace") + run.out)[-2000:].strip()
            raise ToolFailed(f"{shlex.join(command)} ended with {code}: {said}")
        if not quiet:
            self._log(f"{run.wall_s:7.2f} s  {run.cpu_s:7.2f} s cpu  {run.peak_bytes >> 20:5} MiB  {shlex.join(command)}")
        return run


def may_drop_caches() -> bool:
    """Whether this process may drop the page cache (root; not in most containers)."""
    try:
        os.close(os.open(_DROP, os.O_WRONLY))
    except OSError:
        return False
    return True


def settle(state: CacheState, inputs: Iterable[Path]) -> None:
    """Bring all written bytes to the disk, then make the cache cold, or warm with everything in `inputs`.

    Cold is the page cache of this machine; what lies below it (a virtual machine's host, a disk's own memory) is not known.
    """
    os.sync()
    if state == "cold":
        Path(_DROP).write_text("3")
        return
    for path in inputs:
        for file in [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file()):
            _read(file)


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        at = 0
        end = os.fstat(file.fileno()).st_size
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            except OSError:
                return
            while at < hole:
                at += len(os.pread(file.fileno(), min(4 << 20, hole - at), at)) or hole - at
