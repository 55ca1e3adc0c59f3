# SPDX-License-Identifier: AGPL-3.0-or-later
"""The disks of a VM that runs from the backup, as exports of an NBD server, by the names of the disks."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from everywhen.nbd.devices import OpenedExport
from everywhen.nbd.exports import NoExport
from everywhen.nbd.served_client import Terms
from everywhen.nbd.serving import NbdServer
from everywhen.services.instant.journalled import JournalledDisk
from everywhen.services.instant.line import Line
from everywhen.services.view.moments import FAILURES, MomentView
from everywhen.services.view.overlay import Overlay


class _Disks:
    """Is `nbd.devices.Exports`."""

    def __init__(self, disks: Mapping[str, JournalledDisk], vm: str) -> None:
        self._disks = disks
        self._vm = vm

    def names(self) -> Iterable[str]:
        return self._disks.keys()

    def open(self, name: str) -> OpenedExport:
        disk = self._disks.get(name)
        if disk is None:
            raise NoExport(f"{self._vm} has no disk {name}")
        return OpenedExport(disk, lambda: None, disk, f"{self._vm}/{name}, running from a backup")


@contextmanager
def served(
    view: MomentView, line: Line, cache: str, listening: socket.socket, report: Callable[[str, Exception], None]
) -> Iterator[None]:
    """While the body runs, the disks are served at that socket, with the line's records over the moment that it began with.

    `cache`: a folder that has room for all that is written. `report` is told of the first failure of each connection. In the
    end all that was answered is in the spool. Raises OSError.
    """
    with ExitStack() as stack:
        disks = {}
        for number, name in enumerate(line.disks):
            overlay = Overlay(view.disks[name], cache)
            stack.callback(overlay.close)
            disks[name] = JournalledDisk(number, overlay, line.spooler)
        server = NbdServer(Terms(_Disks(disks, view.vm.name), FAILURES, report))
        stack.callback(server.stop)
        server.listen(listening)
        yield
