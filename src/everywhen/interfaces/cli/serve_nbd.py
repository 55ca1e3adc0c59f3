# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen serve nbd`: moments as devices, until Ctrl-C."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Annotated

import typer

from everywhen.interfaces.cli.app import AsJson, PassphraseFile, Quiet, RecoveryKeyFile, Repo, context_of
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.serving import (
    EndedBySignals,
    Listen,
    SocketPath,
    TlsCert,
    TlsClients,
    TlsKey,
    Told,
    demand_one_place,
    serving,
    tls_context,
)
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.interfaces.nbd_exports import MomentExports, forgotten, kept
from everywhen.interfaces.service_manager import ServiceManager
from everywhen.interfaces.sockets import tcp_socket, unix_socket, uri
from everywhen.nbd.served_client import Terms
from everywhen.nbd.serving import NbdServer
from everywhen.repository.reading import opened_points
from everywhen.services.addresses import Address, parse_address
from everywhen.services.failures import WrongUsage
from everywhen.services.view.moments import FAILURES, OpenMoments
from everywhen.storage.base import StorageError

_LINGER_S = 10.0
"""A moment that no client uses any more stays open so long: many connect anew for each question."""
_TIDY_S = 2.0


@serving.command("nbd")
def serve_nbd(
    moment: Annotated[
        str | None,
        typer.Argument(metavar="[MOMENT]", help="Only this one, as web1/vda@-10m; it is the default export, too. Else any."),
    ] = None,
    socket_path: SocketPath = None,
    listen: Listen = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Can be written to; what was written is gone in the end.")] = False,
    keep_in: Annotated[
        str | None,
        typer.Option("--keep-in", metavar="DIR", help="Can be written to; kept in files there, and taken up again."),
    ] = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_clients: TlsClients = None,
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
    tls = tls_context(tls_cert, tls_key, tls_clients)
    demand_one_place(socket_path, listen)
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
        told = Told(context)
        exports = MomentExports(moments, repository.store.url, only=only, overlay=made, opened=told.opened)
        stack.callback(exports.close)
        if only is not None:
            with moments.used(only):  # what cannot be opened is said now
                pass
        proof = ["With certificates: --tls-cert FILE --tls-key FILE --tls-clients FILE"]
        proven = tls_clients is not None
        listening = unix_socket(socket_path, stack) if socket_path else tcp_socket(listen or "", proven=proven, proof=proof)
        ended = EndedBySignals()
        server = NbdServer(Terms(exports, FAILURES, told.client_failed, tls))
        stack.callback(server.stop)
        server.listen(listening)
        where = uri(listening, encrypted=tls is not None)
        stack.enter_context(opened_points(repository, f"serve nbd {where}", [], packs_known=True))
        _ready(context, where, only)
        while not ended.wait(_TIDY_S):
            try:
                moments.tidy()
            except StorageError as error:  # clients go on; a lease that is left ends by itself within a minute
                told.noticed(str(error))
    context.output.line("Ended; nothing is open any more.")


def _only(moment: str | None) -> Address | None:
    """Raises WrongUsage."""
    if moment is None:
        return None
    address = parse_address(moment)
    if address.path is not None:
        raise WrongUsage("This serves disks, not files inside them.", on=moment)
    return address


def _ready(context: Context, where: str, only: Address | None) -> None:
    """Say where clients find it: on standard output, and to a service manager."""
    name = str(only) if only else "VM/DISK@WHEN"
    context.output.document({"uri": where, "moment": str(only) if only else None})
    context.output.line(f"Ready: {where}  (the name of an export: {name})")
    context.output.line("Ctrl-C ends it.", style="faint")
    ServiceManager.of(context.env).tell(READY="1", STATUS=f"Serving at {where}")
