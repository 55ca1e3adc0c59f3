# SPDX-License-Identifier: AGPL-3.0-or-later
"""A client's connection over a socket, for one thread: requests may be under way together, answers are waited for."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from time import monotonic
from types import TracebackType
from typing import Self

from everywhen.nbd import protocol as p
from everywhen.nbd.client import ClientSession, Offer, Reply, Status


class NbdError(Exception):
    """The server cannot be used, or failed a request."""


class NbdConnection:
    """Connected to one export. The handshake and every answer are there within `timeout` seconds, or there is none."""

    def __init__(self, server: str | socket.socket, name: str, *, timeout: float, contexts: Sequence[str] = ()) -> None:
        """Connect to a unix socket, or use one that is connected; it is closed with this. Raises NbdError."""
        self._path = server if isinstance(server, str) else name
        self._session = ClientSession(name, contexts)
        self._replies: dict[int, Reply] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) if isinstance(server, str) else server
        self._timeout = timeout
        self._socket.settimeout(timeout)
        try:
            if isinstance(server, str):
                self._socket.connect(server)
            self._exchange_until(lambda: self._session.ready, "handshake")
            self._flush()
        except OSError as error:
            self._socket.close()
            raise NbdError(f"{self._path}: {error}") from error
        except NbdError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def offer(self) -> Offer:
        """What the server told about the export."""
        return self._session.offer

    def close(self) -> None:
        """Say goodbye where that is possible, and hang up."""
        try:
            self._session.disconnect()
            self._flush()
        except NbdError:
            pass  # who is gone needs no goodbye
        self._socket.close()

    def ask(self, offset: int, length: int) -> int:
        """Begin a read; its cookie."""
        return self._begun(self._session.read(offset, length))

    def send(self, offset: int, data: bytes) -> int:
        """Begin a write; its cookie."""
        return self._begun(self._session.write(offset, data))

    def send_zeroes(self, offset: int, length: int) -> int:
        """Begin a write of zeroes; its cookie."""
        return self._begun(self._session.write_zeroes(offset, length))

    def send_flush(self) -> int:
        """Begin to make all that was answered durable; its cookie."""
        return self._begun(self._session.flush())

    def answer(self, cookie: int) -> Reply:
        """Wait for the answer to a request. Raises NbdError, also for one that failed."""
        self._exchange_until(lambda: cookie in self._replies, "answer")
        reply = self._replies.pop(cookie)
        if reply.error:
            raise NbdError(f"{self._path}: a request failed with error {reply.error}")
        return reply

    def extents(self, context: str, offset: int, length: int) -> list[Status]:
        """The extents of a range in one of the contexts that were asked for. Raises NbdError."""
        number = self.offer.contexts.get(context)
        if number is None:
            raise NbdError(f"{self._path} has no {context}")
        found: list[Status] = []
        end = offset + length
        while offset < end:
            some = self.answer(self._begun(self._session.block_status(offset, end - offset))).extents.get(number, [])
            if not some or any(not extent.length for extent in some):
                raise NbdError(f"{self._path} does not say what is at byte {offset}")
            for extent in some:
                kept = min(extent.length, end - offset)
                if kept:
                    found.append(Status(kept, extent.flags))
                offset += kept
        return found

    def _begun(self, cookie: int) -> int:
        self._flush()
        return cookie

    def _flush(self) -> None:
        output = self._session.take_output()
        try:
            if output:
                self._socket.sendall(output)
        except OSError as error:
            raise NbdError(f"{self._path}: {error}") from error

    def _exchange_until(self, done: Callable[[], bool], what: str) -> None:
        """A server that sends a little now and then must not keep us for ever."""
        end = monotonic() + self._timeout
        while not done():
            if monotonic() > end:
                raise NbdError(f"{self._path}: no {what} within {self._timeout:g} s")
            self._exchange()

    def _exchange(self) -> None:
        """Send what waits, and take what comes next."""
        self._flush()
        try:
            data = self._socket.recv(1 << 20)
            if not data:
                raise NbdError(f"{self._path}: the server hung up")
            self._replies.update((reply.cookie, reply) for reply in self._session.receive(data))
        except OSError as error:
            raise NbdError(f"{self._path}: {error}") from error
        except p.ProtocolError as error:
            raise NbdError(f"{self._path}: {error}") from error
