# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk that is under its tap, to be read: all of it, or what a bitmap of ours names (docs/capture.md).

It is exported over NBD. Where an iothread serves it that must never be (K1): its image is read beside QEMU, and its bitmap is
merged to a stand-in, an empty node of the same size that no iothread has to do with, which is exported in the disk's place.
A disk that can be read neither way is pushed by its tap. Why so: docs/decisions/0004-disks-with-an-iothread.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from everywhen.capture import bitmaps
from everywhen.capture.export import DangerousExport, ExportedDisk, Pace, exported
from everywhen.capture.image_beside import ImageBeside, open_beside, path_beside
from everywhen.capture.nodes import OURS, DiskNode
from everywhen.capture.qmp import Monitor

STAND_IN = f"{OURS}stand-in"

Dirty = list[tuple[int, int]]
"""Sorted, disjoint (start, end) in bytes."""


@dataclass(frozen=True, slots=True)
class Reader:
    """By what disks are read: the monitor, where QEMU may open a socket, and how fast."""

    monitor: Monitor
    export_path: Path
    pace: Pace

    def can_read(self, disk: DiskNode) -> bool:
        """Whether it can be read, so that it need not be pushed. Raises MonitorError, CommandFailed."""
        return not disk.iothread or path_beside(self.monitor, disk) is not None

    @contextmanager
    def all_of(self, disk: DiskNode) -> Iterator[ExportedDisk | ImageBeside]:
        """The disk while the body runs. Raises DangerousExport, CannotExport, DeviceError, MonitorError, CommandFailed."""
        if disk.iothread:
            with closing(self._beside(disk)) as device:
                yield device
        else:
            with self._exported(disk, None) as exported_disk:
                yield exported_disk

    @contextmanager
    def changed(self, disk: DiskNode, since: bitmaps.Recording) -> Iterator[tuple[ExportedDisk | ImageBeside, Dirty]]:
        """The disk, and what of it has changed since this bitmap was begun. Raises as `all_of`."""
        if not disk.iothread:
            with self._frozen(disk, since, disk.node), self._exported(disk, bitmaps.FROZEN) as exported_disk:
                yield exported_disk, exported_disk.dirty(bitmaps.FROZEN)
            return
        self.monitor.execute("blockdev-add", {"driver": "null-co", "node-name": STAND_IN, "size": disk.size})
        try:
            stand_in = replace(disk, node=STAND_IN, iothread=False)
            with self._frozen(disk, since, STAND_IN), self._exported(stand_in, bitmaps.FROZEN) as empty:
                dirty = empty.dirty(bitmaps.FROZEN)
        finally:
            self.monitor.execute("blockdev-del", {"node-name": STAND_IN})
        with closing(self._beside(disk)) as device:
            yield device, dirty

    def _beside(self, disk: DiskNode) -> ImageBeside:
        path = path_beside(self.monitor, disk)
        if path is None:
            raise DangerousExport(f"{disk.device} has an iothread, and its image cannot be read beside QEMU any more")
        return open_beside(path, disk, self.pace)

    def _exported(self, disk: DiskNode, bitmap: str | None) -> AbstractContextManager[ExportedDisk]:
        return exported(self.monitor, disk, str(self.export_path), self.pace, bitmap)

    @contextmanager
    def _frozen(self, disk: DiskNode, since: bitmaps.Recording, on: str) -> Iterator[None]:
        bitmaps.freeze(self.monitor, disk.node, since, on)
        try:
            yield
        finally:
            bitmaps.remove(self.monitor, on, bitmaps.FROZEN)
