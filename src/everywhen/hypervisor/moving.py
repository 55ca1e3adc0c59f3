# SPDX-License-Identifier: AGPL-3.0-or-later
"""Disks of a running domain moved to other storage, which libvirt and its QEMU do: a mirror, in sync, then the pivot.

Source: libvirt, html/libvirt-libvirt-domain.html (virDomainBlockCopy, virDomainBlockJobAbort), formatdomain.html (mirror).
Where a disk is, libvirt alone knows: it is asked each time, and nothing of it is written down here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from everywhen.capture.libvirt_host import ANSWER_S, LibvirtHost, NoDomain, NotRunning, within

_PIVOT_S = 120.0
"""A pivot writes what is in memory; libvirt waits for it."""


class Stand(Enum):
    """How a domain stands."""

    gone = "gone"
    """It is not defined."""
    off = "off"
    runs = "runs"
    waits = "waits"
    """QEMU has stopped its guest because a disk does not answer, or has no room."""
    suspended = "suspended"


@dataclass(frozen=True, slots=True)
class MovingDisk:
    """`path`: the file or device that it is on, '' where that is neither; `mirror`: to which it is copied, '': it is not;
    `ready`: both have the same."""

    path: str
    mirror: str
    ready: bool


class MovingDomain:
    """A domain of a libvirt of this host, by its UUID. All methods raise MonitorError."""

    def __init__(self, uri: str, uuid: str) -> None:
        self._host = LibvirtHost(uri)
        self._uuid = uuid

    def close(self) -> None:
        """Hang up."""
        self._host.close()

    @property
    def _domain(self) -> Any:  # noqa: ANN401 - libvirt's objects have no types
        return self._host.domain(self._uuid).domain

    def stand(self) -> Stand:
        """How it stands now."""
        try:
            state, reason = within(ANSWER_S, self._domain.state)
        except NoDomain:
            return Stand.gone
        if state in (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED):
            return Stand.off
        if state != libvirt.VIR_DOMAIN_PAUSED:
            return Stand.runs
        return Stand.waits if reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR else Stand.suspended

    def disks(self) -> Mapping[str, MovingDisk]:
        """Where its disks are as it runs. Raises NotRunning."""
        root = ET.fromstring(self._host.domain(self._uuid).xml(running=True))  # noqa: S314 - libvirt's own
        found = {}
        for disk in root.iterfind("devices/disk"):
            target, source, mirror = disk.find("target"), disk.find("source"), disk.find("mirror")
            if target is not None:
                copying = mirror is not None and mirror.get("job") == "copy"
                to = mirror if copying else None
                found[target.get("dev", "")] = MovingDisk(
                    _place(source), _place(to), to is not None and to.get("ready") == "yes"
                )
        return found

    def copied(self, disk: str) -> tuple[int, int]:
        """Bytes that a copy has done, and in all; (0, 0) where there is none."""
        found = within(ANSWER_S, lambda: self._domain.blockJobInfo(disk, 0))
        return (int(found["cur"]), int(found["end"])) if found else (0, 0)

    def copy(self, disk: str, path: str, image_format: str, pace: int) -> None:
        """Begin to copy it to a new file, so many bytes a second (0: no limit); what is written from then on goes to both."""
        wanted = ET.Element("disk", {"type": "file"})
        ET.SubElement(wanted, "driver", {"type": image_format})
        ET.SubElement(wanted, "source", {"file": path})
        xml, domain = ET.tostring(wanted, encoding="unicode"), self._domain
        # A domain that is defined forgets the copy with its end: then the disk is where it was.
        flags = libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
        limits = {libvirt.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH: pace} if pace else {}
        within(ANSWER_S, lambda: domain.blockCopy(disk, xml, limits, flags))

    def cancel(self, disk: str) -> None:
        """End its copy; the disk stays where it is."""
        domain = self._domain
        within(ANSWER_S, lambda: domain.blockJobAbort(disk, 0))

    def pivot(self, disk: str) -> None:
        """It is on what it was copied to, now and when it is started next."""
        domain = self._domain
        within(_PIVOT_S, lambda: domain.blockJobAbort(disk, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT))

    def suspend(self) -> None:
        """Have its guest stand still."""
        within(ANSWER_S, self._domain.suspend)

    def resume(self) -> None:
        """Have its guest go on."""
        within(ANSWER_S, self._domain.resume)

    def stop(self) -> None:
        """Have it off, as by its switch; nothing where it is."""
        try:
            within(ANSWER_S, self._domain.destroy)
        except NotRunning:
            return

    def definition(self) -> str:
        """As it will be started next."""
        return self._host.domain(self._uuid).xml(running=False)

    def label(self) -> str:
        """Of the user as whom this libvirt's QEMUs run, as it says; '' where it does not."""
        root = ET.fromstring(within(ANSWER_S, self._host.connection.getCapabilities))  # noqa: S314 - libvirt's own
        for model in root.iterfind("host/secmodel"):
            if model.findtext("model") == "dac":
                return model.findtext("baselabel", "")
        return ""


def _place(element: ET.Element | None) -> str:
    """A file's or device's path."""
    if element is None:
        return ""
    source = element.find("source") if element.tag == "mirror" else element
    values = element.attrib if source is None else source.attrib
    return values.get("file") or values.get("dev") or ""
