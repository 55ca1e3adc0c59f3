# SPDX-License-Identifier: AGPL-3.0-or-later
"""The disks of a running domain, on the nodes where QEMU has them now, by the names that libvirt's user knows (`vda`).

A node is found by its device's alias. libvirt's node names count backwards over the disks there were at the start, and QEMU's
devices are numbered in the order of their coming: neither would stay with a disk.
"""

from __future__ import annotations

from dataclasses import replace

from everywhen.capture.answers import Drive
from everywhen.capture.domain_xml import DomainDisk, DomainXml
from everywhen.capture.nodes import DiskNode, NoDisks, find_disks
from everywhen.capture.qmp import Monitor
from everywhen.capture.stored_disk import StoredDisk
from everywhen.capture.survey import DiskSeen, Survey


def find_domain_disks(monitor: Monitor, domain: DomainXml) -> list[DiskNode]:
    """All disks that the guest can write to; `domain`: as it runs now.

    One that was attached past libvirt keeps its device's name. Raises NoDisks, MonitorError, CommandFailed.
    """
    known = _by_alias(domain)
    found = []
    for node in find_disks(monitor):
        disk = known.get(node.device)
        if disk is None or disk.is_written:
            found.append(_named(node, disk))
    _check(domain, {node.device for node in found})
    return found


def survey_by_target(told: Survey, domain: DomainXml) -> Survey:
    """What the monitor told, by libvirt's names and with what only libvirt knows; `domain`: as it runs now.

    The firmware's variables are among the domain's files (`domain_files`). Raises NoDisks.
    """
    known, seen, left_out = _by_alias(domain), [], list(told.left_out)
    names = {alias: disk.target for alias, disk in known.items()}
    for one in told.disks:
        disk = known.get(one.disk.device)
        if disk is not None and not disk.is_written:
            left_out.append(Drive(disk.target, f"/{disk.target}", disk.device != "disk", one.disk.node, read_only=True))
        else:
            seen.append(_seen(one, disk, names))
    devices = {names.get(name, name): kind for name, kind in told.devices.items()}
    _check(domain, {one.disk.device for one in seen} | devices.keys())
    return replace(told, disks=tuple(seen), left_out=tuple(left_out), devices=devices, flash=())


def stored_disks(domain: DomainXml) -> dict[str, StoredDisk]:
    """The images of a domain that is off; `domain`: as it will be started next."""
    return {disk.target: StoredDisk(disk.source, disk.format, _why_not(disk)) for disk in domain.disks if disk.is_written}


def _why_not(disk: DomainDisk) -> str:
    if disk.shareable:
        return "it may be written to by other VMs"
    if disk.kind not in ("file", "block") or not disk.source:
        return f"it is no file or device of this host (type {disk.kind})"
    return ""


def _by_alias(domain: DomainXml) -> dict[str, DomainDisk]:
    return {disk.alias: disk for disk in domain.disks if disk.alias}


def _named(node: DiskNode, disk: DomainDisk | None) -> DiskNode:
    return node if disk is None else replace(node, device=disk.target)


def _seen(seen: DiskSeen, disk: DomainDisk | None, names: dict[str, str]) -> DiskSeen:
    seen = replace(seen, disk=_named(seen.disk, disk), beside=tuple(names.get(name, name) for name in seen.beside))
    if disk is None:
        return seen
    return replace(
        seen,
        shared=seen.shared or disk.shareable,
        passed_through=seen.passed_through or disk.device == "lun",
        transient=disk.transient,
    )


def _check(domain: DomainXml, found: set[str]) -> None:
    """Raises NoDisks for what QEMU does not have although libvirt says so."""
    missing = {disk.target for disk in domain.disks if disk.is_written and not disk.is_past_qemu} - found
    if missing:
        raise NoDisks(f"QEMU does not show {', '.join(sorted(missing))}, which libvirt says the VM has")
    if not found:
        raise NoDisks("there is no disk that can be written to")
