# SPDX-License-Identifier: AGPL-3.0-or-later
"""The libvirt of this host: its domains, networks and pools, and domains defined, started and undefined there.

Source: libvirt, html/libvirt-libvirt-domain.html and -storage.html. Drivers for networks and storage may be missing: then
there are none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from xml.etree import ElementTree as ET

import libvirt

from everywhen.capture.libvirt_host import ANSWER_S, LibvirtHost, within
from everywhen.capture.qmp import MonitorError
from everywhen.hypervisor.abilities import Abilities, abilities_of

T = TypeVar("T")
_SHUTDOWN_S, _LOOK_S = 60.0, 0.5
_POOL_S = 120.0
"""A pool looks at all its volumes when it is refreshed."""
_RECEIVE = 1 << 12
_NO_DRIVER = libvirt.VIR_ERR_NO_SUPPORT


@dataclass(frozen=True, slots=True)
class KnownDomain:
    """A domain of the host; `runs`: it has a QEMU."""

    name: str
    uuid: str
    runs: bool


@dataclass(frozen=True, slots=True)
class Pool:
    """A storage pool: libvirt's kind of it, the folder of its volumes ('' where it has none), bytes that are free."""

    name: str
    kind: str
    path: str
    free: int
    active: bool


class VmHost:
    """A connection to the libvirt of this host. All methods raise MonitorError."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._host = LibvirtHost(uri)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._host.close()

    @property
    def _connection(self) -> Any:  # noqa: ANN401 - libvirt's objects have no types
        return self._host.connection

    def domains(self) -> list[KnownDomain]:
        """All of them."""
        found = within(ANSWER_S, self._connection.listAllDomains)
        return [KnownDomain(str(one.name()), str(one.UUIDString()), bool(within(ANSWER_S, one.isActive))) for one in found]

    def abilities(self) -> Abilities:
        """What domains may be here."""
        return abilities_of(str(within(ANSWER_S, self._connection.getCapabilities)))

    def networks(self) -> dict[str, bool]:
        """libvirt's networks by name: whether each is active."""
        found = self._those_of_a_driver(self._connection.listAllNetworks)
        return {str(one.name()): bool(within(ANSWER_S, one.isActive)) for one in found}

    def pools(self) -> list[Pool]:
        """libvirt's storage pools."""
        found = []
        for pool in self._those_of_a_driver(self._connection.listAllStoragePools):
            root = ET.fromstring(within(ANSWER_S, pool.XMLDesc))  # noqa: S314 - libvirt's own
            active, path = bool(within(ANSWER_S, pool.isActive)), root.findtext("target/path", "")
            free = int(within(ANSWER_S, pool.info)[3]) if active else 0
            found.append(Pool(str(pool.name()), root.get("type", ""), path, free, active))
        return found

    def _those_of_a_driver(self, listed: Callable[[], list[Any]]) -> list[Any]:
        try:
            return within(ANSWER_S, listed)
        except MonitorError as error:
            cause = error.__cause__
            if isinstance(cause, libvirt.libvirtError) and cause.get_error_code() == _NO_DRIVER:
                return []
            raise

    def make_volume(self, pool: str, name: str, size: int) -> str:
        """A new volume of that many bytes; its path."""
        root = ET.Element("volume")
        ET.SubElement(root, "name").text = name
        ET.SubElement(root, "capacity", {"unit": "bytes"}).text = str(size)
        there, xml = self._pool(pool), ET.tostring(root, encoding="unicode")
        return str(within(_POOL_S, lambda: there.createXML(xml, 0)).path())

    def has_volume(self, pool: str, name: str) -> bool:
        """Whether a pool has a volume of that name."""
        return name in within(_POOL_S, self._pool(pool).listVolumes)

    def remove_volume(self, pool: str, name: str) -> None:
        """A volume that was made here; nothing where there is none."""
        there = self._pool(pool)
        if self.has_volume(pool, name):
            within(_POOL_S, lambda: there.storageVolLookupByName(name).delete(0))

    def refresh(self, pool: str) -> None:
        """Have libvirt look at what is in a pool now."""
        there = self._pool(pool)
        within(_POOL_S, lambda: there.refresh(0))

    def _pool(self, name: str) -> Any:  # noqa: ANN401 - see above
        return within(ANSWER_S, lambda: self._connection.storagePoolLookupByName(name))

    def objection(self, xml: str) -> str:
        """What libvirt and its QEMU would have against that domain, '' for nothing; nothing is changed by the question."""
        try:
            within(ANSWER_S, lambda: self._connection.domainXMLToNative("qemu-argv", _without_cards(xml), 0))
        except MonitorError as error:
            return str(error)
        return ""

    def define(self, xml: str) -> None:
        """A domain, off. One of its name and UUID that is there already is replaced: look before."""
        within(ANSWER_S, lambda: self._connection.defineXML(xml))

    def undefine(self, uuid: str) -> None:
        """A domain that is off; its files stay."""
        flags = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        flags |= getattr(libvirt, "VIR_DOMAIN_UNDEFINE_KEEP_TPM", 0)  # since 8.9
        domain = self._host.domain(uuid).domain
        within(ANSWER_S, lambda: domain.undefineFlags(flags))

    def start(self, uuid: str, *, paused: bool) -> None:
        """Start a domain; `paused`: its processor waits for `resume`."""
        domain = self._host.domain(uuid).domain
        within(_POOL_S, lambda: domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0))

    def resume(self, uuid: str) -> None:
        """Let its processor go."""
        within(ANSWER_S, self._host.domain(uuid).domain.resume)

    def keeps_from_stopping(self, uuid: str) -> tuple[str, str]:
        """Why a domain should not be stopped, given other disks and started, and what to do; '' where nothing is in the way."""
        domain = self._host.domain(uuid).domain
        if not within(ANSWER_S, domain.isPersistent):
            why = "libvirt would forget it when it is off (it is transient)"
            return why, f"Define it: virsh dumpxml --migratable {uuid} > vm.xml; virsh define vm.xml"
        if within(ANSWER_S, domain.hasManagedSaveImage):
            why = "its memory was saved (virsh managedsave), and its next start would go on with that over other disks"
            return why, f"Start it, or: virsh managedsave-remove {uuid}"
        return "", ""

    def stop(self, uuid: str, *, at_once: bool) -> None:
        """Have a domain off. Its guest is asked (ACPI), and has a minute, unless it is to be `at_once`; then QEMU is asked to
        end in order, which flushes its disks, and only one that does not is killed."""
        there = self._host.domain(uuid)
        domain = there.domain
        # A guest that stands still does not hear.
        if not at_once and within(ANSWER_S, domain.state)[0] == libvirt.VIR_DOMAIN_RUNNING:
            within(ANSWER_S, domain.shutdown)
            until = time.monotonic() + _SHUTDOWN_S
            while there.runs and time.monotonic() < until:
                time.sleep(_LOOK_S)
        if there.runs:
            try:
                within(ANSWER_S, lambda: domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL))
            except MonitorError:
                if there.runs:
                    within(ANSWER_S, domain.destroy)

    def runs(self, uuid: str) -> bool:
        """Whether it has a QEMU."""
        return self._host.domain(uuid).runs

    def console(self, uuid: str) -> GuestConsole:
        """Its serial console, from now on; whoever has it otherwise loses it."""
        domain = self._host.domain(uuid).domain

        def opened() -> object:
            stream = self._connection.newStream(0)
            domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
            return stream

        return GuestConsole(within(ANSWER_S, opened))


class GuestConsole:
    """What a guest's serial console shows."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 - see above
        self._stream = stream

    def receive(self) -> bytes:
        """Waits for more of it; b'' when it is over, also since somebody closed this."""
        try:
            return bytes(self._stream.recv(_RECEIVE))
        except libvirt.libvirtError:
            return b""

    def close(self) -> None:
        """Let go of it."""
        with suppress(libvirt.libvirtError):  # it is over already
            self._stream.abort()


def _without_cards(xml: str) -> str:
    """For libvirt's own check, which would make a network device for each card."""
    root = ET.fromstring(xml)  # noqa: S314 - our own
    devices = root.find("devices")
    if devices is not None:
        for card in devices.findall("interface"):
            devices.remove(card)
    return ET.tostring(root, encoding="unicode")
