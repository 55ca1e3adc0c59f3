# SPDX-License-Identifier: AGPL-3.0-or-later
"""The process that parses the file systems of one moment (`guest/process.py`), from the side of who asks.

It is started at the first question, and again after it was ended: by its own fault, because it took too long, or because it
said what nobody who is in his right mind says. That question fails, and nothing else. The time the repository takes does
not count as its own.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from threading import Lock, Thread
from time import monotonic
from typing import TypeVar

from everywhen.formats.errors import FormatError
from everywhen.formats.fields import Json, mapping
from everywhen.guest.errors import GuestError, GuestLimit
from everywhen.guest.messages import Message, receive
from everywhen.guest.values import error_of
from everywhen.nbd.devices import Device, OpenedExport
from everywhen.nbd.exports import NoExport
from everywhen.nbd.served_client import ServedClient, Terms

PATIENCE_S = 60.0
"""For a question, without what the repository takes. The slowest honest one seen took 2 s."""
PROCESS = (sys.executable, "-P", "-m", "everywhen.guest.process")
_LOOK_S = 1.0
_END_S = 5.0

_T = TypeVar("_T")


class ParserEnded(GuestError):
    """The process that parses a guest's file systems has ended, or cannot be believed. The next question starts another one."""


class _Waiting:
    """How long devices are being read altogether, and what was the matter with them last. For several threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = Lock()
        self._readers = 0
        self._since = 0.0
        self._seconds = 0.0
        self.error: Exception | None = None

    @property
    def seconds(self) -> float:
        with self._lock:
            return self._seconds + (self._clock() - self._since if self._readers else 0.0)

    def begin(self) -> None:
        with self._lock:
            if not self._readers:
                self._since = self._clock()
            self._readers += 1

    def end(self) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                self._seconds += self._clock() - self._since


class _Watched:
    """A Device whose reads are timed, and whose errors are kept for who asked."""

    def __init__(self, device: Device, waiting: _Waiting) -> None:
        self._device = device
        self._waiting = waiting
        self.size = device.size

    def read(self, offset: int, length: int) -> bytes:
        self._waiting.begin()
        try:
            return self._device.read(offset, length)
        except Exception as error:
            self._waiting.error = error
            raise
        finally:
            self._waiting.end()

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return self._device.read_cached(offset, length)

    def status(self, offset: int, length: int) -> Iterable[tuple[int, bool]]:
        return self._device.status(offset, length)


class _Disks:
    """Exports: the disks of one moment by name. They are opened and let go of by others."""

    def __init__(self, disks: Mapping[str, Device]) -> None:
        self._disks = disks

    def names(self) -> Iterable[str]:
        return list(self._disks)

    def open(self, name: str) -> OpenedExport:
        disk = self._disks.get(name)
        if disk is None:
            raise NoExport(f"no disk {name}")
        return OpenedExport(disk, lambda: None)


class _Running:
    """One process and those who serve it its disks."""

    def __init__(self, disks: Mapping[str, Device], failures: tuple[type[Exception], ...], command: Sequence[str]) -> None:
        """Start it. Raises OSError."""
        with ExitStack() as theirs, ExitStack() as ours:
            numbers: list[int] = []

            def pair() -> socket.socket:
                mine, its = socket.socketpair()
                numbers.append(theirs.enter_context(its).fileno())
                return ours.enter_context(mine)

            self.questions = pair()
            self.questions.settimeout(_LOOK_S)
            sockets = {name: pair() for name in disks}
            named = [f"{name}={number}" for name, number in zip(("", *disks), numbers, strict=True)]
            self._process = subprocess.Popen(
                [*command, *named],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what it would say there are a guest's words
                pass_fds=numbers,
                env={"OPENBLAS_NUM_THREADS": "1"},  # no threads that nobody uses; and nothing of ours
                cwd="/",
                start_new_session=True,  # Ctrl-C is meant for us
            )
            ours.pop_all()
        terms = Terms(_Disks(disks), failures, lambda _name, _error: None)  # errors are kept where they are raised
        self._clients = [ServedClient(one, terms) for one in sockets.values()]
        self._threads = [Thread(target=client.run, name="guest-disk", daemon=True) for client in self._clients]
        for thread in self._threads:
            thread.start()

    def end(self, seconds: float = 0.0) -> str:
        """End it, at once or when it has not ended by itself in so many seconds; how it ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self._process.kill()
        code = self._process.wait()
        self.questions.close()
        for client in self._clients:
            client.hang_up()
        for thread in self._threads:
            thread.join()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


class Parser:
    """Asks about the disks of one moment. For several threads; `close` it."""

    def __init__(
        self,
        disks: Mapping[str, Device],
        failures: tuple[type[Exception], ...],
        *,
        patience_s: float = PATIENCE_S,
        command: Sequence[str] = PROCESS,
        clock: Callable[[], float] = monotonic,
        starting: Callable[[Parser], None] = lambda _parser: None,
    ) -> None:
        """`failures`: what the disks raise when they cannot be read; who asks gets that very error. `starting`: called
        before a process is started.
        """
        self._waiting = _Waiting(clock)
        self._disks = {name: _Watched(disk, self._waiting) for name, disk in disks.items()}
        self._failures = failures
        self._patience_s = patience_s
        self._command = command
        self._clock = clock
        self._starting = starting
        self._running: _Running | None = None
        self._over = False
        self._lock = Lock()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def end(self) -> None:
        """End the process for good: who waits for his turn to ask is told so, and nobody starts another one."""
        self._over = True
        self.close()

    def rest(self) -> bool:
        """End the process until the next question, unless there is one just now; whether none is running."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._end()
        finally:
            self._lock.release()
        return True

    def ask(self, question: Json, decode: Callable[[Message], _T]) -> tuple[_T, Exception | None]:
        """The answer, and what ended it too early. `decode` raises FormatError for one that cannot be true.

        Raises GuestError, and what a disk raises.
        """
        with self._lock:
            if self._over:
                raise ParserEnded("the guest's files are not read any more")
            self._waiting.error = None
            try:
                answer = self._exchanged(Message(question).encode())
                failed = error_of(mapping(answer.head, "failed")) if "failed" in answer.head else None
                nothing = failed is not None and len(answer.head) == 1
                value = None if nothing else decode(answer)
            except FormatError as error:
                self._end()
                raise ParserEnded(f"the process that reads the guest's files said what cannot be true: {error}") from error
            except BaseException:
                self._end()  # an answer that nobody waited for must not be taken for the next one's
                raise
            ended = self._waiting.error if failed is not None and self._waiting.error is not None else failed
        if value is None:
            raise ended or ParserEnded("the process that reads the guest's files said nothing")
        return value, ended

    def _exchanged(self, question: bytes) -> Message:
        if self._running is None:
            self._starting(self)
            self._running = _Running(self._disks, self._failures, self._command)
        channel = self._running.questions
        begin, waited = self._clock(), self._waiting.seconds

        def take(count: int) -> bytes:
            taken = bytearray()
            while len(taken) < count:
                if self._clock() - begin - (self._waiting.seconds - waited) > self._patience_s:
                    raise GuestLimit(f"it takes more than {self._patience_s:g} s of work")
                with suppress(TimeoutError):
                    some = channel.recv(count - len(taken))
                    if not some:
                        raise EOFError
                    taken += some
            return bytes(taken)

        try:
            channel.sendall(question)
            return receive(take)
        except (OSError, EOFError) as error:
            how = self._end(_END_S)
            raise ParserEnded(
                f"the process that reads the guest's files has ended ({how}); it may be made to do harm"
            ) from error

    def _end(self, seconds: float = 0.0) -> str:
        running, self._running = self._running, None
        return running.end(seconds) if running is not None else "ended"
