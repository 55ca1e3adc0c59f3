# SPDX-License-Identifier: AGPL-3.0-or-later
"""fio as who reads a device or a mounted file: at random what fits into a cache, at random all, and all in order."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field

from bench.measured import ToolFailed

CACHED = 128 << 20
"""Bytes that fit into our cache of 256 MiB."""


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of reads: of how many bytes (0: all), bytes at once, requests under way; `twice`: read in order before."""

    name: str
    order: str
    length: int
    block: int
    depth: int
    twice: bool = False


PARTS = (
    Part("cached", "randread", CACHED, 4096, 16, twice=True),
    Part("beside", "randread", 0, 4096, 16),
    Part("in order", "read", 0, 1 << 20, 4),
)


def missing() -> str | None:
    """Which program is not here that this needs."""
    for program in ("fio", "qemu-nbd"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    engines = subprocess.run(["fio", "--enghelp"], capture_output=True, text=True, check=False).stdout.split()
    return None if "nbd" in engines else "this fio has no nbd engine"


@dataclass
class Reads:
    """Reads a second of the parts; of the last one MB/s."""

    values: list[float] = field(default_factory=list)

    def take(self, part: Part, bytes_per_s: float) -> None:
        """Note what was measured of the next part."""
        self.values.append(bytes_per_s / (part.block if part.order == "randread" else 1e6))

    @property
    def shown(self) -> tuple[str, ...]:
        """For a table."""
        return tuple(f"{value:,.0f}" for value in self.values)


@dataclass(frozen=True, slots=True)
class Reader:
    """Where fio reads: options for it, and the stretch, in bytes."""

    options: list[str]
    start: int
    length: int

    def run(self, part: Part, seconds: float) -> float:
        """Bytes a second. In order it reads all once; at random for so long. Raises ToolFailed."""
        length = min(part.length or self.length, self.length)
        if part.twice:
            self._fio(["--rw=read", "--bs=1m", f"--size={length}"])
        timed = ["--time_based=1", f"--runtime={round(seconds * 1000)}ms", "--norandommap"] if part.order == "randread" else []
        depth = f"--numjobs={part.depth}" if "--ioengine=psync" in self.options and timed else f"--iodepth={part.depth}"
        return self._fio([f"--rw={part.order}", f"--bs={part.block}", f"--size={length}", depth, *timed])

    def _fio(self, asked: list[str]) -> float:
        command = ["fio", "--name=reader", "--thread", "--group_reporting", "--output-format=json", f"--offset={self.start}"]
        done = subprocess.run([*command, *self.options, *asked], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolFailed(f"fio ended with {done.returncode}: {(done.stderr or done.stdout)[-1000:]}")
        (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
        if job["error"]:
            raise ToolFailed(f"fio met error {job['error']}")
        return float(job["read"]["bw_bytes"])
