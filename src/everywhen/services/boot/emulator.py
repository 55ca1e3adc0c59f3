# SPDX-License-Identifier: AGPL-3.0-or-later
"""The QEMU of this host, and one that runs a copy.

It must not outlive us, whose it has its disks from: the kernel kills it when the thread that started it has ended (prctl(2),
PR_SET_PDEATHSIG, through setpriv(1): a program of many threads must run no code of its own between fork and exec).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from enum import Enum
from types import TracebackType
from typing import Self

from everywhen.capture.qmp import CommandFailed, MonitorError, QmpMonitor
from everywhen.services.boot.machine_types import listed
from everywhen.services.failures import Failed, NotFound

_PROGRAMS = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm", "qemu-kvm")
_START_S = 60.0
_QUIT_S = 10.0
_KVM = "/dev/kvm"
_LAST_WORDS = 2000
"""Characters of what QEMU says that are told when it does not start."""


class Emulator:
    """How QEMU is called here."""

    def __init__(self, search: str | None) -> None:
        """`search`: folders of programs, as in PATH. Raises NotFound."""
        found = next((path for name in _PROGRAMS if (path := shutil.which(name, path=search))), None)
        if found is None:
            raise NotFound("QEMU is not there (qemu-system-x86_64).", do=["apt-get install qemu-system-x86"])
        tie = shutil.which("setpriv", path=search)
        if tie is None:
            raise NotFound("setpriv is not there: it sees to it that QEMU ends with us.", do=["apt-get install util-linux"])
        self.command = [tie, "--pdeathsig", "KILL", "--", found]
        self._program = found

    def machine_types(self) -> list[str]:
        """What `-machine` takes. Raises Failed."""
        asked = subprocess.run([self._program, "-machine", "help"], capture_output=True, text=True, check=False)
        if asked.returncode:
            raise Failed(f"{self._program} cannot be run: {asked.stderr.strip()[-_LAST_WORDS:]}", on=self._program)
        return listed(asked.stdout)


def kvm_opens() -> bool:
    """Whether this process may use KVM. The device may be there without a driver behind it."""
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class State(Enum):
    """Of a copy."""

    RUNS = 0
    BROKEN = 1
    """Its processor stands for ever: KVM could not go on."""
    GONE = 2
    """QEMU has ended, or is about to."""


class BootedCopy:
    """A QEMU that runs; a context manager that ends it. `console`: its guest's serial port, raw bytes; `said` reads it."""

    def __init__(self, emulator: Emulator, arguments: Callable[[int, int], list[str]], log: str) -> None:
        """`arguments` of QEMU, from descriptors of its ends of the monitor and the console; what it says: to file `log`.

        Raises Failed when it does not start.
        """
        self._log = log
        with ExitStack() as undo:
            ours, monitor_end = socket.socketpair()
            self.console, console_end = socket.socketpair()
            undo.callback(self.console.close)
            undo.callback(ours.close)
            with monitor_end, console_end, open(log, "wb") as said:
                ends = (monitor_end.fileno(), console_end.fileno())
                command = [*emulator.command, *arguments(*ends)]
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=ends)
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
            try:
                self.monitor = QmpMonitor(ours, _START_S)
                self.accelerator = "kvm" if self.monitor.execute("query-kvm")["enabled"] else "tcg"
            except MonitorError as error:
                raise Failed(f"QEMU has not started: {self.last_words() or error}") from error
            undo.pop_all()

    def state(self) -> State:
        """How it is, now that its monitor has something to say."""
        try:
            if self.monitor.next_event(0, lambda event: event.name == "STOP") is None:
                return State.RUNS
            return State.BROKEN if self.monitor.execute("query-status")["status"] == "internal-error" else State.RUNS
        except MonitorError:
            return State.GONE

    def said(self, most: int) -> bytes:
        """What its guest has sent, so many bytes at most; nothing when its console has ended."""
        try:
            return self.console.recv(most)
        except ConnectionResetError:  # keys were on their way that nobody has read
            return b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def ended(self) -> int:
        """After it has hung up: its exit code; negative: a signal's number. It is killed if it hangs."""
        return self._gone()

    def end(self) -> None:
        """In order if it can be: it flushes its disks then. After this it is gone."""
        with suppress(MonitorError, CommandFailed):
            self.monitor.execute("quit", timeout=_QUIT_S)
        self._gone()
        self.monitor.close()
        self.console.close()

    def last_words(self) -> str:
        """What QEMU said last on its standard error."""
        with open(self._log, "rb") as file:
            file.seek(max(0, os.path.getsize(self._log) - _LAST_WORDS))
            lines = [line.strip() for line in file.read(_LAST_WORDS).decode(errors="replace").splitlines() if line.strip()]
        return " ".join(lines)

    def _gone(self) -> int:
        try:
            return self._process.wait(_QUIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
