# SPDX-License-Identifier: AGPL-3.0-or-later
"""One client of a server: a thread that takes its requests, and up to four that answer what has to be waited for.

A short read whose bytes are at hand is answered by the thread that takes the requests: handing it over to another one costs
more than the read. A longer one is copied and sent while the next are taken: 1.5 times as fast. A client that does not take its
answers holds up these threads, and nobody else's; what it may have under way is bounded, and so is what all have together
(`room`).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Condition, Lock, Thread
from time import monotonic

from everywhen.nbd import protocol as p
from everywhen.nbd.answering import carried_out, error_number, offered
from everywhen.nbd.devices import Exports, OpenedExport
from everywhen.nbd.exports import Export
from everywhen.nbd.negotiation import Phase
from everywhen.nbd.room import OWN, Room
from everywhen.nbd.server import Request, ServerSession
from everywhen.nbd.transport import Clear, Tls, Transport

_RECEIVE = 256 << 10
_BATCH, _PIECES = 256 << 10, 512
"""Bytes, and pieces, of answers from which on they are sent."""
_SHORT = 64 << 10
"""Bytes of the longest read that is answered at once."""
_WORKERS = 4
_UNDER_WAY = 64 << 20
_LEAST = 4096
"""Bytes that any request counts as: one without content takes memory, too."""
_HANDSHAKE_S = 30.0
"""So long a client may be silent before it has chosen an export."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all clients of a server are served on."""

    exports: Exports
    failures: tuple[type[Exception], ...]
    """What a device raises when it fails; such a request fails, the connection goes on."""
    report: Callable[[str, Exception], None]
    """Told of the first failure of a connection, and of why one was ended; with the export's name, '' if none was chosen."""
    tls: ssl.SSLContext | None = None
    room: Room = field(default_factory=Room)


class _Asked:
    """The export that a client asks about: opened at its first question, kept until it asks about another one or leaves.

    So what it is told about `vm1/vda@-10m` before it chooses that is true afterwards.
    """

    def __init__(self, exports: Exports) -> None:
        self._exports = exports
        self._name = ""
        self.opened: OpenedExport | None = None

    def names(self) -> Iterable[str]:
        return self._exports.names()

    def describe(self, name: str) -> Export:
        if self.opened is None or name != self._name:
            self.release()
            self.opened, self._name = self._exports.open(name), name
        return offered(self.opened)

    def release(self) -> None:
        opened, self.opened = self.opened, None
        if opened:
            opened.release()


class ServedClient:
    """Serves one connected socket until either side has had enough of it."""

    def __init__(self, connection: socket.socket, terms: Terms) -> None:
        """The socket is the client's from now on: `run` closes it."""
        self._socket = connection
        self._terms = terms
        self._asked = _Asked(terms.exports)
        self._session = ServerSession(self._asked, structured=True, tls=terms.tls is not None)
        self._transport: Transport = Clear(connection)
        self._sending = Lock()
        self._sends_since: float | None = None
        self._receives_since: float | None = None
        """By the monotonic clock, while this waits for the client to take an answer, or to go on with a long write."""
        self._queue: SimpleQueue[tuple[Request, int] | None] = SimpleQueue()
        """With the bytes that a request has taken of the room."""
        self._workers: list[Thread] = []
        self._changed = Condition()
        """Guards what is under way, and what was reported."""
        self._under_way = self._own = 0
        """Bytes of requests that were handed over, and are not answered yet; those of them that are not of the room."""
        self._coming = 0
        """Bytes of the room for a write of which not all has come."""
        self.gone = False
        """Nobody waits for answers any more."""
        self._reported = False

    @property
    def waited_for_since(self) -> float | None:
        """See `room.Occupant`."""
        return min((since for since in (self._sends_since, self._receives_since) if since is not None), default=None)

    def evict(self, seconds: float) -> None:
        """See `room.Occupant`."""
        self.hang_up()
        late = f"hung up on: for {seconds:g} s it took no answer, or sent no more of a write, and others wait for its memory"
        self._terms.report(self._session.name, TimeoutError(late))

    def hang_up(self) -> None:
        """Have `run` return as soon as no device is being used. Any thread may say so."""
        self.gone = True
        with suppress(OSError):  # the client was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._changed:
            self._changed.notify_all()
        self._terms.room.look_again()

    def run(self) -> None:
        """Serve. On return the connection is closed, its threads have ended, and its device is let go of."""
        try:
            self._serve()
            self._finish()
            with suppress(OSError):  # it did not wait for that
                self._transport.goodbye()
        except (p.ProtocolError, ssl.SSLError, TimeoutError) as error:
            self._terms.report(self._session.name, error)
        finally:
            self.hang_up()
            self._finish()
            self._terms.room.leave(self)
            self._asked.release()
            self._socket.close()

    def _serve(self) -> None:
        """Take what comes until there will be no more. Raises ProtocolError, SSLError, TimeoutError."""
        session, buffer = self._session, memoryview(bytearray(_RECEIVE))
        self._socket.settimeout(_HANDSHAKE_S)
        self._send([session.take_output()])
        requests: list[Request] = []
        while session.phase not in (Phase.TRANSMISSION, Phase.ENDED):
            count = self._receive_into(buffer)
            if not count:
                return
            requests = session.receive(buffer[:count])
            self._send([session.take_output()])
            if session.phase is Phase.STARTING_TLS and not self._encrypt():
                return
        self._socket.settimeout(None)
        opened = self._asked.opened
        while opened:
            self._answer(requests, opened)
            if session.phase is Phase.ENDED:
                return
            requests.clear()  # what was written need not be kept until the client says something again
            self._make_room(session.awaited)
            count = self._receive_into(buffer)
            if not count:
                return
            requests = session.receive(buffer[:count])
            refused = session.take_output()
            if refused:
                self._send([refused])

    def _receive_into(self, buffer: memoryview) -> int:
        """How many bytes came; 0 when there will be no more. Raises SSLError, TimeoutError."""
        self._receives_since = monotonic() if self._coming else None
        try:
            return 0 if self.gone else self._transport.receive_into(buffer)
        except (ssl.SSLError, TimeoutError):
            raise
        except OSError:
            return 0  # it hung up; there is nobody left to be told, and nothing is lost by it
        finally:
            self._receives_since = None

    def _make_room(self, awaited: int) -> None:
        """For a write of which not all has come; 0: there is none."""
        if self._coming and self._coming != awaited:  # that one was refused
            self._terms.room.give_back(self._coming, self)
            self._coming = 0
        if awaited > OWN and not self._coming and self._terms.room.take(awaited, self):
            self._coming = awaited

    def _encrypt(self) -> bool:
        """Begin TLS; False when the client has gone away meanwhile. Raises SSLError, TimeoutError."""
        if self._terms.tls is None:
            return False
        encrypted = Tls(self._socket, self._terms.tls)
        if not encrypted.handshake():
            return False
        self._transport = encrypted
        self._session.encrypted()
        return True

    def _answer(self, requests: Sequence[Request], opened: OpenedExport) -> None:
        """Answer what is short and at hand, several together; hand over the rest."""
        at_hand, reply = opened.device.read_cached, self._session.replies.read
        pieces: list[bytes] = []
        size = 0
        for request in requests:
            if request.command == p.CMD_READ and request.length <= _SHORT:
                try:
                    data = at_hand(request.offset, request.length)
                except self._terms.failures:
                    data = None  # who reads it is told
                if data is not None:
                    pieces += reply(request.cookie, request.offset, data)
                    size += request.length
                    if size >= _BATCH or len(pieces) >= _PIECES:
                        self._send(pieces)
                        pieces, size = [], 0
                    continue
            memory = _memory(request)
            if pieces and (self._under_way + memory > _UNDER_WAY or self._own + memory > OWN):  # it may have to wait
                self._send(pieces)
                pieces, size = [], 0
            self._hand_over(request, opened)
        if pieces:
            self._send(pieces)

    def _hand_over(self, request: Request, opened: OpenedExport) -> None:
        memory = _memory(request)
        with self._changed:
            self._changed.wait_for(lambda: self.gone or self._under_way + memory <= _UNDER_WAY)
            self._under_way += memory
            own = self._own + memory <= OWN
            self._own += memory if own else 0
        taken = 0
        if request.command == p.CMD_WRITE and memory == self._coming:
            taken, self._coming = memory, 0
        elif not own:
            if not self._terms.room.take(memory, self):
                return
            taken = memory
        if len(self._workers) < _WORKERS:
            self._employ(opened)
        self._queue.put((request, taken))

    def _employ(self, opened: OpenedExport) -> None:
        worker = Thread(target=self._work, args=(opened,), name="nbd-worker", daemon=True)
        try:
            worker.start()
        except RuntimeError as error:  # the system gives no more threads; one of ours is enough
            if not self._workers:
                self._terms.report(self._session.name, error)
                self.hang_up()
        else:
            self._workers.append(worker)

    def _work(self, opened: OpenedExport) -> None:
        """Answer what is handed over, until told to end."""
        try:
            while self._worked(opened):
                pass
        except BaseException:  # a fault of ours: better no answers than that the client waits for one
            self.hang_up()
            raise

    def _worked(self, opened: OpenedExport) -> bool:
        """Answer one request; False when told to end. Of what was written nothing is kept while it waits for the next."""
        asked = self._queue.get()
        if asked is None:
            return False
        request, taken = asked
        if not self.gone:
            self._send(self._answered(request, opened))
        memory = _memory(request)
        with self._changed:
            self._under_way -= memory
            self._own -= 0 if taken else memory
            self._changed.notify()
        if taken:
            self._terms.room.give_back(taken, self)
        return True

    def _answered(self, request: Request, opened: OpenedExport) -> Sequence[bytes]:
        session = self._session
        try:
            return carried_out(request, opened, session.replies, session.context)
        except self._terms.failures as error:
            with self._changed:
                first, self._reported = not self._reported, True
            if first:
                self._terms.report(session.name, error)
            return [session.replies.failed(request.cookie, error_number(error), str(error))]

    def _send(self, pieces: Sequence[bytes]) -> None:
        """Send an answer. A client that cannot be reached needs no others."""
        try:
            with self._sending:
                self._sends_since = monotonic()
                self._transport.send(pieces)
                self._sends_since = None
        except OSError:
            self.hang_up()

    def _finish(self) -> None:
        """Wait until all that was handed over is answered, and the workers have ended."""
        for _ in self._workers:
            self._queue.put(None)
        for worker in self._workers:
            worker.join()
        self._workers.clear()


def _memory(request: Request) -> int:
    """Bytes that a request takes until it is answered."""
    return max(request.length, _LEAST) if request.command in (p.CMD_READ, p.CMD_WRITE) else _LEAST
