# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which disks a QEMU or qemu-storage-daemon has, and on which block node each is: asked anew each time, never stored.

Node names change with hot-plug, snapshots and restarts. Whatever we add is named `everywhen-…`.
"""

from __future__ import annotations

from dataclasses import dataclass

from everywhen.capture.qmp import CommandFailed, Monitor
from everywhen.formats.fields import Json

OURS = "everywhen-"


@dataclass(frozen=True, slots=True)
class DiskNode:
    """A disk: how the hypervisor calls it, its topmost node that is not ours, bytes, and whether an iothread serves it.

    A disk with an iothread must never be exported: QEMU 7.2 aborts when a client disconnects (K1).
    """

    device: str
    node: str
    size: int
    iothread: bool


class NoDisks(Exception):
    """The monitor answers, and there is nothing to capture."""


def find_disks(monitor: Monitor) -> list[DiskNode]:
    """All disks that can be written to, in the hypervisor's order. Raises MonitorError, CommandFailed, NoDisks."""
    nodes = {node["node-name"]: node for node in monitor.execute("query-named-block-nodes", {"flat": True})}
    # A storage daemon has no devices: there, what it exports is what a guest sees.
    disks = [disk for block in monitor.execute("query-block") if (disk := _of_guest(monitor, block, nodes)) is not None]
    disks = disks or _exported(monitor, nodes)
    if not disks:
        raise NoDisks("there is no disk that can be written to")
    return disks


def _of_guest(monitor: Monitor, block: Json, nodes: dict[str, Json]) -> DiskNode | None:
    """A device of a virtual machine; None for an empty drive, a read-only medium and what no guest sees."""
    inserted, path = block.get("inserted"), str(block.get("qdev") or "")
    if not inserted or inserted.get("ro") or not path:
        return None
    device = path.removesuffix("/virtio-backend")
    node = _below_ours(monitor, str(inserted["node-name"]))
    size = int(nodes[node]["image"]["virtual-size"])
    return DiskNode(device.rsplit("/", 1)[-1], node, size, _iothread(monitor, device))


def _exported(monitor: Monitor, nodes: dict[str, Json]) -> list[DiskNode]:
    """What a storage daemon exports writable."""
    found = []
    for export in monitor.execute("query-block-exports"):
        if not str(export["id"]).startswith(OURS):
            node = _below_ours(monitor, str(export["node-name"]))
            found.append(DiskNode(str(export["id"]), node, int(nodes[node]["image"]["virtual-size"]), iothread=False))
    return found


def _below_ours(monitor: Monitor, node: str) -> str:
    """The first node from `node` downwards that is not a filter of ours, left there by a run that was killed."""
    while node.startswith(OURS):
        graph = monitor.execute("x-debug-query-block-graph")
        numbers = {str(entry["name"]): int(entry["id"]) for entry in graph["nodes"]}
        names = {number: name for name, number in numbers.items()}
        edges = (
            edge for edge in graph["edges"] if int(edge["parent"]) == numbers[node] and edge["name"] in ("file", "backing")
        )
        node = names[int(next(edges)["child"])]
    return node


def _iothread(monitor: Monitor, device: str) -> bool:
    """Whether an iothread serves the device or the controller it hangs on."""
    for path in (device, device.rsplit("/", 1)[0]):
        try:
            if monitor.execute("qom-get", {"path": path, "property": "iothread"}):
                return True
        except CommandFailed:
            continue  # this kind of device has none
    try:
        bus = str(monitor.execute("qom-get", {"path": device, "property": "parent_bus"}))
        controller = bus.rsplit("/", 1)[0]
        return bool(monitor.execute("qom-get", {"path": controller, "property": "iothread"}))
    except CommandFailed:
        return False
