# SPDX-License-Identifier: AGPL-3.0-or-later
"""QEMU's monitor protocol (docs/interop/qmp-spec of QEMU): one JSON object a line, replies by id, events between them.

`Monitor` is what capture needs of a monitor, however it is reached. `QmpSession` is the protocol without I/O; `QmpMonitor`
runs it over a socket, for one thread. Every wait has a limit: a monitor that does not answer means that QEMU's main loop is
blocked, or that nobody is there.
"""

from __future__ import annotations

import json
import os
import select
import socket
import stat
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from everywhen.capture.socket_access import ProcessUser
from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, mapping, parse_json, text, whole

MOST_EVENTS = 4096
"""Events that nobody has asked for yet; the oldest go."""
_HEARD = ("BLOCK_JOB_", "BLOCK_EXPORT_", "DEVICE_DELETED", "SHUTDOWN", "STOP", "RESUME", "RESET")
"""How those begin that anybody here asks for."""
_FAILING = "BLOCK_JOB_ERROR"
_LONGEST_LINE = 16 << 20
"""query-named-block-nodes of a VM with a hundred disks is 0.5 MB."""


class MonitorError(Exception):
    """The monitor cannot be used: nobody is there, it does not answer, or it answers something that is no QMP."""


class VmOff(MonitorError):
    """Nobody is at the monitor: its VM is off, as far as can be seen from here."""


class VmUnknown(MonitorError):
    """The hypervisor has no such VM."""


class MonitorBusy(MonitorError):
    """It is there, and takes no commands now: somebody else does something with the VM that takes its time."""


class CommandFailed(Exception):
    """QEMU refused a command. `kind` is its error class, the message its description."""

    def __init__(self, command: str, kind: str, description: str) -> None:
        super().__init__(description)
        self.command = command
        self.kind = kind


class Event(NamedTuple):
    """Something that happened: its name and its data. When it was, by QEMU's clock, nobody asks, and QEMU may not know (-1)."""

    name: str
    data: Json


class Heard:
    """Events that nobody has asked for yet.

    Some a guest can cause as often as it likes: they would push out the one that says that a tap has ended, and writes that
    nobody received would be taken for captured. So BLOCK_IO_ERROR and the like are not kept, and of the errors of a job, of
    which a push that has lost its sink tells with every write, only one is.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._failing: set[object] = set()

    def add(self, event: Event) -> None:
        """It happened."""
        if event.name == _FAILING:
            job = event.data.get("device")
            if not isinstance(job, str) or job in self._failing:
                return
            self._failing.add(job)
        if event.name.startswith(_HEARD):
            self._events.append(event)

    def oldest(self, wanted: Callable[[Event], bool]) -> Event | None:
        """The oldest that is wanted."""
        return next((event for event in self._events if wanted(event)), None)

    def take(self, wanted: Callable[[Event], bool]) -> Event | None:
        """The same, taken out."""
        event = self.oldest(wanted)
        if event is not None:
            self._events.remove(event)
            if event.name == _FAILING:
                self._failing.discard(event.data.get("device"))
        return event


class Answer(NamedTuple):
    """The reply to the command `number`: what it returned, or the class and description of its error."""

    number: int
    value: Any
    error: tuple[str, str] | None


class QmpSession:
    """Bytes in, answers and events out. Raises Corrupt for what is no QMP."""

    def __init__(self) -> None:
        self._input = bytearray()
        self._number = 0
        self.greeted = False

    def command(self, name: str, arguments: Json | None = None) -> tuple[int, bytes]:
        """The number and the bytes of a command."""
        self._number += 1
        message: Json = {"execute": name, "id": self._number}
        if arguments:
            message["arguments"] = arguments
        return self._number, json.dumps(message).encode() + b"\n"

    def receive(self, data: bytes) -> list[Answer | Event]:
        """What is complete now."""
        self._input += data
        *lines, rest = self._input.split(b"\n")
        self._input = rest
        if len(rest) > _LONGEST_LINE:
            raise Corrupt(f"a line of more than {_LONGEST_LINE} bytes")
        found: list[Answer | Event] = []
        for line in lines:
            if line.strip():
                self._message(parse_json("the monitor's answer", bytes(line)), found)
        return found

    def _message(self, message: Json, found: list[Answer | Event]) -> None:
        if "QMP" in message:
            self.greeted = True
        elif "event" in message:
            found.append(Event(text(message, "event"), mapping(message, "data")))
        elif "return" in message:
            found.append(Answer(whole(message, "id"), message["return"], None))
        elif isinstance(error := message.get("error"), dict):
            found.append(Answer(whole(message, "id", 0), None, (text(error, "class", ""), text(error, "desc", ""))))
        else:
            raise Corrupt("a message that is neither a return, an error nor an event")


class Monitor(Protocol):
    """A connected monitor, for one thread. Events are `Heard`."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def close(self) -> None:
        """Hang up."""

    def execute(self, name: str, arguments: Json | None = None, *, timeout: float | None = None) -> Any:  # noqa: ANN401 - JSON
        """Run a command and wait for what it returns. Raises CommandFailed, MonitorError."""

    def next_event(self, timeout: float, wanted: Callable[[Event], bool] = lambda _: True) -> Event | None:
        """The oldest event that is wanted, taken out; None when none comes in time. Raises MonitorError."""


class QmpMonitor:
    """A monitor at a socket."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        """Take over a socket whose other end is a QMP monitor; waits for its greeting. Raises MonitorError."""
        self._socket = connection
        self._session = QmpSession()
        self._events = Heard()
        self._answers: dict[int, Answer] = {}
        self.timeout = timeout
        connection.setblocking(False)
        self._wait(lambda: self._session.greeted, timeout)
        self.execute("qmp_capabilities")

    @classmethod
    def connect(cls, path: str, timeout: float = 10.0) -> QmpMonitor:
        """The monitor at a unix socket. QEMU serves one client at a time, two may wait. Raises VmOff, MonitorError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect(path)
            return cls(connection, timeout)
        except (_Late, BlockingIOError) as error:
            connection.close()
            late = str(error) if isinstance(error, _Late) else "several clients wait for the monitor already"
            raise MonitorBusy(f"{path}: {late}") from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            if os.path.exists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
                raise MonitorError(f"{path} is no socket") from error
            raise VmOff(f"{path}: {error.strerror}") from error
        except OSError as error:
            connection.close()
            raise MonitorError(f"{path}: {error.strerror or error}") from error
        except MonitorError as error:
            connection.close()
            raise MonitorError(f"{path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    @property
    def peer(self) -> ProcessUser:
        """As whom QEMU runs."""
        return ProcessUser.of_peer(self._socket)

    def fileno(self) -> int:
        """For `select`: readable when events may have come."""
        return self._socket.fileno()

    def execute(self, name: str, arguments: Json | None = None, *, timeout: float | None = None) -> Any:  # noqa: ANN401 - JSON
        """Run a command and wait for what it returns. Raises CommandFailed, MonitorError."""
        number, line = self._session.command(name, arguments)
        self._send(line)
        self._wait(lambda: number in self._answers, self.timeout if timeout is None else timeout)
        answer = self._answers.pop(number)
        if answer.error is not None:
            raise CommandFailed(name, *answer.error)
        return answer.value

    def next_event(self, timeout: float, wanted: Callable[[Event], bool] = lambda _: True) -> Event | None:
        """The oldest event that is wanted, taken out; None when none comes in time. Raises MonitorError."""

        with suppress(TimeoutError):
            self._wait(lambda: self._events.oldest(wanted) is not None, timeout)
        return self._events.take(wanted)

    def _send(self, line: bytes) -> None:
        self._socket.settimeout(self.timeout)
        try:
            self._socket.sendall(line)
        except OSError as error:
            raise MonitorError(f"the monitor does not take commands: {error}") from error
        finally:
            self._socket.setblocking(False)

    def _wait(self, done: Callable[[], bool], timeout: float) -> None:
        end = monotonic() + timeout
        while not done():
            # With no time left what has come in already is still taken.
            if not select.select([self._socket], [], [], max(0.0, end - monotonic()))[0]:
                raise _Late(f"the monitor does not answer within {timeout:g} s")
            try:
                data = self._socket.recv(1 << 20)
            except OSError as error:
                raise MonitorError(f"the monitor hung up: {error}") from error
            if not data:
                raise MonitorError("the monitor hung up")
            try:
                received = self._session.receive(data)
            except Corrupt as error:
                raise MonitorError(f"no QMP monitor: {error}") from error
            for item in received:
                if isinstance(item, Answer):
                    self._answers[item.number] = item
                else:
                    self._events.add(item)


class _Late(MonitorBusy, TimeoutError):
    """Nothing came in time."""
