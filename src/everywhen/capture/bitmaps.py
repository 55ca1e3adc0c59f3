# SPDX-License-Identifier: AGPL-3.0-or-later
"""Our dirty bitmaps: on each disk's node one that records always, so that a gap's changes are known (docs/capture.md).

`everywhen-p-…-DISK` records everything on that disk since the recovery point of that id: it was begun just before the instant
that the point shows. Whether it can be used is seen from its name: by whoever knows that point and that disk, nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from everywhen.capture import answers
from everywhen.capture.nodes import OURS
from everywhen.capture.qmp import Monitor
from everywhen.formats.fields import Json
from everywhen.formats.ids import PointId, is_point_id

GRANULARITY = 65536
"""Bytes a bit stands for: a block, which is what is compared and stored."""
FROZEN = f"{OURS}frozen"
GUARD = f"{OURS}guard"
AFTER = f"{OURS}after-"
"""How notes begin (`note`)."""
_SET_BACK = ("qcow2", "rbd")
"""Drivers of nodes that QEMU can set back to a snapshot (QEMU 7.2: those with bdrv_snapshot_goto)."""
_POINT = len("p-") + 12


class Recording(NamedTuple):
    """A bitmap that can be used: what it is called, since when it records changes of which disk, and bytes of them by now."""

    name: str
    point: PointId
    disk: str
    dirty: int


def recordings(monitor: Monitor, node: str) -> list[Recording]:
    """Our recording bitmaps on a node."""
    found = []
    there = answers.block_nodes(monitor).get(node)
    for bitmap in there.bitmaps if there else ():
        word = bitmap.name.removeprefix(OURS)
        point, disk = word[:_POINT], word[_POINT + 1 :]
        if bitmap.name.startswith(OURS) and is_point_id(point) and bitmap.recording:
            found.append(Recording(bitmap.name, PointId(point), disk, bitmap.count))
    return found


def guard(monitor: Monitor, node: str) -> None:
    """Have QEMU refuse to set back to a snapshot what lies below a disk's node, as it refuses where a bitmap is.

    A revert passes by bitmaps, so where the disk's node is a filter the ones there would miss it, and the next point would be
    wrong (QEMU, block/snapshot.c: bdrv_snapshot_goto refuses "active dirty bitmaps" on the very node alone).
    """
    nodes = answers.block_nodes(monitor)
    below = [nodes[name] for name in answers.graph(monitor).chain(node)[1:] if name in nodes]
    bare = [one.name for one in below if one.driver in _SET_BACK and GUARD not in [bitmap.name for bitmap in one.bitmaps]]
    _transaction(monitor, [_add(name, GUARD, disabled=True) for name in bare])


def note(monitor: Monitor, nodes: Iterable[str], name: str) -> None:
    """Leave a word with QEMU, for as long as it runs, in the name of a bitmap that records nothing."""
    _transaction(monitor, [_add(node, name, disabled=True) for node in nodes])


def noted(monitor: Monitor, name: str) -> bool:
    """Whether this word was left with it."""
    return any(one.name == name for node in answers.block_nodes(monitor).values() for one in node.bitmaps)


def begin(monitor: Monitor, disks: Mapping[str, str], point: PointId) -> None:
    """Record from now on, from the same instant, for a point that is about to be made; `disks`: names of disks by node.

    This drains: every write that is not in these bitmaps has been answered by the sink when it returns.
    """
    _transaction(monitor, [_add(node, name) for node, name in begun(disks, point).items()])


def begun(disks: Mapping[str, str], point: PointId) -> dict[str, str]:
    """Names of the bitmaps that `begin` makes, by node."""
    return {node: f"{OURS}{point}-{disk}" for node, disk in disks.items()}


def freeze(monitor: Monitor, node: str, recording: Recording, on: str | None = None) -> None:
    """Copy what was recorded into a bitmap that stands still and can be read; the other one goes on recording.

    `on`: another node of the same size, to which it is copied.
    """
    on = on or node
    merge = {"node": on, "target": FROZEN, "bitmaps": [{"node": node, "name": recording.name}]}
    _transaction(monitor, [_add(on, FROZEN, disabled=True), {"type": "block-dirty-bitmap-merge", "data": merge}])


def remove(monitor: Monitor, node: str, *names: str) -> None:
    """Take bitmaps of ours off a node."""
    _transaction(monitor, [{"type": "block-dirty-bitmap-remove", "data": {"node": node, "name": name}} for name in names])


def _add(node: str, name: str, *, disabled: bool = False) -> Json:
    data = {"node": node, "name": name, "granularity": GRANULARITY, "disabled": disabled}
    return {"type": "block-dirty-bitmap-add", "data": data}


def _transaction(monitor: Monitor, actions: list[Json]) -> None:
    if actions:
        monitor.execute("transaction", {"actions": actions})
