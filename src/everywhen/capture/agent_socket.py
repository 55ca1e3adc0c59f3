# SPDX-License-Identifier: AGPL-3.0-or-later
"""An agent behind the unix socket of its channel (QEMU: docs/interop/qemu-ga.rst)."""

from __future__ import annotations

import socket
from time import monotonic, monotonic_ns
from types import TracebackType
from typing import Any, Self

from everywhen.capture.agent import AgentError, AgentGone, AgentRefused
from everywhen.capture.agent_session import AgentAnswer, AgentSession, command
from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json

_RECEIVE = 1 << 16
_NUMBERS = 1 << 31
_LONGEST_WORDS = 300
"""Characters of what an agent says that are told to anybody."""


class AgentSocket:
    """An agent behind QEMU's end of its channel. QEMU serves one client at a time; a second one hears nothing."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._session = AgentSession()
        self._number = monotonic_ns() % _NUMBERS
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def execute(self, name: str, arguments: Json | None = None, *, timeout: float, blind: bool = False) -> Any:  # noqa: ANN401 - JSON
        """See `Agent`."""
        end = monotonic() + timeout
        self._number = (self._number + 1) % _NUMBERS
        greeting, line = self._session.sync(self._number), command(name, arguments)
        answers: list[AgentAnswer] = []
        try:
            self._connect()
            self._send(greeting + line if blind else greeting, end)
            while not self._session.synced:
                answers += self._received(end)
            if not blind:
                self._send(line, end)
            while not answers:
                answers += self._received(end)
        except TimeoutError:
            why = "is busy" if self._session.synced else "does not run, or another program uses its socket"
            raise AgentError(f"the guest's agent did not answer {name} within {timeout:g} s: it {why}") from None
        except (OSError, Corrupt) as error:
            self._close()
            raise AgentError(f"the guest's agent cannot be used: {error}") from error
        if answers[0].error is not None:
            raise AgentRefused(f"{name}: {answers[0].error[:_LONGEST_WORDS]}")
        return answers[0].value

    def _connect(self) -> None:
        """A connection stays as long as it can: what QEMU has not read of it when it is closed is lost."""
        if self._socket is not None:
            return
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            gone = isinstance(error, FileNotFoundError | ConnectionRefusedError)
            raise (AgentGone if gone else AgentError)(f"{self._path}: {error.strerror or error}") from error
        self._socket = connection

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, data: bytes, end: float) -> None:
        self._limited(end).sendall(data)

    def _received(self, end: float) -> list[AgentAnswer]:
        data = self._limited(end).recv(_RECEIVE)
        if not data:
            raise ConnectionError("QEMU hung up")
        return self._session.receive(data)

    def _limited(self, end: float) -> socket.socket:
        """The connection. An agent that sends a little now and then must not keep us for ever. Raises TimeoutError."""
        left = end - monotonic()
        if left <= 0 or self._socket is None:
            raise TimeoutError
        self._socket.settimeout(left)
        return self._socket
