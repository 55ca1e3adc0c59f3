# SPDX-License-Identifier: AGPL-3.0-or-later
"""The disks of a running domain, on the nodes where QEMU has them now, by the names that libvirt's user knows (`vda`).

A node is found by its device's alias. libvirt's node names count backwards over the disks there were at the start, and QEMU's
devices are numbered in the order of their coming: neither would stay with a disk.
"""

from __future__ import annotations

from dataclasses import replace

from everywhen.capture.domain_xml import DomainXml
from everywhen.capture.nodes import DiskNode, NoDisks, find_disks
from everywhen.capture.qmp import Monitor


class CannotCapture(Exception):
    """A disk of the VM has writes that cannot be seen from QEMU. Says which, and why."""


def find_domain_disks(monitor: Monitor, domain: DomainXml) -> list[DiskNode]:
    """All disks that belong into a recovery point; `domain`: as it runs now.

    One that was attached past libvirt keeps its device's name. Raises CannotCapture, NoDisks, MonitorError, CommandFailed.
    """
    wanted = [disk for disk in domain.disks if disk.is_written]
    for unseen in (disk for disk in wanted if disk.why_not):
        raise CannotCapture(f"{unseen.target}: {unseen.why_not}")
    known = {disk.alias: disk for disk in domain.disks if disk.alias}
    found = []
    for node in find_disks(monitor):
        disk = known.get(node.device)
        if disk is None:
            found.append(node)
        elif disk.is_written:
            found.append(replace(node, device=disk.target))
    missing = {disk.target for disk in wanted} - {node.device for node in found}
    if missing:
        raise NoDisks(f"QEMU does not show {', '.join(sorted(missing))}, which libvirt says the VM has")
    if not found:
        raise NoDisks("there is no disk that can be written to")
    return found
