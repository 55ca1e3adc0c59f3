# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reading a disk beside its tap: a read-only export of the node, as a block device, at a set pace.

Never of a disk that an iothread serves (K1: QEMU 7.2 aborts when the client disconnects). One NBD server per QEMU: ours runs
only while we read. Unlimited reading cost a guest 66 ms at p99, 50 MB/s 1.1 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from everywhen.block.device import DeviceError, Extent
from everywhen.capture.nbd_server import connect, nbd_server, withdraw
from everywhen.capture.nodes import DiskNode
from everywhen.capture.qmp import CommandFailed, Monitor
from everywhen.nbd.connection import NbdConnection, NbdError

_ALLOCATION = "base:allocation"
_ZERO = 2
"""Flag of base:allocation: the extent reads as zeroes (NBD, proto.md)."""
_DIRTY = 1
"""Flag of qemu:dirty-bitmap (QEMU, docs/interop/nbd.txt)."""
_ANSWER_S = 30.0


class DangerousExport(Exception):
    """Exporting this disk may kill its guest."""


class CannotExport(Exception):
    """QEMU does not export the disk. Nothing is left of the attempt."""


class Pace:
    """Keeps reading at `rate` bytes per second (0: as fast as can be), by telling how long to wait."""

    def __init__(self, rate: int, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()

    def spend(self, count: int) -> None:
        """Wait until `count` bytes more may have been read."""
        if not self._rate:
            return
        now = self._clock()
        self._free_at = max(self._free_at, now) + count / self._rate
        if self._free_at > now:
            self._sleep(self._free_at - now)


class ExportedDisk:
    """A BlockDevice: the disk as its guest sees it, while the guest writes. For one thread."""

    def __init__(self, connection: NbdConnection, pace: Pace) -> None:
        self._connection = connection
        self._pace = pace
        self.size = connection.offer.size

    def read(self, offset: int, length: int) -> bytes:
        """Raises ValueError outside the disk, DeviceError."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{offset} to {offset + length} is outside a disk of {self.size} bytes")
        parts = []
        try:
            while length:
                count = min(length, self._connection.offer.maximum, 4 << 20)
                self._pace.spend(count)
                parts.append(self._connection.answer(self._connection.ask(offset, count)).data)
                offset, length = offset + count, length - count
        except NbdError as error:
            raise DeviceError(f"The disk cannot be read from its hypervisor any more: {error}") from error
        return b"".join(parts)

    def extents(self) -> Iterator[Extent]:
        """As the hypervisor knows it now: what is written later is in the journal."""
        return self._extents(_ALLOCATION, _ZERO)

    def dirty(self, bitmap: str) -> list[tuple[int, int]]:
        """(start, end) in bytes of what a bitmap names that the export was made with. Raises DeviceError."""
        found = self._extents(f"qemu:dirty-bitmap:{bitmap}", _DIRTY)
        return [(extent.start, extent.end) for extent in found if extent.zero]

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def _extents(self, context: str, flag: int) -> Iterator[Extent]:
        at = 0
        try:
            while at < self.size:
                length = min(self.size - at, 1 << 30)
                for extent in self._connection.extents(context, at, length):
                    yield Extent(at, extent.length, zero=bool(extent.flags & flag))
                    at += extent.length
        except NbdError as error:
            raise DeviceError(f"The hypervisor does not say what is where on the disk: {error}") from error


@contextmanager
def exported(monitor: Monitor, disk: DiskNode, socket_path: str, pace: Pace, bitmap: str | None) -> Iterator[ExportedDisk]:
    """The disk, readable while the body runs; with `bitmap`, that one can be asked for.

    Raises DangerousExport, CannotExport, MonitorError.
    """
    if disk.iothread:
        raise DangerousExport(f"{disk.device} has an iothread")
    export = {"type": "nbd", "node-name": disk.node, "writable": False}
    contexts = [_ALLOCATION]
    if bitmap is not None:
        export["bitmaps"] = [bitmap]
        contexts.append(f"qemu:dirty-bitmap:{bitmap}")
    try:
        with nbd_server(monitor, socket_path) as (name, sockets):
            try:
                monitor.execute("block-export-add", {**export, "id": name, "name": name})
                with closing(connect(sockets, name, contexts, _ANSWER_S)) as connection:
                    if connection.offer.size != disk.size:
                        raise CannotExport(f"{disk.device} has {disk.size} bytes, and its export {connection.offer.size}")
                    yield ExportedDisk(connection, pace)
            finally:
                withdraw(monitor, name)
    except (CommandFailed, NbdError) as error:
        raise CannotExport(f"{disk.device}: {error}") from error
