# SPDX-License-Identifier: AGPL-3.0-or-later
"""Live migration between two QEMUs of one host: both have the same images, and the second waits for the guest of the first."""

from __future__ import annotations

from pathlib import Path

from tests.hypervisor import Hypervisor, eventually


class Destination(Hypervisor):
    """A QEMU in a folder of its own, made like `source` and with its images, that waits for its guest."""

    def __init__(self, source: Hypervisor, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.qmp = folder / "qmp.sock"
        self.images = source.images
        self.address = f"unix:{folder}/incoming.sock"
        self._formats = source._formats
        self._iothread = source._iothread
        self._scsi = source._scsi
        self._more = source._more
        self.start()

    def start(self) -> None:
        """Start it; it waits for a guest."""
        more = self._more
        self._more = [*more, "-incoming", self.address]
        super().start()
        self._more = more


def run_state(hypervisor: Hypervisor) -> str:
    """What its guest does, as QEMU says."""
    return str(hypervisor.monitor.execute("query-status")["status"])


def migration(hypervisor: Hypervisor) -> str:
    """How far its guest is on its way out of it."""
    return str(hypervisor.monitor.execute("query-migrate").get("status"))


def leaves(source: Hypervisor, destination: Destination) -> None:
    """The guest goes; returns when it has left the one and stands still in the other."""
    source.monitor.execute("migrate", {"uri": destination.address})
    eventually(lambda: migration(source) in ("completed", "failed"), "the migration ends")
    assert migration(source) == "completed", source.monitor.execute("query-migrate")
    eventually(lambda: run_state(destination) != "inmigrate", "the guest has arrived")


def moves(source: Hypervisor, destination: Destination) -> None:
    """The guest goes, and runs on where it arrives."""
    leaves(source, destination)
    destination.monitor.execute("cont")
