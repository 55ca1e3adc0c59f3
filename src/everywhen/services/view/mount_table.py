# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest's `/etc/fstab`: its lines, in the order in which they can be mounted, and which volumes its devices are.

Sources: fstab(5), libmount's tab_parse.c, systemd.mount(5) and systemd-fstab-generator(8); names below /dev/disk: udev's
60-persistent-storage.rules and, of LVM, 13-dm-disk.rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from everywhen.guest.tree import FileSystem
from everywhen.services.view.volumes import GuestVolume

Readable = tuple[GuestVolume, FileSystem]

_WITHOUT_VOLUME = {
    "swap",
    "tmpfs",
    "ramfs",
    "devtmpfs",
    "proc",
    "sysfs",
    "devpts",
    "debugfs",
    "efivarfs",
    "hugetlbfs",
    "cgroup2",
}
_FROM_ELSEWHERE = {"nfs", "nfs4", "cifs", "autofs", "overlay"}
_BY_NUMBER = re.compile(r"/dev/(?:[shxv]+d([a-z])([0-9]*)|(?:nvme|mmcblk)([0-9])(?:n1)?(?:p([0-9]+))?)")
_MOST_LINES = 500
"""Each is compared with all others."""
_OCTAL = re.compile(r"\\([0-7]{3})")
_HEX = re.compile(r"\\x([0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a mount table."""

    device: str
    """Of a bind mount the folder that is shown again."""
    folder: str
    kind: str
    options: tuple[str, ...]

    @property
    def is_bind(self) -> bool:
        """Whether it shows a folder in another place."""
        return "bind" in self.options or "rbind" in self.options

    @property
    def is_mounted(self) -> bool:
        """Whether the guest shows a volume or folder of its own there, from its start on or when somebody looks."""
        return self._is_of_disks and not self.by_hand

    @property
    def by_hand(self) -> bool:
        """Whether it is mounted only when somebody says so."""
        return self._is_of_disks and "noauto" in self.options and "x-systemd.automount" not in self.options

    @property
    def _is_of_disks(self) -> bool:
        if self.folder == "/" or not self.folder.startswith("/"):
            return False
        return self.is_bind or (self.kind not in _WITHOUT_VOLUME | _FROM_ELSEWHERE and self.kind != "none")

    @property
    def subvolume(self) -> str | int | None:
        """Of Btrfs: path or number of what is mounted of it; None: what it has itself for that."""
        for option in self.options:
            name, _, value = option.partition("=")
            if name == "subvol":
                return value.strip("/")
            if name == "subvolid" and value.isdecimal() and not any(one.startswith("subvol=") for one in self.options):
                return int(value)
        return None


def lines(table: str) -> Iterator[Line]:
    """The lines of a table that say something; of one that is longer than any real one only the first."""
    for line in table.splitlines()[:_MOST_LINES]:
        fields = [_OCTAL.sub(lambda code: chr(int(code[1], 8)), one) for one in line.split()]
        if len(fields) >= 3 and not fields[0].startswith("#"):
            folder = "/" + fields[1].strip("/") if fields[1].startswith("/") else fields[1]
            yield Line(fields[0], folder, fields[2], tuple(fields[3].split(",")) if len(fields) > 3 else ())


def in_order(table: Sequence[Line]) -> Iterator[Line]:
    """As they are in the table, but each behind those it needs: what is mounted above it, and above what a bind mount shows."""
    waiting = list(range(len(table)))
    needed = {one: {other for other in waiting if other != one and _needs(table[one], table[other])} for one in waiting}
    while waiting:
        ready = next((one for one in waiting if needed[one].isdisjoint(waiting)), waiting[0])
        waiting.remove(ready)
        yield table[ready]


def _needs(line: Line, other: Line) -> bool:
    above = other.folder.rstrip("/") + "/"
    return (line.folder.startswith(above) and line.folder != other.folder) or (
        line.is_bind and f"{line.device.rstrip('/')}/".startswith(above)
    )


class KnownVolumes:
    """The volumes that can be read, by what mount tables call them."""

    def __init__(self, volumes: Sequence[GuestVolume], readable: Sequence[Readable]) -> None:
        self._readable = readable
        names = {disk for volume in volumes for disk in volume.disks}
        self._disks = sorted(names, key=lambda disk: (len(disk), disk))

    def device(self, spec: str) -> Readable | None:
        """The volume that is meant; None where it is none of these."""
        spec = spec.replace('"', "")
        by, _, value = spec.rpartition("/" if spec.startswith("/dev/disk/") else "=")
        if by.startswith("/dev/disk/"):
            value = _HEX.sub(lambda code: chr(int(code[1], 16)), value)
        if by in ("UUID", "/dev/disk/by-uuid"):
            return self._first(lambda _, system: bool(value) and system.uuid.casefold() == value.casefold())
        if by in ("LABEL", "/dev/disk/by-label"):
            return self._first(lambda _, system: bool(value) and system.label == value)
        if by in ("PARTUUID", "/dev/disk/by-partuuid"):
            return self._first(lambda volume, _: bool(value) and volume.part_uuid.casefold() == value.casefold())
        if by in ("PARTLABEL", "/dev/disk/by-partlabel"):
            return self._first(lambda volume, _: bool(value) and volume.part_label == value)
        if by == "/dev/disk/by-id" and value.startswith("dm-uuid-LVM-"):
            return self._first(lambda volume, _: volume.part_uuid == value.removeprefix("dm-uuid-"))
        if numbered := _BY_NUMBER.fullmatch(spec):
            return self._numbered(*numbered.groups())
        name = spec.removeprefix("/dev/mapper/").removeprefix("/dev/disk/by-id/dm-name-")
        if name == spec and spec.startswith("/dev/") and spec.count("/") == 3:
            name = spec.removeprefix("/dev/").replace("-", "--").replace("/", "-")
        return self._first(lambda volume, _: volume.name == name)

    def _numbered(self, letter: str | None, part: str | None, number: str | None, numbered_part: str | None) -> Readable | None:
        index = ord(letter) - ord("a") if letter else int(number or 0)
        disk = self._disks[index] if index < len(self._disks) else ""
        name = f"p{part or numbered_part or 0}"
        return self._first(lambda volume, _: volume.disks == (disk,) and volume.name == name)

    def _first(self, meant: Callable[[GuestVolume, FileSystem], bool]) -> Readable | None:
        return next((one for one in self._readable if meant(*one)), None)
