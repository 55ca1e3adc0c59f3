# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which disks a QEMU or qemu-storage-daemon has, and on which block node each is: asked anew each time, never stored.

Node names change with hot-plug, snapshots and restarts. Whatever we add is named `everywhen-…`.
"""

from __future__ import annotations

from dataclasses import dataclass

from everywhen.capture import answers
from everywhen.capture.answers import BlockNode, Drive
from everywhen.capture.qmp import CommandFailed, Monitor, MonitorError

OURS = "everywhen-"


@dataclass(frozen=True, slots=True)
class DiskNode:
    """A disk: how the hypervisor calls it, its topmost node that is not ours, bytes, and whether an iothread serves it.

    A disk with an iothread must never be exported: QEMU 7.2 aborts when a client disconnects (K1). `path`: the device's
    in QEMU's object tree; a storage daemon has none.
    """

    device: str
    node: str
    size: int
    iothread: bool
    path: str = ""


class NoDisks(Exception):
    """The monitor answers, and there is nothing to capture."""


def find_disks(monitor: Monitor) -> list[DiskNode]:
    """All disks that can be written to, in the hypervisor's order. Raises MonitorError, CommandFailed, NoDisks."""
    nodes = answers.block_nodes(monitor)
    # A storage daemon has no devices: there, what it exports is what a guest sees.
    disks = [disk for drive in answers.drives(monitor) if (disk := _of_guest(monitor, drive, nodes)) is not None]
    disks = disks or _exported(monitor, nodes)
    if not disks:
        raise NoDisks("there is no disk that can be written to")
    return disks


def _of_guest(monitor: Monitor, drive: Drive, nodes: dict[str, BlockNode]) -> DiskNode | None:
    """A device of a virtual machine; None for an empty drive, a read-only medium, flash memory and what no guest sees."""
    if drive.node is None or drive.read_only or not drive.path or is_flash(monitor, drive):
        return None
    path = device_path(drive)
    node = _below_ours(monitor, drive.node)
    return DiskNode(path.rsplit("/", 1)[-1], node, _size(nodes, node), _iothread(monitor, path), path)


def detached(monitor: Monitor, disk: DiskNode) -> bool:
    """Whether QEMU has told by now that the disk's device was removed. Raises MonitorError."""
    if not disk.path:
        return False
    event = monitor.next_event(0, lambda event: event.name == "DEVICE_DELETED" and event.data.get("path") == disk.path)
    return event is not None


def device_path(drive: Drive) -> str:
    """Where the drive's device is in QEMU's object tree. A SCSI or IDE device is told by its id alone."""
    path = drive.path.removesuffix("/virtio-backend")
    return path if path.startswith("/") else f"/machine/peripheral/{path}"


def is_flash(monitor: Monitor, drive: Drive) -> bool:
    """Whether it is the firmware's memory: UEFI's code and variables, no disk. Raises MonitorError."""
    try:
        return str(answers.qom_property(monitor, device_path(drive), "type")).startswith("cfi.pflash")
    except CommandFailed:
        return False


def _exported(monitor: Monitor, nodes: dict[str, BlockNode]) -> list[DiskNode]:
    """What a storage daemon exports for writing. Which of its iothreads serves what it does not tell: where it has any, all are
    suspect."""
    found = []
    iothread, graph = _daemon_has_iothreads(monitor), answers.graph(monitor)
    for export in answers.block_exports(monitor):
        if not export.name.startswith(OURS) and graph.nodes.get(export.node) in graph.written:
            node = _below_ours(monitor, export.node)
            found.append(DiskNode(export.name, node, _size(nodes, node), iothread))
    return found


def _daemon_has_iothreads(monitor: Monitor) -> bool:
    try:
        return "iothread" in answers.qom_children(monitor, "/objects").values()
    except CommandFailed:
        return False  # it was given no object of any kind


def _size(nodes: dict[str, BlockNode], node: str) -> int:
    if node not in nodes:
        raise MonitorError(f"the monitor tells of a disk on node {node}, and knows no such node")
    return nodes[node].size


def _below_ours(monitor: Monitor, node: str) -> str:
    """The first node from `node` downwards that is not a filter of ours, left there by a run that was killed."""
    if not node.startswith(OURS):
        return node
    below = next((name for name in answers.graph(monitor).chain(node) if not name.startswith(OURS)), None)
    if below is None:
        raise MonitorError(f"the monitor tells of a disk on {node}, and of nothing below it")
    return below


def _iothread(monitor: Monitor, device: str) -> bool:
    """Whether an iothread serves the device or the controller it hangs on."""
    return _has_iothread(monitor, device) or _has_iothread(monitor, device.rsplit("/", 1)[0]) or _of_bus(monitor, device)


def _of_bus(monitor: Monitor, device: str) -> bool:
    try:
        bus = answers.qom_property(monitor, device, "parent_bus")
    except CommandFailed:
        return False
    if not isinstance(bus, str):
        raise MonitorError(f"the monitor answers qom-get otherwise than QEMU does: the bus of {device} is no path")
    return _has_iothread(monitor, bus.rsplit("/", 1)[0])


def _has_iothread(monitor: Monitor, device: str) -> bool:
    """One iothread, or (QEMU 9) several of them for its queues."""
    for name in ("iothread", "iothread-vq-mapping"):
        try:
            if answers.qom_property(monitor, device, name):
                return True
        except CommandFailed:
            continue  # this kind of device has none
    return False
