# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real Linux guest that writes: numbered records, fsynced on two ext4 disks in turn, and churn.

Its kernel comes from `scripts/test-guest`, its only program is `guest_init.c`, compiled here. It is emulated (no KVM needed).
What is known about its writes is known by the host's clock alone, the one by which the sink stamps them:

- `issued[k]` is taken before the host asks for record k. The guest does not begin it earlier, so the sink stamps every write of
  record k later: a state at `t` that holds it means `issued[k] <= t`.
- `safe[k]` is taken when the guest's line says that fsync has returned. QEMU answered those writes after the sink had stamped
  them: `safe[k] <= t` means that a state at `t` holds the record.

Record k is asked for when k - 1 is safe. So at any instant there is at most one record that a state may hold or not.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from everywhen.capture.qmp import MonitorError, QmpMonitor
from tests.hypervisor import QEMU, eventually
from tests.processes import TIED

_HERE = Path(__file__).parent
KERNEL = _HERE.parent / ".servers" / "guest"
SIZES = (40 << 20, 24 << 20)
_FILE_SYSTEM = (("-b", "4096", "-J", "size=4"), ("-b", "1024", "-J", "size=2"))
"""Options of mke2fs for each disk: block size, and the size of the file system's journal in MiB, small so that it wraps."""
_BOOT_S = 60.0

needs_kernel = pytest.mark.skipif(
    not (KERNEL / "vmlinuz").exists() or not shutil.which("gcc"), reason="no kernel (scripts/test-guest) or no gcc"
)


def cpio(entries: list[tuple[str, int, bytes]]) -> bytes:
    """An archive for the kernel's initramfs, in the format `newc` (Linux, buffer-format.rst): (name, mode, content)."""
    archive = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        words = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        for part in (b"070701" + b"".join(b"%08X" % word for word in words) + name.encode() + b"\0", content):
            archive += part + bytes(-len(part) % 4)
    return bytes(archive)


def initramfs(folder: Path) -> Path:
    """The guest's program and the modules of its kernel."""
    program = folder / "init"
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-static", "-o", program, _HERE / "guest_init.c"], check=True)
    entries = [("init", 0o100755, program.read_bytes()), ("modules", 0o040755, b"")]
    entries += [(f"modules/{path.name}", 0o100644, path.read_bytes()) for path in sorted((KERNEL / "modules").iterdir())]
    archive = folder / "initramfs"
    archive.write_bytes(cpio(entries))
    return archive


class Guest:
    """The guest, booted in `folder`. `qmp` is for the code under test; times are nanoseconds since 1970 by the host's clock."""

    def __init__(
        self, folder: Path, *, ramdisk: Callable[[Path], Path] = initramfs, image_format: str = "raw", more: Sequence[str] = ()
    ) -> None:
        """`ramdisk` makes what it boots from, in a folder; `more`: arguments of QEMU for whatever else it is to have."""
        self.folder = folder
        self.qmp = folder / "qmp.sock"
        self.images = [folder / f"disk{number}.{image_format}" for number in range(len(SIZES))]
        self._format = image_format
        self._more = more
        self.issued: list[int] = []
        self.safe: list[int] = []
        self.beats: list[int] = []
        self.errors: list[str] = []
        self._begun = b""
        self._writing = False
        self._turn = threading.Lock()
        self._ups = self._starts = 0
        for image, size, options in zip(self.images, SIZES, _FILE_SYSTEM, strict=True):
            with image.open("wb") as file:
                file.truncate(size)
            subprocess.run(["mke2fs", "-q", "-t", "ext4", *options, image], check=True)
            if image_format != "raw":
                made = image.rename(folder / "made")
                subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", image_format, made, image], check=True)
                made.unlink()
        self._boot(ramdisk(folder))

    def _boot(self, archive: Path) -> None:
        self._archive = archive
        self._launch()
        try:
            self._started(1)
        except BaseException:
            self.kill()
            raise

    def _launch(self, *more: str, before: threading.Thread | None = None) -> None:
        """Start a QEMU with its monitors and logs in `folder`; `before` it another one had the guest."""
        self._port, theirs = socket.socketpair()
        command = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-M", "q35", "-accel", "tcg", "-m", "128"]
        command += ["-kernel", str(KERNEL / "vmlinuz"), "-initrd", str(self._archive)]
        # Warnings and errors of the kernel go to the first port, quiet or not; a panic stays to be seen.
        command += ["-append", "console=ttyS0 loglevel=5 nokaslr mitigations=off panic=0"]
        command += ["-serial", f"file:{self.folder / 'console'}"]
        command += ["-chardev", f"socket,id=port,fd={theirs.fileno()}", "-serial", "chardev:port"]
        command += ["-trace", "enable=handle_qmp_command", "-D", str(self.folder / "qemu.trace"), "-msg", "timestamp=on"]
        own = self.folder / "own.sock"
        for path in (self.qmp, own):
            command += ["-qmp", f"unix:{path},server=on,wait=off"]
        for number, image in enumerate(self.images):
            command += ["-blockdev", f"driver=file,node-name=file{number},filename={image},discard=unmap"]
            command += ["-blockdev", f"driver={self._format},node-name=node{number},file=file{number},discard=unmap"]
            command += ["-device", f"virtio-blk-pci,drive=node{number},id=vd{number}"]
        command += [*self._more, *more]
        with (self.folder / "qemu.log").open("wb") as log:
            self.process = subprocess.Popen([*TIED, *command], stdout=log, stderr=log, pass_fds=[theirs.fileno()])
        theirs.close()
        self._listener = threading.Thread(target=self._listen, args=(self._port, before))
        self._listener.start()
        try:
            eventually(lambda: self._answers(own), "QEMU answers")
        except BaseException:
            self.kill()
            raise

    def migrate(self, folder: Path) -> None:
        """Move to another QEMU with the same disks, its monitors and logs in `folder`. Records rest, the churn goes on."""
        self.rest()
        source, port, listener, monitor = self.process, self._port, self._listener, self.folder / "own.sock"
        folder.mkdir()
        self.folder, self.qmp = folder, folder / "qmp.sock"
        address = f"unix:{folder}/incoming.sock"
        try:
            self._launch("-incoming", address, before=listener)
            with QmpMonitor.connect(str(monitor)) as leaving:
                leaving.execute("migrate", {"uri": address})
                eventually(lambda: leaving.execute("query-migrate")["status"] in ("completed", "failed"), "it moves", _BOOT_S)
                assert leaving.execute("query-migrate")["status"] == "completed", leaving.execute("query-migrate")
                leaving.execute("quit")
            source.wait(_BOOT_S)
        finally:
            source.kill()
            source.wait()
            listener.join()
            port.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def kill(self) -> None:
        """End it as a crash of the host would, if it has not ended."""
        with self._turn:
            self._writing = False
        self.process.kill()
        self.process.wait()
        self._listener.join()
        self._port.close()

    def write(self) -> None:
        """Begin to write records, or go on."""
        with self._turn:
            self._writing = True
            self._issue()

    def rest(self) -> None:
        """Write no more records; returns when the last one is safe. Churn and heartbeat go on."""
        with self._turn:
            self._writing = False
        self.wait(lambda: len(self.safe) == len(self.issued), "the last record is safe")

    def reach(self, records: int) -> None:
        """Wait until so many records are safe."""
        self.wait(lambda: len(self.safe) >= records, f"{records} records")

    def poweroff(self) -> None:
        """End it in order; QEMU ends with it."""
        self.rest()
        self._say("poweroff")
        self.process.wait(_BOOT_S)
        self._listener.join()

    def reboot(self) -> None:
        """Unmount, and boot again."""
        self.rest()
        self._say("reboot")
        self._started(self._starts + 1)

    def console(self) -> str:
        """What its kernel said."""
        return (self.folder / "console").read_text(errors="replace")

    def healthy(self) -> None:
        """No call of its program failed, and its kernel had nothing to say about its disks."""
        assert not self.errors, (self.errors, self.console())
        said = self.console()
        words = ("I/O error", "EXT4-fs error", "EXT4-fs warning", "JBD2", "hung_task", "blocked for more than", "panic", "Oops")
        assert not [word for word in words if word in said], said

    def commands(self, since_ns: int, until_ns: int) -> list[str]:
        """The monitor commands that QEMU was given in that time, whole, by whomever."""
        found = []
        for line in (self.folder / "qemu.trace").read_text().splitlines():
            stamp, _, text = line.partition(":handle_qmp_command ")
            if text and since_ns <= int(stamp.rpartition("@")[2].replace(".", "")) * 1000 <= until_ns:
                found.append(text)
        return found

    def wait(self, done: Callable[[], bool], what: str, seconds: float = _BOOT_S) -> None:
        """Wait for something that must come true while the guest lives and has no errors."""

        def checked() -> bool:
            assert not self.errors, (self.errors, self.console())
            assert self.process.poll() is None, ((self.folder / "qemu.log").read_text(), self.console())
            return done()

        eventually(checked, what, seconds)

    def _answers(self, path: Path) -> bool:
        assert self.process.poll() is None, (self.folder / "qemu.log").read_text()
        try:
            QmpMonitor.connect(str(path)).close()
        except MonitorError:
            return False
        return True

    def _started(self, times: int) -> None:
        self.wait(lambda: self._ups == times, f"it boots: {times}")
        self._say("start")
        self.wait(lambda: self._starts == times, f"its disks are mounted: {times}")

    def _say(self, line: str) -> None:
        self._port.sendall(f"{line}\n".encode())

    def _issue(self) -> None:
        """Ask for the next record if it is its turn; the caller has the lock."""
        if self._writing and len(self.safe) == len(self.issued):
            number = len(self.issued)
            self.issued.append(time.time_ns())
            self._say(f"go {number}")

    def _listen(self, port: socket.socket, before: threading.Thread | None) -> None:
        """Take what the guest says until its port is closed, and ask for the next record as soon as one is safe."""
        if before is not None:
            before.join()
        with port.makefile("rb") as lines:
            for said in lines:
                now = time.time_ns()
                line, self._begun = self._begun + said, b""
                if not line.endswith(b"\n"):
                    self._begun = line  # the end came in the middle of it; after a migration the rest comes at another port
                    break
                word, _, rest = line.decode(errors="replace").strip().partition(" ")
                if word == "safe" and int(rest) == len(self.safe):
                    with self._turn:
                        self.safe.append(now)
                        self._issue()
                elif word == "beat":
                    self.beats.append(now)
                elif word == "up":
                    self._ups += 1
                elif word == "started":
                    self._starts += 1
                else:
                    self.errors.append(line.decode(errors="replace"))
