# SPDX-License-Identifier: AGPL-3.0-or-later
"""The share behind cheroot: connections, threads, TLS, and how they end.

Each request that is being answered takes one of `THREADS` threads: a client that takes nothing for `PATIENCE_S` seconds is
dropped, one that takes little keeps its thread. A connection on which nothing is asked takes none. That needs two things
to be otherwise than cheroot has them: a new connection waits for its first bytes beside those that are kept open, and the
TLS handshake is done where the request is read, not where connections are accepted, which one silent client would stop.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

from cheroot.errors import FatalSSLAlert
from cheroot.makefile import MakeFile
from cheroot.server import HTTPConnection
from cheroot.ssl import Adapter
from cheroot.wsgi import Server

from everywhen.interfaces.webdav.gate import Gate
from everywhen.interfaces.webdav.resources import Shared
from everywhen.interfaces.webdav.share import Share
from everywhen.interfaces.webdav.tree import SharedTree
from everywhen.services.failures import Failure
from everywhen.services.view.folders import Folders

THREADS = 32
PATIENCE_S = 30
_KEPT = 200
"""Connections that stay open with nothing to do; more are closed after their answer."""
_WAITING = 200
"""Requests that may wait for a thread; more are answered with 503."""
_LARGEST = 1 << 16
"""Bytes of a request's headers, and of its body."""


class WebDav(Server):
    """Serves from its making on, until `close`."""

    def __init__(self, listening: socket.socket, share: Share, tls: ssl.SSLContext | None, end: Callable[[], None]) -> None:
        """`end` is called when it is closed: whatever is being read by a request should end then."""
        address = listening.getsockname()
        super().__init__(
            address if isinstance(address, str) else address[:2],
            share,
            numthreads=THREADS,
            server_name="Everywhen",
            max=THREADS,
            request_queue_size=_WAITING,
            timeout=PATIENCE_S,
            shutdown_timeout=1,
            accepted_queue_size=_WAITING,
            accepted_queue_timeout=0,
        )
        self.keep_alive_conn_limit = _KEPT
        self.max_request_header_size = self.max_request_body_size = _LARGEST
        self.ConnectionClass = _Connection
        self.ssl_adapter = None if tls is None else _Tls(tls)
        self.open_sockets = _Sockets()
        self._listening = listening
        self._end = end
        self.prepare()
        self._thread = threading.Thread(target=self.serve, name="webdav", daemon=True)
        self._thread.start()

    def bind(self, _family: int, _type: int, _proto: int = 0) -> socket.socket:
        """The socket that was handed in."""
        if not isinstance(self.bind_addr, str):
            self._listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections have it from there
        self.socket = self._listening
        return self._listening

    def bind_unix_socket(self, _bind_addr: str) -> socket.socket:
        """The same."""
        return self.bind(socket.AF_UNIX, socket.SOCK_STREAM)

    def process_conn(self, conn: _Connection) -> None:
        """A connection has bytes to be read, or is a new one, which perhaps has none yet."""
        if conn.is_new:
            conn.is_new = False
            self.put_conn(conn)
        else:
            super().process_conn(conn)

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        """Of clients that go away, or speak something else, nothing is said; what could not be read was said."""
        if not isinstance(sys.exc_info()[1], OSError | Failure | FatalSSLAlert | None):
            super().error_log(msg, level, traceback)

    def close(self) -> None:
        """End all connections, then all threads."""
        self._end()
        self.open_sockets.end()
        self.stop()
        self._thread.join()


def serve(
    listening: socket.socket,
    folders: Folders,
    gate: Gate,
    tls: ssl.SSLContext | None,
    *,
    identity: str,
    url: str,
    say: Callable[[str], None],
) -> WebDav:
    """Serve a tree from now on. `identity` of the repository, and its `url` in messages; `say` is told of what fails."""
    ended = threading.Event()
    shared = Shared(SharedTree(folders, url, time.monotonic), identity=identity, url=url, ended=ended)

    def end() -> None:
        ended.set()
        folders.close()  # a large folder takes long to list: who waits for that is not waited for

    return WebDav(listening, Share(shared, gate, say), tls, end)


class _Sockets:
    """Of all connections. For several threads."""

    def __init__(self) -> None:
        self._there: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()

    def add(self, one: socket.socket) -> None:
        with self._lock:
            self._there.add(one)

    def end(self) -> None:
        """Nothing is sent or received any more. Not by a TLS socket's own method: after that it would send in the clear."""
        with self._lock:
            for one in list(self._there):
                with suppress(OSError):
                    socket.socket.shutdown(one, socket.SHUT_RDWR)


class _Connection(HTTPConnection):
    def __init__(self, server: WebDav, sock: socket.socket, makefile: Callable[..., object] = MakeFile) -> None:
        super().__init__(server, sock, makefile)
        self.is_new = True
        server.open_sockets.add(sock)


class _Tls(Adapter):
    """TLS whose handshake is done by the first read."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    def bind(self, sock: socket.socket) -> socket.socket:
        """Connections are wrapped, not what they come from."""
        return sock

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, dict[str, str]]:
        """A new connection."""
        wrapped = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return wrapped, self.get_environ()

    def get_environ(self) -> dict[str, str]:
        """What is known before the handshake."""
        return {"wsgi.url_scheme": "https", "HTTPS": "on"}

    def makefile(self, sock: ssl.SSLSocket, mode: str = "r", bufsize: int = -1) -> object:
        """For reading or writing."""
        return MakeFile(sock, mode, bufsize)
