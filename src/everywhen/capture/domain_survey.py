# SPDX-License-Identifier: AGPL-3.0-or-later
"""What libvirt tells about a domain's disks, whether it runs or not; not through its monitor, whose use libvirt would note
(`tainted`) until the domain is started anew. libvirt: formatdomain.html, html/libvirt-libvirt-domain.html.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from everywhen.capture.answers import Drive, Job
from everywhen.capture.domain_xml import DomainDisk
from everywhen.capture.libvirt_host import ANSWER_S, Domain, LibvirtHost, within
from everywhen.capture.nodes import DiskNode
from everywhen.capture.qmp import MonitorError
from everywhen.capture.socket_access import ProcessUser
from everywhen.capture.survey import DiskSeen, Survey

_JOBS = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: "pull",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: "copy",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: "commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: "commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP: "backup",
}
_HOST_DEVICES = {"pci": "vfio-pci", "mdev": "vfio-mdev", "usb": "usb-host", "scsi": "hostdev-scsi", "scsi_host": "vhost-scsi"}
_PAST_QEMU = {"vhostuser": "vhost-user-blk", "vhostvdpa": "vhost-vdpa"}
"""How QEMU calls what libvirt calls so."""
_QCOW2 = b"QFI\xfb"


def domain_names(host: LibvirtHost) -> list[str]:
    """All domains of the host. Raises MonitorError."""
    return sorted(str(domain.name()) for domain in within(ANSWER_S, host.connection.listAllDomains))


def survey_domain(domain: Domain) -> Survey:
    """Ask libvirt for everything. Raises MonitorError."""
    running = domain.runs
    parsed = domain.parsed(running=running)
    root = ET.fromstring(domain.xml(running=running))  # noqa: S314 - `parsed` has refused what could be expanded
    elements = dict(zip(parsed.disks, root.iterfind("devices/disk"), strict=False))
    seen, left_out, devices = [], [], _host_devices(root)
    for disk, element in elements.items():
        if disk.kind in _PAST_QEMU:
            devices[disk.target] = _PAST_QEMU[disk.kind]
        elif disk.is_written:
            seen.append(_disk(domain, disk, _iothread(root, element), running=running))
        else:
            left_out.append(Drive(disk.target, f"/{disk.target}", disk.device != "disk", disk.source or None, read_only=True))
            devices[disk.target] = f"{disk.device}-cd" if disk.device == "cdrom" else disk.device
    number = int(within(ANSWER_S, domain.host.connection.getVersion))
    version = (number // 1_000_000, number // 1000 % 1000, number % 1000)
    return Survey(version, (), tuple(seen), tuple(left_out), devices, (), ours=False)


def confined_by(domain: Domain) -> list[str]:
    """Security modules that libvirt has put the running domain under: `apparmor`, `selinux`. Raises MonitorError."""
    root = ET.fromstring(domain.xml(running=domain.runs))  # noqa: S314 - libvirt's own, parsed by `survey_domain` before
    labels = [label for label in root.iterfind("seclabel") if label.get("type") != "none"]
    return sorted({str(label.get("model")) for label in labels} & {"apparmor", "selinux"})


def barred_by(domain: Domain, folder: Path) -> tuple[int, Path] | None:
    """Which user the running domain's QEMU is, and the first folder on the way to `folder` that it may not enter.

    None where it may. Raises MonitorError, NoAccess for a user that this host does not know, OSError.
    """
    user = ProcessUser.of_label(domain.parsed(running=True).owner)
    above = [path for path in reversed(folder.absolute().parents) if path.exists()]
    return next(((user.uid, path) for path in above if not user.may(path, 1)), None)


def _disk(domain: Domain, disk: DomainDisk, iothread: bool, *, running: bool) -> DiskSeen:
    size = int(_asked(lambda: domain.domain.blockInfo(disk.target)[0], 0))
    jobs = []
    if running:
        found = _asked(lambda: domain.domain.blockJobInfo(disk.target), {})
        if found:
            jobs.append(Job("of libvirt", _JOBS.get(found.get("type"), "block job"), "running"))
        elif _asked(lambda: domain.domain.jobStats().get("operation"), 0) == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
            jobs.append(Job("of libvirt", "backup", "running"))
    return DiskSeen(
        disk=DiskNode(disk.target, "", size, iothread, f"/{disk.alias}"),
        kind=disk.device,
        drivers=(disk.format or "raw", disk.kind),
        filename=disk.source,
        compat=_compat(disk),
        jobs=tuple(jobs),
        beside=(),
        shared=disk.shareable,
        passed_through=disk.device == "lun",
        transient=disk.transient,
    )


def _asked(call: Callable[[], Any], otherwise: Any) -> Any:  # noqa: ANN401 - libvirt's objects have no types
    """What libvirt says; `otherwise` where it cannot say: of a disk whose server is away, or that is not attached now."""
    try:
        return within(ANSWER_S, call)
    except MonitorError:
        return otherwise


def _compat(disk: DomainDisk) -> str | None:
    """As QEMU calls a qcow2 file's version (QEMU: docs/interop/qcow2.txt, bytes 0 to 7); None where it cannot be read."""
    if disk.format != "qcow2" or not os.path.isfile(disk.source):
        return None
    try:
        with open(disk.source, "rb") as file:
            head = file.read(8)
    except OSError:
        return None
    return {_QCOW2 + b"\0\0\0\2": "0.10", _QCOW2 + b"\0\0\0\3": "1.1"}.get(head)


def _iothread(root: ET.Element, disk: ET.Element) -> bool:
    """Whether an iothread serves the disk, or the SCSI controller it hangs on."""
    if _served(disk):
        return True
    address, target = disk.find("address"), disk.find("target")
    if address is None or target is None or target.get("bus") != "scsi":
        return False
    controllers = root.iterfind("devices/controller[@type='scsi']")
    return any(_served(one) for one in controllers if one.get("index") == address.get("controller", "0"))


def _served(element: ET.Element) -> bool:
    driver = element.find("driver")
    return driver is not None and (driver.get("iothread") is not None or driver.find("iothreads") is not None)


def _host_devices(root: ET.Element) -> dict[str, str]:
    found = {}
    for number, device in enumerate(root.iterfind("devices/hostdev")):
        found[f"hostdev{number}"] = _HOST_DEVICES.get(device.get("type", ""), "vfio-")
    for number, folder in enumerate(root.iterfind("devices/filesystem")):
        driver = folder.find("driver")
        found[f"fs{number}"] = "vhost-user-fs" if driver is not None and driver.get("type") == "virtiofs" else "virtio-9p"
    for number, memory in enumerate(root.iterfind("devices/memory")):
        if memory.get("model") in ("nvdimm", "virtio-pmem"):
            found[f"memory{number}"] = str(memory.get("model"))
    return found
