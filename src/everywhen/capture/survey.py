# SPDX-License-Identifier: AGPL-3.0-or-later
"""All that a hypervisor tells about its disks and what is on them, also about those that cannot be captured.

It only asks: no command here changes anything (docs/capture.md). What follows from it is judged in the services.
"""

from __future__ import annotations

from dataclasses import dataclass

from everywhen.capture import answers
from everywhen.capture.answers import BlockExport, BlockNode, Drive, Graph, Job
from everywhen.capture.nodes import OURS, DiskNode, NoDisks, device_path, find_disks, is_flash
from everywhen.capture.qmp import CommandFailed, Monitor

NEEDED = (
    *("blockdev-add", "blockdev-del", "blockdev-mirror", "block-job-cancel"),
    *("block-export-add", "block-export-del", "nbd-server-start", "nbd-server-stop"),
    *("transaction", "block-dirty-bitmap-add", "block-dirty-bitmap-merge", "block-dirty-bitmap-remove"),
    *("query-block", "query-block-exports", "query-block-jobs", "query-named-block-nodes", "x-debug-query-block-graph"),
    *("qom-get", "qom-list"),
)
"""Commands without which nothing is captured."""


@dataclass(frozen=True, slots=True)
class DiskSeen:
    """A disk that can be written to.

    `kind`: of its device (`virtio-blk-pci`), empty in a storage daemon; `drivers`: of its nodes, the topmost first;
    `compat`: of a qcow2 file; `jobs`: others' block jobs on it; `beside`: other devices that have the same node;
    `shared`: others may write to it, too; `passed_through`: the guest's commands go past QEMU's block layer;
    `transient`: what is written to it is thrown away when the guest ends; `nodes`: all that it stands on, backing files too.
    """

    disk: DiskNode
    kind: str
    drivers: tuple[str, ...]
    filename: str
    compat: str | None
    jobs: tuple[Job, ...]
    beside: tuple[str, ...]
    shared: bool
    passed_through: bool
    transient: bool = False
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Survey:
    """`missing`: commands that this monitor does not have; `left_out`: drives that a guest has and that hold nothing to
    capture; `devices`: kinds of all devices by name; `exports`: others'; `ours`: a capture that runs, or was killed;
    `flash`: memory of the firmware that a guest can write to (UEFI's variables)."""

    version: tuple[int, int, int]
    missing: tuple[str, ...]
    disks: tuple[DiskSeen, ...]
    left_out: tuple[Drive, ...]
    devices: dict[str, str]
    exports: tuple[BlockExport, ...]
    ours: bool
    flash: tuple[Drive, ...] = ()


def survey(monitor: Monitor) -> Survey:
    """Ask for everything. Raises MonitorError, CommandFailed."""
    try:
        found = find_disks(monitor)
    except NoDisks:
        found = []
    drives = [drive for drive in answers.drives(monitor) if drive.path]
    empty = [drive for drive in drives if drive.node is None or drive.read_only]
    jobs, known = answers.jobs(monitor), answers.commands(monitor)
    nodes, graph = answers.block_nodes(monitor), answers.graph(monitor)
    return Survey(
        version=answers.version(monitor),
        missing=tuple(name for name in NEEDED if name not in known),
        disks=tuple(_disk(monitor, disk, found, jobs, nodes, graph) for disk in found),
        left_out=tuple(empty),
        devices=_devices(monitor),
        exports=tuple(export for export in answers.block_exports(monitor) if not export.name.startswith(OURS)),
        ours=any(job.name.startswith(OURS) for job in jobs),
        flash=tuple(drive for drive in drives if drive not in empty and is_flash(monitor, drive)),
    )


def name_of(drive: Drive) -> str:
    """How a drive's device is called."""
    return device_path(drive).rsplit("/", 1)[-1]


def _disk(
    monitor: Monitor, disk: DiskNode, all_disks: list[DiskNode], jobs: list[Job], nodes: dict[str, BlockNode], graph: Graph
) -> DiskSeen:
    chain = [nodes[name] for name in graph.chain(disk.node) if name in nodes]
    holding = graph.jobs_on(disk.node)
    kind = _property(monitor, disk, "type")
    return DiskSeen(
        disk=disk,
        kind=kind if isinstance(kind, str) else "",
        drivers=tuple(node.driver for node in chain),
        filename=chain[-1].filename if chain else "",
        compat=next((node.compat for node in chain if node.compat), None),
        jobs=tuple(job for job in jobs if job.name in holding and not job.name.startswith(OURS)),
        beside=tuple(other.device for other in all_disks if other.node == disk.node and other is not disk),
        shared=_property(monitor, disk, "share-rw") is True,
        passed_through=kind in ("scsi-block", "scsi-generic") or _property(monitor, disk, "scsi") is True,
        nodes=tuple(graph.below(disk.node)),
    )


def _property(monitor: Monitor, disk: DiskNode, name: str) -> object:
    """A property of the disk's device; None where it has no such."""
    if not disk.path:
        return None
    try:
        return answers.qom_property(monitor, disk.path, name)
    except CommandFailed:
        return None


def _devices(monitor: Monitor) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in ("/machine/peripheral", "/machine/peripheral-anon"):
        try:
            found |= answers.qom_children(monitor, path)
        except CommandFailed:
            continue  # a storage daemon has no machine
    return found
