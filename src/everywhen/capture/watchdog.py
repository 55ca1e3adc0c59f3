# SPDX-License-Identifier: AGPL-3.0-or-later
"""The watchdog: accepts hypervisors' connections for the sink, and takes the sink away from them when it stalls (I-6).

A process of its own that imports little and waits for nothing but sockets: `python -m everywhen.capture.watchdog`, with a
listening socket, a socket to the sink (each accepted connection goes there), one to its parent, the sink's pidfd, and the
page of counters. It ends when the parent or the sink does; whatever it held is closed then, and the sink ends with it.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import signal
import socket
import sys
import termios
import time
from contextlib import suppress

from everywhen.capture.counters import ANSWERED, CONNECTIONS, OLDEST_NS, RECEIVED, Counters
from everywhen.capture.watching import EVERY_S, Seen, look


class Watchdog:
    """Holds a duplicate of each connection of the sink."""

    def __init__(self, listening: socket.socket, to_sink: socket.socket, sink: int, counters: Counters) -> None:
        self._listening = listening
        self._to_sink = to_sink
        self._sink = sink
        self._counters = counters
        self._held: dict[int, tuple[socket.socket, Seen]] = {}
        self._poll = select.poll()
        self._poll.register(listening, select.POLLIN)
        self._poll.register(sink, select.POLLIN)
        self._count = array.array("i", [0])

    def accept(self) -> None:
        """Hand a new connection to the sink."""
        connection, _ = self._listening.accept()
        number = next((number for number in range(CONNECTIONS) if number not in self._held), None)
        if number is None:
            connection.close()
            return
        self._counters.clear(number)
        socket.send_fds(self._to_sink, [bytes([number])], [connection.fileno()])
        self._held[number] = (connection, Seen())
        self._poll.register(connection, 0)  # for what is always told: that it was hung up

    def stalls(self) -> int | None:
        """Look at all connections; the number of one that stalls."""
        now, of = time.monotonic_ns(), self._counters.of
        for number, (connection, seen) in self._held.items():
            fcntl.ioctl(connection, termios.FIONREAD, self._count)
            if look(seen, now, self._count[0], of(number, RECEIVED), of(number, ANSWERED), of(number, OLDEST_NS)):
                return number
        return None

    def let_go(self, ready: set[int]) -> None:
        """Of those connections among these descriptors: they were hung up."""
        for number, (connection, _) in list(self._held.items()):
            if connection.fileno() in ready:
                self._poll.unregister(connection)
                connection.close()
                del self._held[number]

    def hang_up(self) -> None:
        """Free the guest, whatever the sink does."""
        for connection, _ in self._held.values():
            with suppress(OSError):  # the other side was faster
                connection.shutdown(socket.SHUT_RDWR)

    def run(self, parent: socket.socket) -> int:
        """Watch until the parent or the sink ends; 1 when the sink had to be taken away."""
        self._poll.register(parent, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll(EVERY_S * 1000 if self._held else None)}
            if ready:
                self.let_go(ready)
            if self._listening.fileno() in ready:
                self.accept()
            if self.stalls() is not None:
                self.hang_up()
                signal.pidfd_send_signal(self._sink, signal.SIGKILL)
                return 1
            if parent.fileno() in ready or self._sink in ready:
                self.hang_up()
                return 0


def main(arguments: list[str]) -> int:
    """Descriptors: listening socket, socket to the sink, pidfd of the sink, page of counters, socket to the parent."""
    listening, to_sink, sink, page, parent = map(int, arguments)
    # What is sent to a whole group of processes, by a terminal or who manages it, is for `protect`: without us the sink would
    # end before the last point has its writes.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watchdog = Watchdog(socket.socket(fileno=listening), socket.socket(fileno=to_sink), sink, Counters(page))
    os.set_inheritable(page, False)
    return watchdog.run(socket.socket(fileno=parent))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
