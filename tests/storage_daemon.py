# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real qemu-storage-daemon that exports a raw and a qcow2 disk over NBD, and who uses them: fio, behind a recorder.

Its disks have content from the beginning, so that a first copy has something to miss.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from everywhen.capture.qmp import MonitorError, QmpMonitor
from tests.hypervisor import eventually, names_of_ours
from tests.processes import TIED

MIB = 1 << 20
ROOT = Path(__file__).parents[1]


class StorageDaemon:
    """Disks `vda` (raw) and `vdb` (qcow2) of these sizes in `folder`; `qmp` is for the code under test.

    `address`: where it serves them, `socket` if nothing is said.
    """

    def __init__(self, folder: Path, sizes: tuple[int, int], *, address: str = "") -> None:
        self.folder = folder
        self.qmp = folder / "qmp.sock"
        self.socket = folder / "nbd.sock"
        self.disks = {"vda": "raw", "vdb": "qcow2"}
        for (name, kind), size in zip(self.disks.items(), sizes, strict=True):
            raw = folder / f"{name}.raw"
            raw.write_bytes(random.Random(name).randbytes(size // 2) + bytes(size - size // 2))
            if kind != "raw":
                subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, raw, folder / f"{name}.{kind}"], check=True)
                raw.unlink()
        address = address or f"addr.type=unix,addr.path={self.socket}"
        command = ["qemu-storage-daemon", "--nbd-server", f"{address},max-connections=0"]
        for monitor in (self.qmp, folder / "own.sock"):
            command += ["--chardev", f"socket,id={monitor.stem},path={monitor},server=on,wait=off"]
            command += ["--monitor", f"chardev={monitor.stem}"]
        for name, kind in self.disks.items():
            command += ["--blockdev", f"driver=file,node-name=file-{name},filename={folder / name}.{kind}"]
            command += ["--blockdev", f"driver={kind},node-name=node-{name},file=file-{name}"]
            command += ["--export", f"type=nbd,id={name},name={name},node-name=node-{name},writable=on"]
        with (folder / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen([*TIED, *command], stdout=log, stderr=log)
        try:
            eventually(self._answers, "the storage daemon answers")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "daemon.log").read_text()
        try:
            self.monitor = QmpMonitor.connect(str(self.folder / "own.sock"))
        except MonitorError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.monitor.close()
        self.process.kill()
        self.process.wait()

    def ours(self) -> set[str]:
        """See `names_of_ours`."""
        return names_of_ours(self.monitor.execute)

    def content(self) -> dict[str, bytes]:
        """What the disks hold; of use while nobody writes."""
        found = {}
        for name, kind in self.disks.items():
            raw, image = self.folder / "content", self.folder / f"{name}.{kind}"
            subprocess.run(["qemu-img", "convert", "-U", "-f", kind, "-O", "raw", image, raw], check=True)
            found[name] = raw.read_bytes()
            raw.unlink()
        return found


class Recorder:
    """`tests/recorder.py` in front of a daemon, as a process. Who connects to `socket` is recorded in `log`."""

    def __init__(self, daemon: StorageDaemon, name: str = "recorder") -> None:
        self.socket = daemon.folder / f"{name}.sock"
        self.log = daemon.folder / f"{name}.log"
        command: list[str | Path] = [*TIED, sys.executable, "-m", "tests.recorder", self.socket, daemon.socket, self.log]
        self.process = subprocess.Popen(command, cwd=ROOT)
        try:
            eventually(self.socket.exists, "the recorder listens")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """Its log is complete then."""
        self.process.terminate()
        assert not self.process.wait(20)


@dataclass(frozen=True, slots=True)
class FioJob:
    """Random writes, each read back and verified, to an area of a disk: `depth` at once in bursts of `burst`, with pauses."""

    disk: str
    offset: int
    size: int
    depth: int
    blocks: str
    """fio's `bssplit`: sizes and how often (per cent)."""
    burst: int
    pause_us: int


class Fio:
    """fio at work; it ends with `stop`, or by itself after `seconds`."""

    def __init__(self, folder: Path, recorder: Recorder, jobs: list[FioJob], seconds: int = 3600) -> None:
        self._out = folder / "fio.json"
        words = [
            f"[global]\nthread=1\nioengine=nbd\nrw=randwrite\ntime_based=1\nruntime={seconds}\nrandrepeat=0\nnorandommap=0"
        ]
        # Writes that overlap have to come one after the other: of two at once nobody knows which is there in the end.
        words += ["verify=crc32c\nverify_interval=4096\nverify_backlog=64\nverify_fatal=1\nserialize_overlap=1"]
        for number, job in enumerate(jobs):
            words += [f"[{job.disk}-{number}]\nuri=nbd+unix:///{job.disk}?socket={recorder.socket}"]
            words += [f"offset={job.offset}\nsize={job.size}\niodepth={job.depth}\nbssplit={job.blocks}"]
            words += [f"thinktime={job.pause_us}\nthinktime_blocks={job.burst}"]
        jobs_file = folder / "jobs.fio"
        jobs_file.write_text("\n".join(words))
        self._log = (folder / "fio.log").open("wb")
        command: list[str | Path] = [*TIED, "fio", "--output-format=json", f"--output={self._out}", jobs_file]
        self.process = subprocess.Popen(command, cwd=folder, stdout=self._log, stderr=self._log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def stop(self) -> list[dict[str, Any]]:
        """End it in order; what it has to say of each job. Any error that it saw fails the test."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> list[dict[str, Any]]:
        """Wait for its end."""
        self.process.wait(30)
        text = self._out.read_text()
        document = json.loads(text[text.index("{") :])
        jobs: list[dict[str, Any]] = document["jobs"]
        assert not any(job["error"] for job in jobs), text
        assert all(job["write"]["total_ios"] for job in jobs), text
        return jobs

    @staticmethod
    def worst_write(jobs: list[dict[str, Any]]) -> int:
        """The longest that a write took, in ns."""
        return max(int(job["write"]["clat_ns"]["max"]) for job in jobs)
