# SPDX-License-Identifier: AGPL-3.0-or-later
"""A server for NBD clients: listening sockets, and a thread for each client that comes (`served_client`).

Sockets are handed in: who may reach them is decided where they are made.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from threading import Event, Lock, Semaphore, Thread

from everywhen.nbd.served_client import ServedClient, Terms

_MOST = 256
"""Clients at once: each has a thread, and one to four more when it reads. Who comes later waits until one has left."""
_PAUSE_S = 0.1
_NOT_LISTENING = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}


class NbdServer:
    """Serves until it is stopped. Its methods are for the thread that made it."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._listening: list[tuple[socket.socket, Thread]] = []
        self._clients: dict[ServedClient, Thread] = {}
        self._guard = Lock()
        """For the clients, and that none is added any more."""
        self._stopped = Event()
        self._free = Semaphore(_MOST)

    def listen(self, listening: socket.socket) -> None:
        """Serve who comes to this socket, which must be listening, and is the server's from now on."""
        thread = Thread(target=self._accept, args=(listening,), name="nbd-listener", daemon=True)
        self._listening.append((listening, thread))
        thread.start()

    def stop(self) -> None:
        """Take no more clients, hang up on those that are here, and wait for all threads: reads under way are finished."""
        with self._guard:
            self._stopped.set()
            clients = list(self._clients.items())
        for listening, _ in self._listening:
            with suppress(OSError):  # it has ended by itself, and raised why
                listening.shutdown(socket.SHUT_RDWR)
            self._free.release()
        for client, _ in clients:
            client.hang_up()
        for _, thread in self._listening:
            thread.join()
        for _, thread in clients:
            thread.join()

    def _accept(self, listening: socket.socket) -> None:
        with listening:
            while True:
                self._free.acquire()
                if self._stopped.is_set():
                    return
                try:
                    connection, _ = listening.accept()
                except OSError as error:
                    self._free.release()
                    if self._stopped.is_set():
                        return
                    if error.errno in _NOT_LISTENING:
                        raise
                    self._terms.report("", error)  # no descriptors, or a network that fails: it may pass
                    self._stopped.wait(_PAUSE_S)
                else:
                    self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # who was unplugged uses no export for ever
        client = ServedClient(connection, self._terms)
        thread = Thread(target=self._serve, args=(client,), name="nbd-client", daemon=True)
        with self._guard:
            if self._stopped.is_set():
                connection.close()
                return
            try:
                thread.start()
            except RuntimeError as error:  # the system gives no more threads: it may pass, and others go on
                connection.close()
                self._free.release()
                self._terms.report("", error)
                return
            self._clients[client] = thread

    def _serve(self, client: ServedClient) -> None:
        try:
            client.run()
        finally:
            with self._guard:
                del self._clients[client]
            self._free.release()
