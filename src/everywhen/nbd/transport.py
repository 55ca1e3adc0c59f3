# SPDX-License-Identifier: AGPL-3.0-or-later
"""Bytes over a stream socket, in the clear or encrypted, for one thread that receives and others that send in turn.

TLS runs over buffers in memory (`ssl.MemoryBIO`): OpenSSL's object may not be used by two threads at once, and a thread that
waits for the client's bytes must not keep the others from sending.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Protocol

_PIECE = 256 << 10
"""Bytes that are encrypted at once."""
_RECORD = 16 << 10
"""Bytes of content in a record of TLS (RFC 8446, 5.1): no more are decrypted at once."""


class Transport(Protocol):
    """One connection. Errors are OSError, ssl.SSLError among them."""

    def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes; how many came, 0 when there will be no more. One thread at a time."""

    def send(self, pieces: Sequence[bytes]) -> None:
        """Send all of it, up to 1024 pieces. One thread at a time."""

    def goodbye(self) -> None:
        """Say that this was all. Counts as sending."""


class Clear:
    """Without encryption."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes; how many came, 0 when there will be no more."""
        return self._socket.recv_into(buffer)

    def send(self, pieces: Sequence[bytes]) -> None:
        """Send all of it."""
        sent = self._socket.sendmsg(pieces)
        for piece in pieces:
            if sent >= len(piece):
                sent -= len(piece)
            else:  # hardly ever: the system takes all unless it is interrupted
                self._socket.sendall(memoryview(piece)[sent:])
                sent = 0

    def goodbye(self) -> None:
        """The socket's end says it."""


class Tls:
    """Encrypted, the server's side."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self._socket = connection
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_side=True)
        self._using = Lock()
        """Held while OpenSSL works on the bytes of the connection, never while anybody waits for the client."""
        self._sending = Lock()
        """Held from when bytes are encrypted until they are sent: they must go out in that order."""
        self._buffer = memoryview(bytearray(64 << 10))

    def handshake(self) -> bool:
        """Agree with the client on keys, and check its certificate where the context wants one; False when it hung up.

        Raises SSLError when they do not agree, TimeoutError.
        """
        try:
            while True:
                try:
                    self._tls.do_handshake()
                except ssl.SSLWantReadError:
                    self._flush()
                    if not self._receive_more():
                        return False
                else:
                    self._flush()
                    return True
        except ssl.SSLError:
            with suppress(OSError):  # the client is to know why, if it is still there
                self._flush()
            raise
        except ConnectionError:
            return False

    def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes; how many came, 0 when there will be no more."""
        while True:
            with self._using:
                count = self._decrypted(buffer)  # if TLS itself has to answer, as to a change of keys, `send` takes that along
            if count is not None:
                return count
            if not self._receive_more():
                return 0

    def send(self, pieces: Sequence[bytes]) -> None:
        """Send all of it."""
        view = memoryview(b"".join(pieces))
        with self._sending:
            for begin in range(0, len(view), _PIECE):
                with self._using:
                    self._tls.write(view[begin : begin + _PIECE])
                    encrypted = self._to_send.read()
                self._socket.sendall(encrypted)

    def goodbye(self) -> None:
        """Say that this was all, so that the client knows that nobody cut it off."""
        with self._using, suppress(ssl.SSLError):  # it wants to wait for the client's goodbye, which nobody needs
            self._tls.unwrap()
        self._flush()

    def _decrypted(self, buffer: memoryview) -> int | None:
        """How many bytes were at hand, 0 at the end; None when more must come first."""
        count = 0
        try:
            while count < len(buffer):
                some = self._tls.read(min(_RECORD, len(buffer) - count))
                if not some:
                    break
                buffer[count : count + len(some)] = some
                count += len(some)
        except ssl.SSLWantReadError:
            return count or None
        except ssl.SSLZeroReturnError:
            pass
        return count

    def _receive_more(self) -> bool:
        count = self._socket.recv_into(self._buffer)
        with self._using:
            self._received.write(self._buffer[:count])
        return bool(count)

    def _flush(self) -> None:
        with self._sending:
            with self._using:
                encrypted = self._to_send.read()
            if encrypted:
                self._socket.sendall(encrypted)
