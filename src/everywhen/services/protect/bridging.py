# SPDX-License-Identifier: AGPL-3.0-or-later
"""What has to be read of a disk when its tap is on: what a bitmap names that has recorded since a point, or all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from everywhen.block.device import BLOCK_SIZE, BlockDevice
from everywhen.capture import bitmaps
from everywhen.capture.nodes import DiskNode
from everywhen.capture.qmp import Monitor
from everywhen.capture.reading import Reader
from everywhen.formats.ids import PointId
from everywhen.repository.intake import Ranges
from everywhen.services.protect.unfinished_copy import DiskCopy, recorded, together


@contextmanager
def unknown_of(
    reader: Reader, node: DiskNode, name: str, points: Mapping[PointId, int], copy: DiskCopy | None
) -> Iterator[tuple[BlockDevice, Ranges | None]]:
    """A disk to be read, and the blocks that are to be looked at: None for all of them.

    `name` is ours for the disk; `points` has the numbers of the VM's points; `copy`: one that goes on.
    """
    since, left = covering(reader.monitor, node, name, points), Ranges()
    if since is None and copy is not None:
        since, left = recorded(reader.monitor, node, name, copy), copy.left
    if since is None:
        with reader.all_of(node) as device:
            yield device, None
    else:
        with reader.changed(node, since) as (device, dirty):
            yield device, together(left, _blocks(dirty))


def expected(monitor: Monitor, node: DiskNode, name: str, points: Mapping[PointId, int]) -> int:
    """About how many bytes of a disk will have to be read when its turn comes: no more than it has. As `unknown_of`."""
    since = covering(monitor, node, name, points)
    return min(since.dirty, node.size) if since is not None else node.size


def to_look_at(device: BlockDevice, ranges: Ranges | None) -> int:
    """Bytes that will be read of a disk."""
    if ranges is not None:
        return sum(end - first for first, end in ranges) * BLOCK_SIZE
    return sum(extent.length for extent in device.extents() if not extent.zero)


def covering(monitor: Monitor, node: DiskNode, name: str, points: Mapping[PointId, int]) -> bitmaps.Recording | None:
    """The bitmap that has recorded every change of the disk since the newest possible one of the VM's points."""
    found = bitmaps.recordings(monitor, node.node)
    usable = [one for one in found if one.disk == name and one.point in points]
    return max(usable, key=lambda one: points[one.point], default=None)


def _blocks(dirty: list[tuple[int, int]]) -> Ranges:
    """Byte ranges as ranges of blocks, sorted and disjoint."""
    return together((start // BLOCK_SIZE, -(-end // BLOCK_SIZE)) for start, end in dirty)
