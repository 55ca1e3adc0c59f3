# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sink: an NBD server that answers every write at once and hands it to the spool. One process per VM.

Where the spool falls behind, what was taken is answered later: who waits for answers writes no more than the spool takes.

Exports: `disk-N` for the tap of disk N; `mark-N`, whose writes are marks in the sequence of records; `probe`, to see that it
answers. It serves no reads: with a minimum block of 1 byte QEMU never needs any. A guest's flushes never come here, and it
offers none: so QEMU needs no answer of ours to end a job, to save the guest, or to take the sink out of the tap (K5).

It lets go of its taps when it is told to, and when the spool takes no more: the journal says that they are closed, where there
is room for that, and what comes after it is answered and forgotten, until they are taken off. Hanging up endangers QEMU (K5).
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic_ns

from everywhen.capture.counters import BEAT_NS, FINE, LET_GO, LETS_GO, STATE, TAP, Counters
from everywhen.capture.spool_writer import Record
from everywhen.formats.fields import canonical_json
from everywhen.formats.segment import MARK, WRITE, ZERO
from everywhen.nbd import protocol as p
from everywhen.nbd.exports import Export, FixedExports
from everywhen.nbd.negotiation import Phase
from everywhen.nbd.server import Request, ServerSession

_FLAGS = p.SEND_WRITE_ZEROES | p.SEND_FAST_ZERO
_RECEIVE = 1 << 20
_TAP, _MARKS = "disk", "mark"
_LONGEST_MARK = 64 << 10

_PROBE = "probe"
_KINDS = {_TAP: {p.CMD_WRITE: WRITE, p.CMD_WRITE_ZEROES: ZERO}, _MARKS: {p.CMD_WRITE: MARK}, _PROBE: {}}
"""By an export's name up to the dash: what becomes which kind of record."""
_DONE = {p.CMD_WRITE, p.CMD_WRITE_ZEROES}
_HELD_NS = 140_000_000
"""So long an answer is held back at most: the watchdog, which looks every 20 ms, takes the sink away after 200 ms."""
_LOOK_S, _HELD_LOOK_S = 0.1, 0.005

Take = Callable[[Sequence[Record]], int | None]
"""`SpoolWriter.take`."""


@dataclass(slots=True)
class _Connection:
    number: int
    socket: socket.socket
    session: ServerSession
    kind: str = ""
    """The export's name up to the dash; '' until the client has chosen one."""
    disk: int = 0
    held: int = 0
    """Requests that were taken and are not answered yet."""
    since_ns: int = 0
    """When the first of them came."""


class Sink:
    """Serves the connections that come over `control`, until it is closed."""

    def __init__(
        self, sizes: list[int], take: Take, counters: Counters, control: socket.socket, behind: Callable[[], bool]
    ) -> None:
        """`sizes`: bytes of each disk; `behind`: whether the spool is."""
        exports = {f"{_TAP}-{disk}": Export(size, _FLAGS) for disk, size in enumerate(sizes)}
        exports |= {f"{_MARKS}-{disk}": Export(_LONGEST_MARK, 0) for disk in range(len(sizes))}
        exports[_PROBE] = Export(0, p.READ_ONLY)
        self._exports = FixedExports(exports)
        self._take = take
        self._behind = behind
        self._counters = counters
        self._control = control
        self._poll = select.epoll()
        self._poll.register(control, select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
        """By descriptor of the socket."""
        self._buffer = memoryview(bytearray(_RECEIVE))
        self._lets_go = False

    def run(self) -> None:
        """Serve. On return all connections are shut down."""
        look_s = _LOOK_S
        try:
            while True:
                self._counters.put(BEAT_NS, monotonic_ns())
                if self._counters.get(STATE) != FINE or self._counters.get(LET_GO):
                    self._let_go()
                for descriptor, _ in self._poll.poll(look_s):
                    connection = self._connections.get(descriptor)
                    if connection is None:
                        if not self._welcome():
                            return
                    elif not self._serve(connection):
                        self._end(connection)
                look_s = _HELD_LOOK_S if self._hold() else _LOOK_S
        finally:
            for connection in list(self._connections.values()):
                self._end(connection)
            self._poll.close()

    def _welcome(self) -> bool:
        """A connection that the watchdog accepted; False when the watchdog is gone."""
        number, descriptors, *_ = socket.recv_fds(self._control, 1, 1)
        if not number or not descriptors:
            return False
        connection = _Connection(number[0], socket.socket(fileno=descriptors[0]), ServerSession(self._exports))
        self._connections[connection.socket.fileno()] = connection
        self._poll.register(connection.socket, select.EPOLLIN)
        try:
            connection.socket.sendall(connection.session.take_output())
        except OSError:
            self._end(connection)  # it hung up at once; the others are not concerned
        return True

    def _serve(self, connection: _Connection) -> bool:
        """Take what came in and answer it; False when the connection is over."""
        try:
            count = connection.socket.recv_into(self._buffer)
            if not count:
                return False
            began = monotonic_ns()
            requests = connection.session.receive(self._buffer[:count])
            self._counters.received(connection.number, count, len(requests), began)
            if not connection.kind and connection.session.name:
                self._chosen(connection)
            if requests:
                self._answer(connection, requests)
                connection.since_ns = connection.since_ns or began
                connection.held += len(requests)
            if not (connection.held and self._holds_back):
                self._send(connection)
        except (OSError, p.ProtocolError):
            return False
        return connection.session.phase is not Phase.ENDED

    @property
    def _holds_back(self) -> bool:
        """Whether answers wait. What is forgotten waits for nobody."""
        return not self._lets_go and self._behind()

    def _send(self, connection: _Connection) -> None:
        """What is to be said, answers that were held above all. Raises OSError."""
        output = connection.session.take_output()
        if output:
            connection.socket.sendall(output)
        if connection.held:
            self._counters.answered(connection.number, connection.held, monotonic_ns() - connection.since_ns)
            connection.held = connection.since_ns = 0

    def _hold(self) -> bool:
        """Send answers that were held back, when the spool has caught up, or it is time; whether some are held still."""
        held = [connection for connection in self._connections.values() if connection.held]
        if not held:
            return False
        latest = monotonic_ns() - _HELD_NS if self._holds_back else monotonic_ns()
        for connection in held:
            if connection.since_ns <= latest:
                try:
                    self._send(connection)
                except OSError:
                    self._end(connection)
        return any(connection.held for connection in self._connections.values())

    def _answer(self, connection: _Connection, requests: list[Request]) -> None:
        """Take requests, as long as the spool does."""
        kinds, disk = _KINDS[connection.kind], connection.disk
        records = [
            (kinds[command], disk, offset, length, data)
            for command, _, _, offset, length, data in requests
            if command in kinds and length
        ]
        if records and not self._lets_go and self._take(records) is None:
            self._let_go()
        # Who makes a mark wants it in the journal; a guest wants to go on.
        forgotten = self._lets_go and connection.kind == _MARKS
        for request in requests:
            error = p.EINVAL if request.command not in _DONE else p.EIO if forgotten else 0
            connection.session.reply(request.cookie, error)

    def _let_go(self) -> None:
        if not self._lets_go:
            for connection in self._connections.values():
                self._mark(connection, "tap closed")
            self._lets_go = True
            self._counters.put(LETS_GO, 1)

    def _chosen(self, connection: _Connection) -> None:
        connection.kind, _, disk = connection.session.name.partition("-")
        connection.disk = int(disk or 0)
        if connection.kind == _TAP:
            self._counters.put_of(connection.number, TAP, connection.disk + 1)
        self._mark(connection, "tap opened")

    def _end(self, connection: _Connection) -> None:
        """Hang up, also for the watchdog's duplicate of the socket."""
        self._poll.unregister(connection.socket)
        del self._connections[connection.socket.fileno()]
        with suppress(OSError):  # the other side was faster
            if connection.held:  # what was taken is answered: a write under way at the end endangers QEMU (K5)
                self._send(connection)
            connection.socket.shutdown(socket.SHUT_RDWR)
        connection.socket.close()
        self._mark(connection, "tap closed")

    def _mark(self, connection: _Connection, what: str) -> None:
        """Say in the sequence what becomes of a tap."""
        if connection.kind == _TAP and not self._lets_go:
            text = canonical_json({"mark": what})
            self._take([(MARK, connection.disk, 0, len(text), text)])
