# SPDX-License-Identifier: AGPL-3.0-or-later
"""A volume of a guest, as it is told by who parses it."""

from __future__ import annotations

from dataclasses import dataclass

from everywhen.guest.recognition import Role


@dataclass(frozen=True, slots=True)
class GuestVolume:
    """A partition, a disk without partitions, or a logical volume; in bytes. `problem`: why it cannot be read, or only in
    part.
    """

    name: str
    disks: tuple[str, ...]
    size: int
    kind: str
    role: Role
    problem: Exception | None = None
    part_uuid: str = ""
    part_label: str = ""

    @property
    def words(self) -> str:
        """What it is, for people."""
        if self.role is Role.ENCRYPTED:
            return f"encrypted ({self.kind})"
        return {Role.LVM: "LVM, its volumes are listed", Role.RAID: "Linux RAID", Role.UNKNOWN: "unknown"}.get(
            self.role, self.kind
        )
