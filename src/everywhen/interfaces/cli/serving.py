# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the servers of `everywhen serve` have in common: where clients find them, TLS, what is told, how they end."""

from __future__ import annotations

import queue
import signal
import ssl
import threading
from contextlib import suppress
from typing import Annotated

import typer

from everywhen.interfaces.cli.app import GET_BACK, app
from everywhen.interfaces.cli.context import Context
from everywhen.services.failures import Failed, WrongUsage
from everywhen.services.view.moments import MomentView

serving = typer.Typer(
    help="Moments for other programs: as devices, and as a share.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(serving, name="serve", rich_help_panel=GET_BACK)

SocketPath = Annotated[str | None, typer.Option("--socket", metavar="PATH", help="A unix socket, for its owner only.")]
Listen = Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="TCP; port 0: a free one.")]
TlsCert = Annotated[str | None, typer.Option("--tls-cert", metavar="FILE", help="PEM; clients must use TLS then.")]
TlsKey = Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help="PEM.")]
TlsClients = Annotated[
    str | None,
    typer.Option("--tls-clients", metavar="FILE", help="PEM of who signs the certificates that clients must have."),
]


class Told:
    """What clients open, and what fails them, a line each on standard error. Called by several threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._seen: set[int] = set()

    def opened(self, view: MomentView) -> None:
        """A client asks for a moment: which one that is, said once as long as it is open."""
        with self._lock:
            if id(view) in self._seen:
                return
            self._seen.add(id(view))
            self._context.output.note(view.moment.found.words(view.vm.name, self._context.zone))
            if not view.leased:
                self._context.output.warn("the repository cannot be written: nothing there says that this moment is being read")

    def client_failed(self, name: str, error: Exception) -> None:
        """A connection's first failure."""
        self.noticed(f"{name or 'a client'}: {error}")

    def noticed(self, line: str) -> None:
        """What somebody should read."""
        with self._lock:
            self._context.output.warn(line)

    def failed(self, line: str) -> None:
        """What could not be read, and why; told even with `-q`."""
        with self._lock:
            self._context.output.failure(Failed(line))


def demand_one_place(socket_path: str | None, listen: str | None) -> None:
    """Raises WrongUsage where it is not said, once, where clients find it."""
    if (socket_path is None) == (listen is None):
        raise WrongUsage("Say where clients find it: --socket PATH, or --listen HOST:PORT.")


def tls_context(certificate: str | None, key: str | None, clients: str | None) -> ssl.SSLContext | None:
    """TLS 1.2 or newer, as the options have it. Raises WrongUsage, Failed."""
    if certificate is None and key is None and clients is None:
        return None
    if certificate is None or key is None:
        raise WrongUsage("TLS needs --tls-cert and --tls-key.")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        tls.load_cert_chain(certificate, key)
        if clients is not None:
            tls.load_verify_locations(clients)
            tls.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise Failed(f"The certificates for TLS cannot be used: {error}", on=certificate) from error
    return tls


class EndedBySignals:
    """Ctrl-C and SIGTERM, from now on.

    An Event would have a lock that the thread which a signal interrupts may hold itself; a SimpleQueue has none.
    """

    def __init__(self) -> None:
        self._came: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _frame: self._came.put(number))

    def wait(self, seconds: float) -> bool:
        """Whether one comes within so long."""
        with suppress(queue.Empty):
            self._came.get(timeout=seconds)
            return True
        return False
