# SPDX-License-Identifier: AGPL-3.0-or-later
"""Disks of moments as NBD exports: the name of an export is an address, `web1/vda@-10m`; a VM's only disk needs no name.

A disk that can be written to has an overlay that is the server's as long as it runs: who formats it over one connection wants
to find that over the next, by whatever words for that moment.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from everywhen.nbd.devices import OpenedExport
from everywhen.nbd.exports import NoExport
from everywhen.services.addresses import Address, parse_address
from everywhen.services.failures import Failure, NotFound, WrongUsage
from everywhen.services.translation import failing
from everywhen.services.view.moments import MomentView, OpenMoments
from everywhen.services.view.overlay import Overlay

MakeOverlay = Callable[[MomentView, str], Overlay]
"""What takes the writes to a disk, by its name, of a moment. Raises DeviceError, OSError."""


def forgotten(folder: str) -> MakeOverlay:
    """Overlays in files without a name, which are gone when they are closed, however that comes."""
    return lambda view, disk: Overlay(view.disks[disk], folder)


def kept(folder: str) -> MakeOverlay:
    """Overlays in files of a folder, by moment. Raises NotFound."""
    if not os.path.isdir(folder):
        raise NotFound(f"{folder} is not a folder; what is written would be kept there.", on=folder)

    def make(view: MomentView, disk: str) -> Overlay:
        name = f"{view.vm.name}-{disk}@{view.moment.label}"
        return Overlay(view.disks[disk], folder, name, over=f"{view.vm.name}/{disk}@{view.moment.label}")

    return make


class MomentExports:
    """What a server offers. Safe to use from several threads; `close` it."""

    def __init__(
        self,
        moments: OpenMoments,
        url: str,
        *,
        only: Address | None = None,
        overlay: MakeOverlay | None = None,
        opened: Callable[[MomentView], None],
    ) -> None:
        """`url` names the repository in messages. Only the disks of `only` are offered, also without a name, else any disk
        of any moment. Without `overlay` nothing can be written. `opened` is told of what clients open.
        """
        self._moments = moments
        self._url = url
        self._only = only
        self._overlay = overlay
        self._opened = opened
        self._written: dict[str, Overlay] = {}
        self._kept = ExitStack()
        self._lock = threading.Lock()

    def names(self) -> Iterable[str]:
        """The newest moment of every disk there is; any other moment can be asked for. Raises NoExport."""
        with self._refusing():
            if self._only is not None:
                view = self._moments.open(self._only)
                self._moments.release(self._only)
                disks = [self._only.disk] if self._only.disk else sorted(view.disks)
                return [str(replace(self._only, disk=disk)) for disk in disks]
            catalog = self._moments.catalog()
            newest = [(vm, catalog.newest(vm)) for vm in catalog.vms]
            return [f"{vm.name}/{disk}@latest" for vm, point in newest if point for disk in sorted(point.disks)]

    def open(self, name: str) -> OpenedExport:
        """The disk that a client means, for one connection. Raises NoExport."""
        with self._refusing():
            return self._open(self._meant(name))

    def close(self) -> None:
        """Let go of what can be written to: of what is kept, all is on the disk then. Raises OSError."""
        self._kept.close()

    def _meant(self, name: str) -> Address:
        """Raises WrongUsage, NotFound."""
        address = self._only if self._only is not None and not name else parse_address(name)
        if address.path is not None:
            raise WrongUsage(f"{name}: a disk is offered here, not a file inside it.", on=name)
        if self._only is not None:
            whole = replace(address, disk=None, when=address.when or "latest")
            if whole != replace(self._only, disk=None, when=self._only.when or "latest") or (
                self._only.disk and address.disk not in (None, self._only.disk)
            ):
                raise NotFound(f"{name} is not offered here, only {self._only}.", on=name)
            return replace(address, disk=address.disk or self._only.disk)
        return address

    def _open(self, address: Address) -> OpenedExport:
        view = self._moments.open(address)
        with ExitStack() as undo:
            undo.callback(self._moments.release, address)
            disk = address.disk or _single(view, address)
            description = f"{view.vm.name}/{disk}@{view.moment.label}"
            self._opened(view)
            if self._overlay is None:
                return OpenedExport(view.disks[disk], undo.pop_all().close, description=description)
            with self._lock:  # by what the words mean: two of them may lead to one moment, whose files there are once
                overlay = self._written.get(description)
                if overlay is None:
                    overlay = self._written[description] = self._overlay(view, disk)
                    self._kept.callback(overlay.close)
                    self._kept.push(undo.pop_all())
            return OpenedExport(overlay, undo.pop_all().close, overlay, description)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """What a user would be told is told to the client. Raises NoExport."""
        try:
            with failing(self._url):
                yield
        except Failure as failure:
            raise NoExport(" ".join([failure.what, *failure.do])) from failure


def _single(view: MomentView, address: Address) -> str:
    """The disk, where the VM has one. Raises WrongUsage."""
    if len(view.disks) != 1:
        each = [str(replace(address, disk=disk, when=address.when or "latest")) for disk in sorted(view.disks)]
        raise WrongUsage(f"{view.vm.name} has {len(each)} disks: name one.", on=view.vm.name, do=each)
    return next(iter(view.disks))
