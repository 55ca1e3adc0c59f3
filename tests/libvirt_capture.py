# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect --libvirt` as a test runs it, on a domain of a private libvirtd: started, asked, and ended in order."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from everywhen.interfaces.control_socket import NobodyThere, ask
from tests.hypervisor import eventually
from tests.libvirtd import Guest
from tests.program import Done, Program, ended

VM = "web1"


class LibvirtCapture:
    """A guest, called web1 here, a repository, and the capture between them. Left alone, it is killed at the end."""

    def __init__(self, folder: Path, guest: Guest, *, repository: Path | None = None) -> None:
        """`folder`: of the repository, unless there is one. The sockets lie where QEMU, another user, may come."""
        self.guest = guest
        more = {"EVERYWHEN_STATE": str(guest.libvirtd.folder / f"state-{folder.name}")}
        self.program = Program(folder, str(repository or "repo"), more)
        if repository is None:
            self.program.init()
        state = Path(more["EVERYWHEN_STATE"])
        self._sockets = state / VM
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            ended(self.process)

    def start(self, *more: str, prefix: tuple[str, ...] = ()) -> Self:
        """Capture, until it follows every write."""
        self.begin(*more, prefix=prefix)
        self.follows()
        return self

    def begin(self, *more: str, prefix: tuple[str, ...] = ()) -> None:
        """Capture; nothing is waited for. `prefix`: it is an argument of another program."""
        uri, domain = self.guest.libvirtd.uri, self.guest.name
        self.process = self.program.start(
            "protect", VM, "--libvirt", uri, "--domain", domain, "--pace", "0", *more, prefix=prefix
        )

    def refused(self, *arguments: str) -> Done:
        """What a capture says that does not begin; one that does begin ends with the test."""
        self.process = self.program.start("protect", *arguments)
        return ended(self.process)

    def follows(self) -> None:
        """Wait until it follows."""
        process = self.process
        assert process is not None
        eventually(lambda: process.poll() is not None or self.state == "following", "it follows")
        assert process.poll() is None, ended(process)

    @property
    def state(self) -> str | None:
        """What the capture says of itself; None when nobody answers."""
        try:
            return str(self.wish("status")["state"])
        except NobodyThere:
            return None

    def wish(self, what: str, **more: Any) -> dict[str, Any]:
        """Ask for something at its control socket."""
        return ask(self._sockets, {"wish": what, **more})

    def pause(self) -> None:
        """The taps are off when this returns."""
        answer = self.wish("pause", seconds=60)
        assert answer.get("paused") == 60, answer
        eventually(lambda: self.state == "paused", "it pauses")

    def resume(self) -> None:
        """The taps are on, and what changed meanwhile is in a point, when this returns."""
        answer = self.wish("resume")
        assert "error" not in answer, answer
        self.follows()

    def points(self) -> list[dict[str, Any]]:
        """The newest first."""
        found: list[dict[str, Any]] = self.program.ok("points", VM)
        return found

    def another_point(self) -> None:
        """Wait for a point more."""
        before = len(self.points())
        eventually(lambda: len(self.points()) > before, "another point")

    def stop(self) -> Done:
        """The capture ended in order."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        done = ended(self.process)
        assert done.code == 0, done
        return done

    def same(self) -> None:
        """The newest point holds what the disks hold, and no other disks."""
        back = self.program.folder / "same"
        self.program.restore(VM, back)
        assert {path.name for path in back.glob("*.raw")} == {f"{VM}-{image.stem}.raw" for image in self.guest.images}
        for number, image in enumerate(self.guest.images):
            assert (back / f"{VM}-{image.stem}.raw").read_bytes() == self.guest.content(number), f"{image.stem} differs"
        shutil.rmtree(back)
