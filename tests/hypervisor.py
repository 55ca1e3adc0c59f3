# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real QEMU with real disks, whose processor stands still: the test writes in its guest's place, by its virtio devices."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from everywhen.capture.qmp import MonitorError, QmpMonitor
from tests.processes import TIED

QEMU = "qemu-system-x86_64"


def eventually(done: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait for something that must come true."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def names_of_ours(execute: Callable[..., Any]) -> set[str]:
    """Names of ours that are left on a QEMU which is asked so: nodes, jobs, exports, bitmaps."""
    nodes = execute("query-named-block-nodes", {"flat": True})
    names = {str(node["node-name"]) for node in nodes}
    names |= {str(bitmap.get("name")) for node in nodes for bitmap in node.get("dirty-bitmaps", [])}
    names |= {str(job["device"]) for job in execute("query-block-jobs")}
    names |= {str(export["id"]) for export in execute("query-block-exports")}
    return {name for name in names if name.startswith("everywhen-")}


class Hypervisor:
    """QEMU in `folder` with disks of these sizes; `qmp` is for the code under test, the test has a monitor of its own.

    `iothread`: one serves them. While the processor stands still it does so only for `scsi` disks, which are those of one
    virtio-scsi controller. `more`: arguments of QEMU for whatever else it is to have. Images that are there already are taken.
    """

    def __init__(
        self,
        folder: Path,
        sizes: list[int],
        *,
        iothread: bool = False,
        scsi: bool = False,
        image_format: str = "raw",
        more: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.qmp = folder / "qmp.sock"
        self.images = [folder / f"disk{number}.{image_format}" for number in range(len(sizes))]
        for image, size in zip(self.images, sizes, strict=True):
            if not image.exists():
                subprocess.run(["qemu-img", "create", "-q", "-f", image_format, image, str(size)], check=True)
        self._formats = [image_format] * len(sizes)
        self._iothread = iothread
        self._scsi = scsi
        self._more = more
        self.start()

    def start(self) -> None:
        """Start it, after an end too."""
        command = [QEMU, "-S", "-nodefaults", "-display", "none", "-M", "q35", "-m", "32", "-object", "iothread,id=io0"]
        served = ",iothread=io0" if self._iothread else ""
        if self._scsi:
            command += ["-device", f"virtio-scsi-pci,id=scsi0{served}"]
        for number, image in enumerate(self.images):
            command += ["-blockdev", f"driver=file,node-name=file{number},filename={image}"]
            command += ["-blockdev", f"driver={self._formats[number]},node-name=node{number},file=file{number}"]
            kind = "scsi-hd" if self._scsi else f"virtio-blk-pci{served}"
            command += ["-device", f"{kind},drive=node{number},id=vd{number}"]
        command += self._more
        own = self.folder / "own.sock"
        for path in (self.qmp, own):
            path.unlink(missing_ok=True)
            command += ["-qmp", f"unix:{path},server=on,wait=off"]
        with (self.folder / "qemu.log").open("ab") as log:
            self.process = subprocess.Popen([*TIED, *command], stdout=log, stderr=log)
        try:
            eventually(lambda: self._answers(own), "QEMU answers")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _answers(self, path: Path) -> bool:
        assert self.process.poll() is None, (self.folder / "qemu.log").read_text()
        try:
            self.monitor = QmpMonitor.connect(str(path))
        except MonitorError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def kill(self) -> None:
        """End it as a crash of the host would."""
        self.monitor.close()
        self.process.kill()
        self.process.wait()

    def quit(self) -> None:
        """End it in order."""
        self.monitor.execute("quit")
        self.monitor.close()
        self.process.wait(20)

    def io(self, disk: int, command: str) -> str:
        """A command of qemu-io, as if the guest had sent it to its device."""
        device = f"/machine/peripheral/vd{disk}" + ("" if self._scsi else "/virtio-backend")
        line = f'qemu-io -d {device} "{command}"'
        return str(self.monitor.execute("human-monitor-command", {"command-line": line}))

    def write(self, disk: int, offset: int, length: int, value: int) -> None:
        """Bytes of one value, answered before this returns."""
        self.io(disk, f"write -P {value} {offset} {length}")

    def writes_answered(self, disk: int) -> int:
        """How many writes the guest has had an answer to."""
        for stats in self.monitor.execute("query-blockstats"):
            if f"vd{disk}" in str(stats.get("qdev")).split("/"):
                return int(stats["stats"]["wr_operations"])
        raise AssertionError(f"no disk {disk}")

    def write_errors(self, disk: int) -> int:
        """How many writes failed as the guest sees it."""
        for stats in self.monitor.execute("query-blockstats"):
            if f"vd{disk}" in str(stats.get("qdev")).split("/"):
                return int(stats["stats"]["failed_wr_operations"])
        raise AssertionError(f"no disk {disk}")

    def ours(self) -> set[str]:
        """See `names_of_ours`."""
        return names_of_ours(self.monitor.execute)

    def replace(self, images: list[Path], image_format: str) -> None:
        """Other images for its disks, from its next start on."""
        self.images = images
        self._formats = [image_format] * len(images)

    def shows(self, disk: int, image: Path, image_format: str) -> None:
        """A disk's content is in another image from now on."""
        self.images[disk] = image
        self._formats[disk] = image_format

    def content(self, disk: int) -> bytes:
        """What the disk holds."""
        raw = self.folder / f"content{disk}"
        subprocess.run(
            ["qemu-img", "convert", "-U", "-f", self._formats[disk], "-O", "raw", self.images[disk], raw], check=True
        )
        return raw.read_bytes()
