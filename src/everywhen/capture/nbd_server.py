# SPDX-License-Identifier: AGPL-3.0-or-later
"""The NBD server inside a hypervisor, which has only one: begun for us and ended after us, or the one it has for its disks.

A storage daemon whose disks are used over NBD has a server as long as it lives, and `nbd-server-stop` takes away whatever it
exports, its guests' disks first. No command tells where it listens: its process is the other end of the monitor's socket, and
Linux tells that one's listening sockets (unix(7) SO_PEERCRED, proc(5)); opening our export shows which of them it is.
Nor does any command tell that there is a server which has no export yet: that shows when ours is begun.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from everywhen.capture import answers
from everywhen.capture.nodes import OURS
from everywhen.capture.qmp import CommandFailed, Monitor, QmpMonitor
from everywhen.nbd.connection import NbdConnection, NbdError

EXPORT = f"{OURS}export"
"""Our export, in a server that was begun for it."""
LODGER = f"{OURS}export-in-anothers-server"
"""In one that was not: so whoever takes it away after a kill of ours knows that the server is to stay."""
_THERE_IS_ONE = "already running"
"""QEMU, blockdev-nbd.c: `NBD server already running`; its class of error is that of all others."""
_GONE_S = 10.0
_LOOK_S = 1.0
"""Seconds for a socket that is no NBD server's to show it: another monitor may take whom it serves next without a word."""
_LISTENING = 0x10000
"""The flag of /proc/net/unix for a socket that listens: __SO_ACCEPTCON (Linux, include/linux/net.h)."""


@contextmanager
def nbd_server(monitor: Monitor, socket_path: str) -> Iterator[tuple[str, list[str]]]:
    """A server to add an export to while the body runs: the export's name, and unix sockets of which one is the server's.

    Raises CommandFailed, MonitorError.
    """
    if is_used(monitor) or not _begun(monitor, socket_path):
        yield LODGER, _listening_sockets(monitor)
        return
    try:
        yield EXPORT, [socket_path]
    finally:
        monitor.execute("nbd-server-stop")


def _begun(monitor: Monitor, socket_path: str) -> bool:
    """Begin a server, unless there is one. Raises CommandFailed, MonitorError."""
    try:
        monitor.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": socket_path}}})
    except CommandFailed as error:
        if _THERE_IS_ONE in str(error):
            return False
        raise
    return True


def is_used(monitor: Monitor) -> bool:
    """Whether others than we export over NBD. Raises MonitorError, CommandFailed."""
    return any(export.kind == "nbd" and not export.name.startswith(OURS) for export in answers.block_exports(monitor))


def withdraw(monitor: Monitor, export: str) -> None:
    """End an export, also for who is still connected to it, and wait until it is gone. Raises MonitorError."""
    with suppress(CommandFailed):  # there is none
        monitor.execute("block-export-del", {"id": export, "mode": "hard"})
        monitor.next_event(_GONE_S, lambda event: event.name == "BLOCK_EXPORT_DELETED" and event.data.get("id") == export)


def connect(sockets: Sequence[str], export: str, contexts: Sequence[str], timeout: float) -> NbdConnection:
    """Open an export at the socket that has it. Raises NbdError."""
    for path in sockets:
        with suppress(NbdError), closing(NbdConnection(path, export, timeout=_LOOK_S)):
            return NbdConnection(path, export, timeout=timeout, contexts=contexts)
    where = "its NBD server, which others have begun, was found at no unix socket of this host"
    raise NbdError(f"{where}: have it listen at one, or end it (nbd-server-stop) while the disk is read")


def _listening_sockets(monitor: Monitor) -> list[str]:
    """Paths of unix sockets at which the monitor's process listens; none where that cannot be seen."""
    if not isinstance(monitor, QmpMonitor):
        return []  # libvirt's virtual machines have an NBD server only while a job of libvirt's uses it
    with socket.socket(fileno=os.dup(monitor.fileno())) as peer:
        (process,) = struct.unpack_from("i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        own = peer.getpeername()
    found = []
    with suppress(OSError):  # it is another user's, or on the other side of a container's wall
        folder = Path(f"/proc/{process}")
        open_ones = {os.readlink(descriptor) for descriptor in (folder / "fd").iterdir()}
        for line in (folder / "net/unix").read_text().splitlines()[1:]:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and int(fields[3], 16) & _LISTENING and f"socket:[{fields[6]}]" in open_ones:
                found.append(str(folder / "cwd" / fields[7]))
    return [path for path in found if path != own]
