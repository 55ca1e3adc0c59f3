# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen serve webdav`: every moment as folders of a share, until Ctrl-C; `everywhen serve account`: who may open it."""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import ExitStack, closing
from typing import Annotated
from urllib.parse import quote

import typer

from everywhen.interfaces.cli.app import AsJson, PassphraseFile, Quiet, RecoveryKeyFile, Repo, context_of
from everywhen.interfaces.cli.context import Context, read_secret, typed_twice
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
from everywhen.interfaces.service_manager import ServiceManager
from everywhen.interfaces.sockets import tcp_socket, unix_socket
from everywhen.interfaces.webdav.accounts import Accounts, put_account
from everywhen.interfaces.webdav.attempts import Attempts
from everywhen.interfaces.webdav.gate import Gate
from everywhen.repository.reading import opened_points
from everywhen.repository.repository import Repository
from everywhen.services.failures import Failure
from everywhen.services.translation import failing
from everywhen.services.view.folders import Folders
from everywhen.services.view.moments import OpenMoments

_TIDY_S = 5.0
"""So often is looked for what nobody uses any more."""
_PROOF = ["With accounts and TLS: --accounts FILE --tls-cert FILE --tls-key FILE"]

AccountsFile = Annotated[str, typer.Option("--accounts", metavar="FILE", help="The file; made where there is none.")]


@serving.command("webdav")
def serve_webdav(
    socket_path: SocketPath = None,
    listen: Listen = None,
    accounts: Annotated[
        str | None,
        typer.Option("--accounts", metavar="FILE", help="Who may open it (everywhen serve account). Else all who reach it."),
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
    """Every moment as folders of a share (WebDAV), read only, until Ctrl-C: web1/@WHEN/disk/vda.qcow2."""
    context = context_of(locals())
    tls = tls_context(tls_cert, tls_key, tls_clients)
    demand_one_place(socket_path, listen)
    known = None if accounts is None else Accounts(accounts, secrets.token_bytes(32))
    told = Told(context)
    with context.repository() as repository, ExitStack() as stack:
        folders = _folders(context, repository, told, stack)
        proven = tls is not None and (known is not None or tls_clients is not None)
        listening = unix_socket(socket_path, stack) if socket_path else tcp_socket(listen or "", proven=proven, proof=_PROOF)
        by_name = known is not None or tls is not None or socket_path is not None
        gate = Gate(known, Attempts(time.monotonic), by_name=by_name, say=told.noticed)
        from everywhen.interfaces.webdav.server import serve  # wsgidav and cheroot take 0.2 s

        url = repository.store.url
        stack.enter_context(
            closing(serve(listening, folders, gate, tls, identity=repository.id.hex(), url=url, say=told.failed))
        )
        ended = EndedBySignals()
        where = _url(listening, encrypted=tls is not None)
        stack.enter_context(opened_points(repository, f"serve webdav {where}", [], packs_known=True))
        _ready(context, where)
        while not ended.wait(_TIDY_S):
            _tidy(context, folders, told)
    context.output.line("Ended; nothing is open any more.")


@serving.command("account")
def account(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The login.")],
    accounts: AccountsFile,
    login_password_file: Annotated[
        str | None, typer.Option("--login-password-file", metavar="FILE", help="Its first line; else it is asked for, twice.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Add an account to the file that serve webdav reads, or give it another login password. To remove one, delete its line."""
    context = context_of(locals())
    if login_password_file is None:
        password = typed_twice("login password", of=f" for {name}", instead="--login-password-file FILE")
    else:
        password = read_secret(login_password_file, "login password")
    replaced = put_account(accounts, name, password)
    context.output.document({"account": name, "accounts": accounts, "replaced": replaced})
    context.output.line(f"{name} has another login password in {accounts}." if replaced else f"{name} is in {accounts}.")


def _folders(context: Context, repository: Repository, told: Told, stack: ExitStack) -> Folders:
    """The tree of all moments; let go of with the stack."""
    moments = OpenMoments(
        repository, "serve webdav", zone=context.zone, monotonic=time.monotonic, linger_s=0, before=lambda _vm: None
    )
    stack.callback(moments.close)
    folders = Folders(
        repository,
        moments,
        zone=context.zone,
        monotonic=time.monotonic,
        before=lambda vm: ship_newest(context, vm),
        say=told.noticed,
    )
    stack.callback(folders.close)
    return folders


def _tidy(context: Context, folders: Folders, told: Told) -> None:
    try:
        with failing(context.opened_url):
            folders.held.tidy()
    except Failure as failure:
        told.noticed(failure.what)  # a lease that is left ends by itself within a minute


def _ready(context: Context, url: str) -> None:
    """Say where clients find it: on standard output, and to a service manager."""
    context.output.document({"url": url})
    context.output.line(f"Ready: {url}")
    context.output.line("Ctrl-C ends it.", style="faint")
    ServiceManager.of(context.env).tell(READY="1", STATUS=f"Serving at {url}")


def _url(listening: socket.socket, *, encrypted: bool) -> str:
    """Where a client finds it; that of a unix socket as Apache and others write it, with the path in the host's place."""
    address = listening.getsockname()
    scheme = "https" if encrypted else "http"
    if isinstance(address, str):
        return f"{scheme}+unix://{quote(os.path.abspath(address), safe='')}/"
    host = f"[{address[0]}]" if listening.family == socket.AF_INET6 else address[0]
    return f"{scheme}://{host}:{address[1]}/"
