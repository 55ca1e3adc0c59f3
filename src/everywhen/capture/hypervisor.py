# SPDX-License-Identifier: AGPL-3.0-or-later
"""What runs a VM, as capture needs it: its monitor, its disks, its definition. Ways to reach one implement `Hypervisor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from everywhen.capture import migration
from everywhen.capture.nodes import DiskNode, find_disks
from everywhen.capture.qmp import Monitor, QmpMonitor, VmOff
from everywhen.capture.socket_access import let_in
from everywhen.capture.stored_disk import StoredDisk
from everywhen.capture.survey import Survey, survey


class Identity(NamedTuple):
    """What its hypervisor calls a VM, and its UUID there; both '' where nobody says."""

    name: str
    uuid: str


class Hypervisor(Protocol):
    """One VM's. All methods raise MonitorError when it cannot be reached."""

    @property
    def place(self) -> str:
        """How its user named it."""

    def identity(self) -> Identity:
        """Which VM it is."""

    def is_off(self) -> bool:
        """Whether it is off; then the others raise VmOff where they need it on."""

    def images(self) -> dict[str, StoredDisk]:
        """The images of its disks while it is off, by the names that `disks` gives when it is on; what is not in them
        nobody can read. Empty where nobody knows."""

    def monitor(self) -> Monitor:
        """Its monitor, connected; close it."""

    def clear_outdated(self, monitor: Monitor, disks: list[DiskNode]) -> None:
        """Remove bitmaps of ours that do not have all that was written to its disks, of which these are the captured ones.
        Nothing else of ours is on them. Raises CommandFailed."""

    def why_away(self, monitor: Monitor) -> str | None:
        """Why its guest is not there any more, though the monitor is: it was migrated."""

    def disks(self, monitor: Monitor) -> list[DiskNode]:
        """Its disks that can be written to. Raises NoDisks, CommandFailed."""

    def survey(self, monitor: Monitor) -> Survey:
        """All that there is to know about what it has, by the names that `disks` gives. Raises NoDisks, CommandFailed."""

    def definition(self) -> dict[str, bytes]:
        """Files that say what the VM is, by name, as they are now."""

    def admit(self, path: Path, monitor: Monitor) -> None:
        """Let its process use this socket of ours, or make sockets in this folder of ours. Raises NoAccess."""

    def forget(self, monitor: Monitor, disks: list[DiskNode]) -> None:
        """Close the files of those of these disks that were detached when our taps kept them open; the taps are off."""


@dataclass(frozen=True, slots=True)
class QmpSocket:
    """A QEMU or qemu-storage-daemon by its monitor's unix socket: it has no definition."""

    place: str

    def identity(self) -> Identity:
        return Identity("", "")

    def is_off(self) -> bool:
        try:
            with QmpMonitor.connect(self.place) as monitor:
                return migration.why_away(monitor) is not None
        except VmOff:
            return True

    def images(self) -> dict[str, StoredDisk]:
        return {}

    def monitor(self) -> Monitor:
        monitor = QmpMonitor.connect(self.place)
        try:
            if (why := migration.why_away(monitor)) is not None:
                raise VmOff(f"{self.place}: {why}")
        except BaseException:
            monitor.close()
            raise
        return monitor

    def clear_outdated(self, monitor: Monitor, disks: list[DiskNode]) -> None:
        migration.clear_outdated(monitor, [disk.node for disk in disks])

    def why_away(self, monitor: Monitor) -> str | None:
        return migration.why_away(monitor)

    def disks(self, monitor: Monitor) -> list[DiskNode]:
        return find_disks(monitor)

    def survey(self, monitor: Monitor) -> Survey:
        return survey(monitor)

    def definition(self) -> dict[str, bytes]:
        return {}

    def admit(self, path: Path, monitor: Monitor) -> None:
        if isinstance(monitor, QmpMonitor):
            let_in(path, monitor.peer)

    def forget(self, monitor: Monitor, disks: list[DiskNode]) -> None:
        """Whoever detaches a disk by a monitor closes its files, and hears that they are in use."""
