# SPDX-License-Identifier: AGPL-3.0-or-later
"""A domain whose disks are served from the backup, step by step onto its own storage; one look at it at a time.

What a look finds is libvirt's to say, so a run that goes on after a kill needs no other steps than the first (docs/return.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from xml.etree import ElementTree as ET

from everywhen.capture.domain_xml import domain_element
from everywhen.capture.qmp import MonitorError
from everywhen.hypervisor.host import VmHost
from everywhen.hypervisor.moving import MovingDisk, MovingDomain, Stand
from everywhen.services.failures import Failed
from everywhen.services.instant.record import Policies, Recorded
from everywhen.services.returning.disk_xml import NbdSource, place_disks

_STOP = "stop"
"""Of a disk that does not answer, or has no room: QEMU stops the guest, and asks again when that is to go on."""
_POLICIES = ("error_policy", "rerror_policy")
"""Of a disk's driver; the second one, where it is there, is about reads."""


def on_server(xml: str, socket: str, disks: Mapping[str, object]) -> tuple[str, Policies]:
    """A definition with these disks at an NBD server's socket, by their names; what it said of their errors before."""
    root = domain_element(xml)
    place_disks(root, {name: NbdSource(socket, name) for name in disks})
    policies: Policies = {}
    for name, disk in _disks(root).items():
        driver = disk.find("driver")
        if name in disks and driver is not None:
            policies[name] = {key: driver.attrib.pop(key) for key in _POLICIES if key in driver.attrib}
            driver.set(_POLICIES[0], _STOP)
    return ET.tostring(root, encoding="unicode"), policies


def on_storage(xml: str, policies: Policies) -> str:
    """A definition whose disks are on their own storage now, with what it said of their errors before."""
    root = domain_element(xml)
    for name, disk in _disks(root).items():
        driver = disk.find("driver")
        if name not in policies or driver is None:
            continue
        driver.attrib.pop(_POLICIES[0], None)
        driver.attrib.update(policies[name])
        for chain in disk.findall("backingStore"):  # libvirt says that a copy stands on nothing; it sees that itself
            disk.remove(chain)
    return ET.tostring(root, encoding="unicode")


def _disks(root: ET.Element) -> dict[str, ET.Element]:
    found = {}
    for disk in root.iterfind("devices/disk"):
        if (target := disk.find("target")) is not None:
            found[target.get("dev", "")] = disk
    return found


class Production:
    """One domain's way. All methods raise MonitorError, OSError."""

    def __init__(
        self, recorded: Recorded, host: VmHost, domain: MovingDomain, note: Callable[[str], None], pace: int = 0
    ) -> None:
        """`note` is told, a line each, what somebody should know; `pace`: bytes of each disk copied in a second, 0: any."""
        self._recorded = recorded
        self._host = host
        self._domain = domain
        self._note = note
        self._pace = pace
        self._said = ""

    @property
    def moved(self) -> bool:
        """Whether all its disks are on its own storage, and it is on."""
        if self._domain.stand() in (Stand.gone, Stand.off):
            return False
        return not self._left(self._domain.disks())

    def begin(self) -> None:
        """Have it defined, on, and going on, its disks being served."""
        record = self._recorded.now
        stand = self._domain.stand()
        if stand is Stand.gone:
            self._host.define(record.xml)
        if stand in (Stand.gone, Stand.off):
            self._recorded.suspended(by_us=False)
            self._host.start(record.uuid, paused=False)
        elif not self._pivoting(self._domain.disks()):
            self._go_on()

    def look(self) -> bool:
        """See how far it is, and do what comes next; True when there is nothing left to be done.

        Raises Failed when the domain has ended.
        """
        stand = self._domain.stand()
        if stand in (Stand.gone, Stand.off):
            raise Failed(
                f"{self._recorded.now.name} is off.",
                on=self._recorded.now.name,
                safe="All that it wrote is in its timeline.",
                do=["The same command again starts it, and goes on with the move"],
            )
        if stand is Stand.waits:
            self._say("its guest waited for its disks, and goes on")
            self._domain.resume()
        disks = self._domain.disks()
        left = self._left(disks)
        for name in left:
            if not disks[name].mirror:
                self._copy(name)
        if any(not disks[name].ready for name in left):
            return False
        return not left or self._pivoted(left, stand)

    def progress(self) -> tuple[int, int]:
        """Bytes that copies have done, and in all."""
        found = [self._domain.copied(name) for name in self._left(self._domain.disks())]
        return sum(done for done, _ in found), sum(total for _, total in found)

    def let_go(self) -> None:
        """All its disks are on its own storage: it goes on there, and is defined so."""
        self._go_on()
        self._host.define(on_storage(self._domain.definition(), self._recorded.now.policies))

    def suspend(self) -> None:
        """Its disks will not be served for a while: its guest is to stand still until they are."""
        if self._domain.stand() in (Stand.runs, Stand.waits) and not self.moved:
            self._recorded.suspended(by_us=True)
            with suppress(MonitorError):  # it waits already
                self._domain.suspend()

    def back(self) -> None:
        """It is off and not defined any more, and nothing of its copies is left. Raises Failed where a disk has moved."""
        record = self._recorded.now
        if self._domain.stand() is not Stand.gone:
            if self._domain.stand() is not Stand.off:
                disks = self._domain.disks()
                if any(disks[name].path == target.path for name, target in record.targets.items() if name in disks):
                    raise Failed(
                        f"A disk of {record.name} is on its own storage already.",
                        on=record.name,
                        safe="Nothing was changed.",
                        do=[
                            "Go on: the same command without --back",
                            f"Then, to go back in time: everywhen rollback {record.asked}",
                        ],
                    )
                self._domain.stop()
            self._host.undefine(record.uuid)
        for path in (*(target.path for target in record.targets.values()), *record.states):
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _left(self, disks: Mapping[str, MovingDisk]) -> list[str]:
        """Those that are not on their own storage yet. Raises Failed where one is gone."""
        for name in self._recorded.now.targets:
            if name not in disks:
                raise Failed(f"{self._recorded.now.name} has no disk {name} any more.", on=self._recorded.now.name)
        return [name for name, target in self._recorded.now.targets.items() if disks[name].path != target.path]

    def _pivoting(self, disks: Mapping[str, MovingDisk]) -> bool:
        """Whether some are there, and others not: then the guest must stand still."""
        return len(self._left(disks)) < len(self._recorded.now.targets)

    def _copy(self, name: str) -> None:
        target = self._recorded.now.targets[name]
        with suppress(FileNotFoundError):
            os.unlink(target.path)  # what a copy before has left: that of a run, or of a server, that was killed
        try:
            self._domain.copy(name, target.path, target.format, self._pace)
        except MonitorError as error:
            self._say(f"the copy of {name} does not begin, and is tried again ({error})")

    def _pivoted(self, left: list[str], stand: Stand) -> bool:
        """All of them are in sync: no write may come between two of them, or there would be disks of two times."""
        if stand is not Stand.suspended:
            self._recorded.suspended(by_us=True)
            self._domain.suspend()
        disks = self._domain.disks()
        try:
            if any(not disks[name].ready for name in left):
                raise MonitorError("a copy has ended meanwhile")
            for name in left:
                self._domain.pivot(name)
        except MonitorError as error:
            self._say(f"a disk could not be moved, and is tried again ({error})")
            if not self._pivoting(self._domain.disks()):
                self._go_on()
            return False
        return True

    def _go_on(self) -> None:
        """Where it stands still because of us."""
        if self._recorded.now.suspended:
            with suppress(MonitorError):  # somebody else was faster
                self._domain.resume()
            self._recorded.suspended(by_us=False)

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            self._note(what)
