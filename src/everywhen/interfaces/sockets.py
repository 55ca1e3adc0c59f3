# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sockets at which clients find a server: a unix socket that is its owner's alone, or a TCP port.

A port that others can reach is opened only where they must prove, by TLS, who they are: behind it lies every disk.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from contextlib import ExitStack, suppress
from urllib.parse import quote

from everywhen.services.failures import Busy, Failed, NotAllowed, WrongUsage, from_system

_BACKLOG = 64
_LONGEST_PATH = 107
"""Bytes: the kernel's limit."""


def unix_socket(path: str, stack: ExitStack) -> socket.socket:
    """Listening at `path`, for nobody but this user; its name is removed with the stack. Raises WrongUsage, Busy, Failure."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise WrongUsage(f"{path}: the name of a socket has at most {_LONGEST_PATH} bytes.", on=path)
    _remove_dead(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            listening.bind(path)
        finally:
            os.umask(before)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        error.filename = path
        raise from_system(error) from error
    identity = os.lstat(path).st_ino
    stack.callback(_remove_own, path, identity)
    return listening


def tcp_socket(where: str, *, proven: bool, proof: list[str]) -> socket.socket:
    """Listening at HOST:PORT; `proven`: clients must prove, in secret, who they are; `proof`: how they would, for whoever has
    not asked that of them. Raises WrongUsage, NotAllowed, Failed."""
    host, colon, port = where.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise WrongUsage(f"--listen {where}: it looks like 127.0.0.1:10809 or [::1]:10809.", on=where)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        if not proven and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
            raise NotAllowed(
                f"{where} can be reached by others, and whoever reaches it could read every disk.",
                on=where,
                do=[*proof, "Or --listen 127.0.0.1:0"],
            )
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise Failed(f"{where}: {error.strerror or error}", on=where) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise Failed(f"{where}: {error.strerror or error}", on=where) from error
    return listening


def uri(listening: socket.socket, *, encrypted: bool) -> str:
    """Where an NBD client finds it (github.com/NetworkBlockDevice/nbd, doc/uri.md)."""
    scheme = "nbds" if encrypted else "nbd"
    address = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"{scheme}+unix:///?socket={quote(os.path.abspath(address))}"
    host = f"[{address[0]}]" if listening.family == socket.AF_INET6 else address[0]
    return f"{scheme}://{host}:{address[1]}"


def _remove_dead(path: str) -> None:
    """A socket that a killed server has left. Raises Busy where somebody listens, Failed for anything else that is there."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise Failed(f"{path} exists, and is no socket.", on=path, safe="Nothing was changed.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            error.filename = path
            raise from_system(error) from error
    raise Busy(f"Somebody listens at {path} already.", on=path, safe="Nothing was changed.")


def _remove_own(path: str, identity: int) -> None:
    with suppress(FileNotFoundError):
        if os.lstat(path).st_ino == identity:  # else another server has taken the place
            os.unlink(path)
