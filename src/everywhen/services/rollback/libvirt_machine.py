# SPDX-License-Identifier: AGPL-3.0-or-later
"""A domain of this host's libvirt that is rolled back: is `machine.Machine`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from everywhen.capture.domain_files import DEFINITION
from everywhen.capture.libvirt_vm import LibvirtVm
from everywhen.capture.qmp import MonitorError, VmUnknown
from everywhen.capture.stored_disk import StoredDisk
from everywhen.hypervisor.host import VmHost
from everywhen.services.failures import Failed, NotFound
from everywhen.services.returning.definition import Genid, new_generation
from everywhen.services.rollback.configuration import defined_as_then

_SAID = {
    Genid.changed: "it has a new VM-Generation-ID",
    Genid.added: "it has a VM-Generation-ID now, since it looks like Windows",
    Genid.none: "it has no VM-Generation-ID: its guest does not learn that it was set back",
}


@dataclass(frozen=True, slots=True)
class LibvirtMachine:
    """`domain`: its name or UUID. `randomness`: for what is new."""

    uri: str
    domain: str
    randomness: Callable[[int], bytes]

    @property
    def _vm(self) -> LibvirtVm:
        return LibvirtVm(self.uri, self.domain)

    def runs(self) -> bool:
        with self._asking():
            return not self._vm.is_off()

    def demand_usable(self) -> None:
        with self._asking(), VmHost(self.uri) as host:
            why, do = host.keeps_from_stopping(self.domain)
        if why:
            raise Failed(f"{self.domain} cannot be rolled back: {why}.", on=self.domain, safe="Nothing was changed.", do=[do])

    def images(self) -> dict[str, StoredDisk]:
        with self._asking():
            found = self._vm.images()
        # libvirt takes an image for raw where nothing is said, and so must we: what is in it is the guest's.
        return {name: disk._replace(image_format=disk.image_format or "raw") for name, disk in found.items()}

    def definition(self) -> dict[str, bytes]:
        with self._asking():
            return self._vm.definition()

    def stop(self, *, at_once: bool) -> None:
        with self._asking(), VmHost(self.uri) as host:
            host.stop(self.domain, at_once=at_once)

    def prepare(self, files: Mapping[str, bytes] | None) -> str:
        generation = UUID(bytes=self.randomness(16), version=4)
        with self._asking():
            xml = self._vm.definition()[DEFINITION].decode()
            if files is not None:
                made, states = defined_as_then(xml, files, generation)
                for state in states:
                    state.remove()
                    state.put()
                with VmHost(self.uri) as host:
                    host.define(made.xml)
                return "; ".join(["it is defined as it was then", *made.remarks, _SAID[made.genid]])
            fresh, genid = new_generation(xml, generation)
            if genid is not Genid.none:
                with VmHost(self.uri) as host:
                    host.define(fresh)
        return _SAID[genid]

    def start(self) -> None:
        with self._asking(), VmHost(self.uri) as host:
            host.start(self.domain, paused=False)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """What libvirt does not do is a failure. Raises NotFound, Failed."""
        try:
            yield
        except VmUnknown as error:
            do = ["Which VMs there are: everywhen doctor", "By another name: --domain NAME", "Its images: --disk DISK=IMAGE"]
            raise NotFound(f"{self.uri}: {error}.", on=self.domain, do=do) from error
        except MonitorError as error:
            raise Failed(f"{self.domain} at {self.uri}: {error}.", on=self.domain) from error
