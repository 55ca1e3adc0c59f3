# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect` on the guest of `guest.py`, as a user runs it, and what is restored from it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from everywhen.interfaces.control_socket import NobodyThere, ask
from tests.guest import Guest
from tests.hypervisor import eventually
from tests.program import Done, Program, ended

VM = "web1"


class GuestCapture:
    """A capture that follows every write; ended with the body, in order or not."""

    def __init__(self, program: Program, guest: Guest, *more: str) -> None:
        self.program = program
        self.process: subprocess.Popen[str] = program.start("protect", VM, "--qmp", guest.qmp, "--pace", "0", *more)

    def __enter__(self) -> Self:
        self._following()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            # Children that a test has stopped (SIGSTOP) would not see that their parent ends.
            for child in [*self._children("watchdog"), *self._children("sink_process")]:
                os.kill(child, signal.SIGKILL)
            self.process.kill()
            ended(self.process)

    def points(self) -> list[dict[str, Any]]:
        """As the program shows them, newest first."""
        found: list[dict[str, Any]] = self.program.ok("points")
        return found

    def more_points(self, count: int) -> None:
        """Wait until there are so many."""
        eventually(lambda: self.process.poll() is not None or len(self.points()) >= count, f"{count} points", 30)
        assert self.process.poll() is None, ended(self.process)

    def begun_again(self, lost_sink: int) -> None:
        """Wait until it follows again, after the loss of a sink."""
        self.process_of("sink_process", other_than=lost_sink)
        self._following()

    def stop(self) -> Done:
        """End it by Ctrl-C; it must end in order."""
        self.process.send_signal(signal.SIGINT)
        done = ended(self.process)
        assert done.code == 0, done
        return done

    def process_of(self, module: str, *, other_than: int = 0) -> int:
        """The id of a process that it has started, `sink_process` or `watchdog`; waits for one after a loss."""
        found: set[int] = set()

        def there() -> bool:
            found.update(self._children(module))
            return bool(found - {other_than})

        eventually(there, f"a {module} below {self.process.pid}")
        return (found - {other_than}).pop()

    def _following(self) -> None:
        eventually(lambda: self.process.poll() is not None or self._state() == "following", "it follows", 30)
        assert self.process.poll() is None, ended(self.process)

    def _state(self) -> str | None:
        try:
            return str(ask(self.program.folder / "host" / VM, {"wish": "status"})["state"])
        except NobodyThere:
            return None

    def _children(self, module: str) -> Iterator[int]:
        parent = self.process.pid
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended just now
                if f"everywhen.capture.{module}\0" in Path(f"/proc/{child}/cmdline").read_text():
                    yield int(child)

    def restored(self, moment: str) -> list[Path]:
        """Raw images of all disks at a moment, in their order."""
        done = self.program.restore(f"{VM}@{moment}", self.program.folder / "restored", "--overwrite")
        return [self.program.folder / disk["path"] for _, disk in sorted(done["disks"].items())]


def nanoseconds(time: str) -> int:
    """A time as the program writes it, in ns since 1970."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


def identical(images: list[Path], guest: Guest) -> None:
    """The images hold what the disks of the guest hold, which has ended."""
    for image, disk in zip(images, guest.images, strict=True):
        assert image.read_bytes() == disk.read_bytes(), f"{disk.name} differs"
