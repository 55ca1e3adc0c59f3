# SPDX-License-Identifier: AGPL-3.0-or-later
"""The volumes of a VM's disks, and the file systems in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module

from everywhen.guest.errors import GuestError, GuestUnsupported
from everywhen.guest.footprint import taking_down
from everywhen.guest.lvm import Member, logical_volumes
from everywhen.guest.partitions import Table, read_table
from everywhen.guest.reading import Cached, Window
from everywhen.guest.recognition import Role, fills_a_boot_sector, recognise, without_files
from everywhen.guest.tree import FileSystem, Readable

_READERS = {
    "ext": ("ext", "ExtFileSystem"),
    "xfs": ("xfs", "XfsFileSystem"),
    "ntfs": ("ntfs", "NtfsFileSystem"),
    "fat": ("fat", "FatFileSystem"),
    "exfat": ("exfat", "ExfatFileSystem"),
}
"""By kind: module and class, loaded when it is needed."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition, a disk without partitions, or a logical volume. Names are unique on each of `disks`.

    `problem`: why it cannot be read, or (of a partition that is cut off) only in part.
    """

    name: str
    """`p1`, …; `p0` of a disk without a partition table; `vg-lv`."""
    disks: tuple[str, ...]
    size: int
    kind: str
    """`ext`, `ntfs`, `swap`, `LUKS`, …, or `unknown`."""
    role: Role
    content: Readable
    problem: GuestError | None = None
    part_uuid: str = ""
    """Of the partition, as mount tables write it (`1a2b3c4d-01`, or that of a GPT); of a logical volume `LVM-` and two ids
    (lvm.py); empty where there is none."""
    part_label: str = ""


@dataclass(slots=True)
class Volumes:
    """All that was found, and what is wrong with tables by disk."""

    found: list[Volume] = field(default_factory=list)
    problems: list[tuple[str, GuestError]] = field(default_factory=list)


class _Nothing:
    """In place of the content of a volume that has none."""

    size = 0

    def read(self, offset: int, length: int) -> bytes:
        if offset or length:
            raise ValueError(f"{offset} + {length} is outside of 0 bytes")
        return b""


def find_volumes(disks: Mapping[str, Readable]) -> Volumes:
    """The volumes of these disks, by name. Raises DeviceError where a disk cannot be read."""
    volumes = Volumes()
    for name, disk in disks.items():
        _partitions(volumes, name, Cached(disk, name))
    members = [Member(one.disks[0], one.content) for one in volumes.found if one.role is Role.LVM]
    logical, problems = logical_volumes(members)
    volumes.problems += [("", problem) for problem in problems]
    for one in logical:
        if isinstance(one.content, GuestError):
            volumes.found.append(Volume(one.name, one.disks, 0, "unknown", Role.UNKNOWN, _Nothing(), one.content, one.uuid))
        else:
            kind, role = recognise(one.content)
            volumes.found.append(Volume(one.name, one.disks, one.content.size, kind, role, one.content, None, one.uuid))
    return volumes


def _partitions(volumes: Volumes, name: str, disk: Readable) -> None:
    with taking_down(None):  # where no table is, a file system has its counters in these places
        table = None if fills_a_boot_sector(recognise(disk)[0]) else _table(disk)
    if table is not None:
        volumes.problems += [(name, problem) for problem in table.problems]
        if table.kind:
            _table(disk)  # this time it counts
            for part in table.partitions:
                content = Window(disk, part.start, part.size)
                inner, use = recognise(content)
                whose = (f"p{part.number}", (name,), part.size, inner, use)
                volumes.found.append(Volume(*whose, content, part.problem, part.uuid, part.label))
            return
    volumes.found.append(Volume("p0", (name,), disk.size, *recognise(disk), disk))


def _table(disk: Readable) -> Table:
    return read_table(disk, lambda start: start < disk.size and _is_known(disk, start))


def _is_known(disk: Readable, start: int) -> bool:
    with taking_down(None):  # where nothing is, there may be anything, which changes with every write
        return recognise(Window(disk, start, disk.size - start))[1] is not Role.UNKNOWN


def open_file_system(volume: Volume, beside: Sequence[Volume] = ()) -> FileSystem:
    """The file system of a volume. `beside`: the VM's other volumes, for a Btrfs over several.

    Raises GuestUnsupported with what it is if it is none that is read here, GuestError if it cannot be opened.
    """
    if volume.problem and not volume.size:
        raise volume.problem
    if volume.role is not Role.FILES:
        raise GuestUnsupported(f"{volume.name} of {', '.join(volume.disks)} {without_files(volume.kind, volume.role)}")
    others = [one.content for one in beside if one.kind == volume.kind and one is not volume]
    return _open(volume, others)


def _open(volume: Volume, others: list[Readable]) -> FileSystem:
    """Each kind's module is loaded when it is needed: what NTFS needs takes 0.2 s."""
    if volume.kind == "btrfs":
        from everywhen.guest.btrfs import BtrfsFileSystem

        return BtrfsFileSystem(volume.content, others)
    module, name = _READERS[volume.kind]
    reader: Callable[[Readable], FileSystem] = getattr(import_module(f"everywhen.guest.{module}"), name)
    return reader(volume.content)
