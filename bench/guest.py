# SPDX-License-Identifier: AGPL-3.0-or-later
"""What stands in a guest's place: a qemu-storage-daemon with one raw disk, past the page cache, and fio that writes to it.

fio speaks NBD to the daemon as a guest speaks virtio to QEMU; the block layer with its mirror is the same code in both.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.measured import ToolFailed
from everywhen.capture.qmp import MonitorError, QmpMonitor

DAEMON, FIO = "qemu-storage-daemon", "fio"
DISK = "vda"
PAGE = 4096
_CHUNK = 1 << 20
COMPRESSIBLE = 50
"""Per cent by which what disks hold and fio writes can be compressed: zeroes at the end of each page."""


def missing(*more: str) -> str | None:
    """Which of the programs that all of this needs is not here."""
    absent = [name for name in (DAEMON, FIO, *more) if shutil.which(name) is None]
    return f"{absent[0]} is not installed" if absent else None


def make_disk(path: Path, size: int, seed: str) -> Path:
    """A raw disk of `size` bytes, all of it written."""
    chance = random.Random(seed)
    kept = PAGE * (100 - COMPRESSIBLE) // 100
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for _ in range(0, size, _CHUNK):
            noise = chance.randbytes(_CHUNK // PAGE * kept)
            pages = (noise[at : at + kept] for at in range(0, len(noise), kept))
            file.write(b"".join(page + bytes(PAGE - kept) for page in pages))
        file.truncate(size)
    return path


def await_(done: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for something that must come true. Raises ToolFailed."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise ToolFailed(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)


class Guest:
    """A running daemon. `sockets` is a short path: what is below it must fit into the 107 bytes of a socket's name."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.sockets = Path(tempfile.mkdtemp(prefix="ewb-"))
        self.nbd = self.sockets / "nbd"
        self.qmp = self.sockets / "qmp"
        command = [DAEMON, "--nbd-server", f"addr.type=unix,addr.path={self.nbd},max-connections=0"]
        for path in (self.qmp, self.sockets / "own"):
            command += [
                "--chardev",
                f"socket,id={path.name},path={path},server=on,wait=off",
                "--monitor",
                f"chardev={path.name}",
            ]
        command += ["--blockdev", f"driver=file,node-name=file,filename={image},cache.direct=on,aio=native"]
        command += ["--blockdev", "driver=raw,node-name=disk,file=file,cache.direct=on"]
        command += ["--export", f"type=nbd,id={DISK},name={DISK},node-name=disk,writable=on"]
        self._log = (self.sockets / "log").open("ab")
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        await_(self._answers, f"{DAEMON} answers")

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise ToolFailed(f"{DAEMON} ended: {(self.sockets / 'log').read_text()}")
        try:
            self.monitor = QmpMonitor.connect(str(self.sockets / "own"))
        except MonitorError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.monitor.close()
        self._process.terminate()
        self._process.wait()
        self._log.close()
        shutil.rmtree(self.sockets)


@dataclass(frozen=True, slots=True)
class Work:
    """How fio writes: bytes at once, requests under way, in which order; `rate` in writes a second (0: as fast as it can);
    `places` is fio's `random_distribution`."""

    name: str
    block: int
    depth: int
    order: str = "randwrite"
    rate: int = 0
    places: str = "random"


@dataclass(frozen=True, slots=True)
class Writes:
    """What the guest had: writes a second; microseconds within which 50, 99 and 99.9 % of them were answered, and each one."""

    rate: float
    p50: float
    p99: float
    p999: float
    worst: float
    count: int


class Fio:
    """fio at work on a guest's disk, for so many seconds after one that does not count, or until `stop`."""

    def __init__(self, guest: Guest, work: Work, seconds: float, *, warm_s: float = 1.0) -> None:
        self._out = guest.sockets / "fio.json"
        self._log = guest.sockets / "fio.log"
        options = {
            "name": "guest",
            "ioengine": "nbd",
            "uri": f"nbd+unix:///{DISK}?socket={guest.nbd}",
            "rw": work.order,
            "bs": work.block,
            "iodepth": work.depth,
            "thread": 1,
            "time_based": 1,
            "runtime": f"{round(seconds * 1000)}ms",
            "ramp_time": f"{round(warm_s * 1000)}ms",
            "norandommap": 1,
            "randrepeat": 0,
            "refill_buffers": 1,
            "buffer_compress_percentage": COMPRESSIBLE,
            "output-format": "json",
            "output": self._out,
        }
        if work.rate:
            options |= {"rate_iops": work.rate}
        if work.places != "random":
            options |= {"random_distribution": work.places}
        command = [FIO, *(f"--{name}={value}" for name, value in options.items())]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=guest.sockets, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> Writes:
        """End it in order."""
        self._process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> Writes:
        """Wait for its end. Raises ToolFailed where a write failed."""
        self._process.wait()
        text = self._out.read_text() if self._out.exists() else ""
        if "{" not in text:
            raise ToolFailed(f"fio told nothing: {self._log.read_text()[-1000:]}")
        job = json.loads(text[text.index("{") :])["jobs"][0]
        written = job["write"]
        if job["error"] or not written["total_ios"]:
            raise ToolFailed(f"fio: error {job['error']} after {written['total_ios']} writes: {self._log.read_text()[-1000:]}")
        within = written["clat_ns"]["percentile"]
        p50, p99, p999 = (within[share] / 1e3 for share in ("50.000000", "99.000000", "99.900000"))
        return Writes(written["iops"], p50, p99, p999, written["clat_ns"]["max"] / 1e3, written["total_ios"])
