# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a rollback needs of whatever runs the VM, and of a capture of it on this host; `interfaces` put them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from everywhen.block import qemu_locks
from everywhen.block.image_errors import ImageInUse
from everywhen.capture.stored_disk import StoredDisk
from everywhen.formats.ids import PointId
from everywhen.services.failures import Busy


class Machine(Protocol):
    """A VM where it runs. All methods raise Failure, MonitorError."""

    def runs(self) -> bool:
        """Whether it is on, be it paused."""

    def demand_usable(self) -> None:
        """Raises Failure where it cannot be stopped and started from here."""

    def images(self) -> dict[str, StoredDisk]:
        """The images of its disks, as it will be started next."""

    def definition(self) -> dict[str, bytes]:
        """Files that say what the VM is."""

    def stop(self, *, at_once: bool) -> None:
        """Have it off; `at_once`: as by its switch, else its guest is asked first."""

    def prepare(self, files: Mapping[str, bytes] | None) -> str:
        """It is off, and its disks are set back: let its guest learn that at its next start; what is to be said of that.
        `files`: what it was then (`definition`), where it is to be that again."""

    def start(self) -> None:
        """Have it on."""


class Capture(Protocol):
    """A capture of the VM on this host, if there is one."""

    def stand_back(self) -> PointId | None:
        """The VM is off: from now on capture leaves its images alone. The newest point, where that has all that was written;
        None where nobody knows, or captures. Raises Failure."""

    def go_on(self, newest: PointId | None) -> None:
        """It may read the images again; they are what that point shows (None: nobody knows)."""


@dataclass(frozen=True, slots=True)
class GivenImages:
    """A VM of which nothing is known but its images: it must be off, and stays off."""

    given: Mapping[str, StoredDisk]

    def runs(self) -> bool:
        try:
            qemu_locks.look([disk.path for disk in self.given.values()])
        except ImageInUse:
            return True
        return False

    def images(self) -> dict[str, StoredDisk]:
        return dict(self.given)

    def definition(self) -> dict[str, bytes]:
        return {}

    def stop(self, *, at_once: bool) -> None:  # noqa: ARG002 - nobody can
        self.demand_usable()

    def demand_usable(self) -> None:
        if not self.runs():
            return
        path = next(iter(self.given.values())).path
        raise Busy(
            f"{path} is in use by a running virtual machine or another tool of QEMU's.",
            on=path,
            safe="Nothing was changed.",
            do=["Shut the VM down first. One of libvirt's can be shut down for you: --libvirt URI instead of --disk"],
        )

    def prepare(self, files: Mapping[str, bytes] | None) -> str:  # noqa: ARG002 - nobody knows what it is
        return ""

    def start(self) -> None:
        """It is off, and was."""
