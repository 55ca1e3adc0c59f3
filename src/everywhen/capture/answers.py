# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a hypervisor's monitor answers, as values: the one place where its JSON is taken apart (QEMU: qapi/block-core.json).

Whatever is missing or of another type is a MonitorError that names the command and the field. Fields that only some versions
or drivers have are optional; nothing else is believed to be there because it always was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from everywhen.capture.qmp import Monitor, MonitorError
from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, flag, mapping, objects, optional_text, text, texts, whole


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A dirty bitmap. `recording`: it can be trusted, and goes on; `count`: bytes that are dirty, by `granularity`."""

    name: str
    recording: bool
    granularity: int
    count: int

    @property
    def is_of_job(self) -> bool:
        """Whether it belongs to a job of QEMU's: such have no name."""
        return not self.name


@dataclass(frozen=True, slots=True)
class BlockNode:
    """A node of QEMU's block layer: its driver, bytes, the file it shows, and the `compat` of a qcow2 file."""

    name: str
    driver: str
    size: int
    filename: str
    compat: str | None
    bitmaps: tuple[Bitmap, ...]


@dataclass(frozen=True, slots=True)
class Drive:
    """A place for a medium that a guest has. `path`: of its device, empty for what no guest sees; `node`: the topmost one."""

    device: str
    path: str
    removable: bool
    node: str | None
    read_only: bool


@dataclass(frozen=True, slots=True)
class Job:
    """A block job: its id, what it does, its state, and how many bytes it has dealt with."""

    name: str
    kind: str
    status: str
    done: int = 0


@dataclass(frozen=True, slots=True)
class BlockExport:
    """What is offered to others: its id, how, and which node."""

    name: str
    kind: str
    node: str


@dataclass(frozen=True, slots=True)
class Migration:
    """A guest on its way out of a QEMU: how far it is, `none` where there never was one, and how many milliseconds that took.

    QEMU counts what it writes into a snapshot as one, too, and says that it took no time. `figures`: all that it says of it.
    """

    status: str
    took_ms: int
    figures: str


@dataclass(frozen=True, slots=True)
class Graph:
    """How nodes and jobs hang together; ids are QEMU's and good for one answer only."""

    nodes: dict[str, int]
    jobs: dict[str, int]
    edges: tuple[tuple[int, int, str], ...]
    """(parent, child, the child's role)"""
    written: frozenset[int] = frozenset()
    """Nodes that a device, or a writable export, may write to."""

    def child(self, node: str) -> str | None:
        """The node below `node` that has its content: a format's file, or a filter's disk."""
        names = {number: name for name, number in self.nodes.items()}
        below = {role: names[c] for p, c, role in self.edges if p == self.nodes.get(node) and c in names}
        return below.get("file") or below.get("backing")

    def chain(self, node: str) -> list[str]:
        """`node`, and the nodes that have its content, one below the other. Raises MonitorError for a circle."""
        found: list[str] = []
        below: str | None = node
        while below is not None:
            if below in found:
                raise MonitorError(
                    f"the monitor answers x-debug-query-block-graph otherwise than QEMU does: {node} has a circle"
                )
            found.append(below)
            below = self.child(below)
        return found

    def below(self, node: str) -> list[str]:
        """`node` and all that it stands on, backing files too, each before what it stands on."""
        names = {number: name for name, number in self.nodes.items()}
        found = [node] if node in self.nodes else []
        for name in found:  # it grows meanwhile
            found += [names[c] for p, c, _ in self.edges if p == self.nodes[name] and c in names and names[c] not in found]
        return found

    def jobs_on(self, node: str) -> list[str]:
        """The jobs that hold `node` or what lies below it, backing files too."""
        held, waiting = set[int](), [self.nodes[node]] if node in self.nodes else []
        while waiting:
            number = waiting.pop()
            if number not in held:
                held.add(number)
                waiting += [c for p, c, role in self.edges if p == number and role in ("file", "backing")]
        return [job for job, number in self.jobs.items() if any(p == number and c in held for p, c, _ in self.edges)]


def block_nodes(monitor: Monitor) -> dict[str, BlockNode]:
    """All nodes by name. Raises MonitorError, CommandFailed."""
    with _reading("query-named-block-nodes"):
        return {node.name: node for node in map(_node, _list(monitor.execute("query-named-block-nodes", {"flat": True})))}


def drives(monitor: Monitor) -> list[Drive]:
    """What the guest's devices have, in the hypervisor's order. Raises MonitorError, CommandFailed."""
    with _reading("query-block"):
        return [_drive(entry) for entry in _list(monitor.execute("query-block"))]


def jobs(monitor: Monitor) -> list[Job]:
    """All block jobs. Raises MonitorError, CommandFailed."""
    with _reading("query-block-jobs"):
        entries = _list(monitor.execute("query-block-jobs"))
        return [
            Job(text(entry, "device"), text(entry, "type", ""), text(entry, "status", ""), whole(entry, "offset", 0))
            for entry in entries
        ]


def block_exports(monitor: Monitor) -> list[BlockExport]:
    """All exports. Raises MonitorError, CommandFailed."""
    with _reading("query-block-exports"):
        entries = _list(monitor.execute("query-block-exports"))
        return [BlockExport(text(entry, "id"), text(entry, "type", ""), text(entry, "node-name")) for entry in entries]


def graph(monitor: Monitor) -> Graph:
    """How all nodes hang together. Raises MonitorError, CommandFailed."""
    with _reading("x-debug-query-block-graph"):
        answer = _object(monitor.execute("x-debug-query-block-graph"))
        named: dict[str, dict[str, int]] = {"block-driver": {}, "block-job": {}}
        users = set()
        for entry in objects(answer, "nodes"):
            named.get(text(entry, "type"), {})[text(entry, "name")] = whole(entry, "id")
            if entry["type"] == "block-backend":
                users.add(whole(entry, "id"))
        edges = [(whole(e, "parent"), whole(e, "child"), text(e, "name"), texts(e, "perm")) for e in objects(answer, "edges")]
        written = frozenset(child for parent, child, _, may in edges if parent in users and "write" in may)
        return Graph(named["block-driver"], named["block-job"], tuple(edge[:3] for edge in edges), written)


def qom_children(monitor: Monitor, path: str) -> dict[str, str]:
    """The kinds of the objects below a path of the object tree, by name. Raises MonitorError, CommandFailed."""
    with _reading("qom-list"):
        entries = [(text(e, "name"), text(e, "type")) for e in _list(monitor.execute("qom-list", {"path": path}))]
        return {name: kind[len("child<") : -1] for name, kind in entries if kind.startswith("child<")}


def qom_property(monitor: Monitor, path: str, name: str) -> object:
    """A property of an object, of whatever type. Raises MonitorError, CommandFailed (there is none, or no such object)."""
    value: object = monitor.execute("qom-get", {"path": path, "property": name})
    return value


def version(monitor: Monitor) -> tuple[int, int, int]:
    """QEMU's. Raises MonitorError, CommandFailed."""
    with _reading("query-version"):
        qemu = mapping(_object(monitor.execute("query-version")), "qemu")
        return whole(qemu, "major"), whole(qemu, "minor"), whole(qemu, "micro")


def run_state(monitor: Monitor) -> str:
    """What the guest does: `running`, `paused`, `inmigrate`, `postmigrate`, … Raises MonitorError, CommandFailed."""
    with _reading("query-status"):
        return text(_object(monitor.execute("query-status")), "status")


def migration(monitor: Monitor) -> Migration:
    """The newest one of the guest out of this QEMU. Raises MonitorError, CommandFailed."""
    with _reading("query-migrate"):
        found = _object(monitor.execute("query-migrate"))
        # Of one into this QEMU nothing but the status is told.
        status = text(found, "status", "none") if "ram" in found else "none"
        return Migration(status, whole(found, "total-time", 0), json.dumps(found, sort_keys=True))


def commands(monitor: Monitor) -> set[str]:
    """What this monitor can be asked. Raises MonitorError, CommandFailed."""
    with _reading("query-commands"):
        return {text(entry, "name") for entry in _list(monitor.execute("query-commands"))}


def _node(entry: Json) -> BlockNode:
    image = mapping(entry, "image")
    bitmaps = tuple(
        Bitmap(
            text(one, "name", ""),
            flag(one, "recording") and not flag(one, "inconsistent", False),
            whole(one, "granularity"),
            whole(one, "count"),
        )
        for one in objects(entry, "dirty-bitmaps")
    )
    compat = optional_text(mapping(mapping(image, "format-specific"), "data"), "compat")
    name, driver = text(entry, "node-name"), text(entry, "drv")
    return BlockNode(name, driver, whole(image, "virtual-size"), text(image, "filename", ""), compat, bitmaps)


def _drive(entry: Json) -> Drive:
    inserted = entry.get("inserted")
    device, path, removable = text(entry, "device", ""), optional_text(entry, "qdev") or "", flag(entry, "removable", False)
    if inserted is None:
        return Drive(device, path, removable, None, read_only=False)
    medium = _object(inserted)
    return Drive(device, path, removable, text(medium, "node-name"), flag(medium, "ro"))


def _object(value: Any) -> Json:  # noqa: ANN401 - JSON
    if not isinstance(value, dict):
        raise Corrupt("no object")
    return value


def _list(value: Any) -> list[Json]:  # noqa: ANN401 - JSON
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Corrupt("no list of objects")
    return value


@contextmanager
def _reading(command: str) -> Iterator[None]:
    try:
        yield
    except Corrupt as error:
        raise MonitorError(f"the monitor answers {command} otherwise than QEMU does: {error}") from error
