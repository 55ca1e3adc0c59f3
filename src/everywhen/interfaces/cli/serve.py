# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen serve nbd`: moments as devices, until Ctrl-C."""

from __future__ import annotations

import signal
import ssl
import threading
import time
from contextlib import ExitStack
from typing import Annotated

import typer

from everywhen.interfaces.cli.app import GET_BACK, AsJson, PassphraseFile, Quiet, RecoveryKeyFile, Repo, app, context_of
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.restored_words import ship_newest
from everywhen.interfaces.nbd_exports import MomentExports, forgotten, kept
from everywhen.interfaces.service_manager import ServiceManager
from everywhen.interfaces.sockets import tcp_socket, unix_socket, uri
from everywhen.nbd.served_client import Terms
from everywhen.nbd.serving import NbdServer
from everywhen.services.addresses import Address, parse_address
from everywhen.services.failures import Failed, WrongUsage
from everywhen.services.view.moments import FAILURES, MomentView, OpenMoments
from everywhen.storage.base import StorageError

_LINGER_S = 10.0
"""A moment that no client uses any more stays open so long: many connect anew for each question."""
_TIDY_S = 2.0

serving = typer.Typer(help="Moments for other programs: as devices.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(serving, name="serve", rich_help_panel=GET_BACK)


@serving.command("nbd")
def serve_nbd(
    moment: Annotated[
        str | None,
        typer.Argument(metavar="[MOMENT]", help="Only this one, as web1/vda@-10m; it is the default export, too. Else any."),
    ] = None,
    socket_path: Annotated[
        str | None, typer.Option("--socket", metavar="PATH", help="A unix socket, for its owner only.")
    ] = None,
    listen: Annotated[str | None, typer.Option("--listen", metavar="HOST:PORT", help="TCP; port 0: a free one.")] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Can be written to; what was written is gone in the end.")] = False,
    keep_in: Annotated[
        str | None,
        typer.Option("--keep-in", metavar="DIR", help="Can be written to; kept in files there, and taken up again."),
    ] = None,
    tls_cert: Annotated[str | None, typer.Option("--tls-cert", metavar="FILE", help="PEM; clients must use TLS then.")] = None,
    tls_key: Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help="PEM.")] = None,
    tls_clients: Annotated[
        str | None,
        typer.Option("--tls-clients", metavar="FILE", help="PEM of who signs the certificates that clients must have."),
    ] = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Moments as network block devices; the name of an export is an address: web1/vda@-10m."""
    context = context_of(locals())
    if overlay and keep_in is not None:
        raise WrongUsage("--overlay and --keep-in exclude one another: the one forgets what is written, the other keeps it.")
    only = _only(moment)
    tls = _tls(tls_cert, tls_key, tls_clients)
    if (socket_path is None) == (listen is None):
        raise WrongUsage("Say where clients find it: --socket PATH, or --listen HOST:PORT.")
    with context.repository() as repository, ExitStack() as stack:
        moments = OpenMoments(
            repository,
            "serve nbd",
            zone=context.zone,
            monotonic=time.monotonic,
            linger_s=_LINGER_S,
            before=lambda vm: ship_newest(context, vm),
        )
        stack.callback(moments.close)
        made = kept(keep_in) if keep_in is not None else forgotten(str(repository.cache)) if overlay else None
        told = _Told(context)
        exports = MomentExports(moments, repository.store.url, only=only, overlay=made, opened=told.opened)
        stack.callback(exports.close)
        if only is not None:
            with moments.used(only):  # what cannot be opened is said now
                pass
        listening = unix_socket(socket_path, stack) if socket_path else tcp_socket(listen or "", proven=tls_clients is not None)
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: ended.set())
        server = NbdServer(Terms(exports, FAILURES, told.failed, tls))
        stack.callback(server.stop)
        server.listen(listening)
        _ready(context, uri(listening, encrypted=tls is not None), only)
        while not ended.wait(_TIDY_S):
            try:
                moments.tidy()
            except StorageError as error:  # clients go on; a lease that is left ends by itself within a minute
                told.failed("", error)
    context.output.line("Ended; nothing is open any more.")


class _Told:
    """What clients open, and what fails them, a line each on standard error. Called by several threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._seen: set[int] = set()

    def opened(self, view: MomentView) -> None:
        """A client asks for a disk: which moment that is, said once as long as it is open."""
        with self._lock:
            if id(view) in self._seen:
                return
            self._seen.add(id(view))
            self._context.output.note(view.moment.found.words(view.vm.name, self._context.zone))
            if not view.leased:
                self._context.output.warn("the repository cannot be written: nothing there says that this moment is being read")

    def failed(self, name: str, error: Exception) -> None:
        """A connection's first failure."""
        with self._lock:
            self._context.output.warn(f"{name}: {error}" if name else str(error))


def _only(moment: str | None) -> Address | None:
    """Raises WrongUsage."""
    if moment is None:
        return None
    address = parse_address(moment)
    if address.path is not None:
        raise WrongUsage("This serves disks, not files inside them.", on=moment)
    return address


def _tls(certificate: str | None, key: str | None, clients: str | None) -> ssl.SSLContext | None:
    """Raises WrongUsage, Failed."""
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


def _ready(context: Context, where: str, only: Address | None) -> None:
    """Say where clients find it: on standard output, and to a service manager."""
    name = str(only) if only else "VM/DISK@WHEN"
    context.output.document({"uri": where, "moment": str(only) if only else None})
    context.output.line(f"Ready: {where}  (the name of an export: {name})")
    context.output.line("Ctrl-C ends it.", style="faint")
    ServiceManager.of(context.env).tell(READY="1", STATUS=f"Serving at {where}")
