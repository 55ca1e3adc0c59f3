# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is in the folder of one moment:

    disk/vda.raw vda.qcow2 …    each disk as an image file
    disk/vda.p1.raw             each volume of the guest's, where it is not the whole disk
    files/etc/passwd            all files as the guest sees itself
    volumes/vda/p1/passwd       the files of each file system alone
    notes.txt                   which moment this is, what its volumes hold, and what of them is not shown

Names are as the guest has them; a volume over several disks is shown with its first one. Links never lead out of `files`, or
out of the volume (`inner_links.py`). A disk whose own name ends like a volume's (`vda.p1`) hides that volume's file.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import tzinfo
from functools import partial

from everywhen.formats.layouts.runs import Runs
from everywhen.guest.errors import GuestError
from everywhen.guest.recognition import Role
from everywhen.services.escape import visible
from everywhen.services.failures import NotFound
from everywhen.services.view.guest_folder import GuestFolder, Parts, Say
from everywhen.services.view.held import HeldMoment
from everywhen.services.view.moments import FAILURES
from everywhen.services.view.nodes import File, Folder, Node
from everywhen.services.view.volumes import GuestVolume

SHOWN_FORMATS = ("raw", "qcow2", "vhd", "vhdx", "vmdk")
"""A fixed VHD, too, ends in .vhd: `restore` makes it."""

INSIDE = ("disk", "files", "volumes", "notes.txt")
"""What is in the folder of each moment."""
_WHOLE_DISK = "p0"
_UNREADABLE = (GuestError, *FAILURES)

Read = Callable[[int, int], bytes]
"""(offset, length) -> the bytes, fewer only at the end."""
Data = Callable[[], Runs]


class MomentFolder:
    """A held moment's folder; paths are names from it. All raise NotFound, GuestError, Damaged, StorageError."""

    def __init__(self, held: HeldMoment, say: Say, zone: tzinfo) -> None:
        """`say` is told, a line each, what is not shown where it should be. Times for people are the `zone`'s."""
        self._held = held
        self._say = say
        self._zone = zone

    def look_up(self, path: Parts) -> Node:
        """What is there."""
        match path:
            case () | ("disk",) | ("volumes",):
                return Folder(self._held.time_ns)
            case ("volumes", disk) if disk in self._held.view.disks:
                return Folder(self._held.time_ns)
            case ("disk", name):
                return self._disk_file(name)[0]
            case ("notes.txt",):
                return self._notes()[0]
        folder, inner = self._guest(path)
        if inner:
            return folder().look_up(inner)
        try:
            return folder().look_up(())
        except _UNREADABLE:
            return Folder(self._held.time_ns)  # who looks into it is told

    def names(self, path: Parts) -> list[str]:
        """What is in a folder."""
        match path:
            case ():
                return list(INSIDE)
            case ("disk",):
                return self._disk_files()
            case ("volumes",):
                return sorted(self._held.view.disks)
            case ("volumes", disk) if disk in self._held.view.disks:
                return [one.name for one in self._held.guest.volumes(disk) if one.role is Role.FILES]
        folder, inner = self._guest(path)
        return folder().names(inner)

    def open(self, path: Parts) -> tuple[File, Read, Data]:
        """A file, how it is read, and which of its bytes are no holes."""
        match path:
            case ("disk", name):
                return self._disk_file(name)
            case ("notes.txt",):
                return self._notes()
        folder, inner = self._guest(path)
        file, content = folder().open(inner)
        return file, content.read, content.data

    def attributes(self, path: Parts) -> dict[str, bytes]:
        """Extended attributes of a guest's file; there are none elsewhere."""
        match path:
            case ("files", *_) | ("volumes", _, _, *_):
                folder, inner = self._guest(path)
                return folder().attributes(inner)
        return {}

    def _guest(self, path: Parts) -> tuple[Callable[[], GuestFolder], Parts]:
        """The file system that a path leads into, and the path in it. Raises NotFound."""
        match path:
            case ("files", *inner):
                return self._held.guest.guest, tuple(inner)
            case ("volumes", disk, name, *inner):
                volume = self._volume(disk, name)
                if volume is not None and volume.role is Role.FILES:
                    return lambda: self._held.guest.volume(volume), tuple(inner)
        raise _nothing(path)

    def _volume(self, disk: str, name: str) -> GuestVolume | None:
        if disk not in self._held.view.disks:
            return None
        return next((one for one in self._held.guest.volumes(disk) if one.name == name), None)

    def _disk_files(self) -> list[str]:
        """Image files that fit their formats, and volumes."""
        disks = sorted(self._held.view.disks)
        every = ((disk, form) for disk in disks for form in SHOWN_FORMATS)
        found = [f"{disk}.{form}" for disk, form in every if self._held.fits(disk, form)]
        try:
            volumes = [f"{disk}.{one.name}.raw" for disk in disks for one in self._held.guest.volumes(disk) if _is_part(one)]
        except _UNREADABLE as error:
            self._say(f"{self._held.where}/disk: volumes are not shown: {error}")
            return found
        return [*found, *(name for name in volumes if name not in found)]

    def _disk_file(self, name: str) -> tuple[File, Read, Data]:
        disk, _, image_format = name.rpartition(".")
        if disk in self._held.view.disks and image_format in SHOWN_FORMATS:
            size, image = self._held.size(disk, image_format), self._held.file(disk, image_format)
            if size is None or image is None:
                raise _nothing(("disk", name))
            return File(size.length, size.stored, self._held.time_ns), image.read, image.data
        for whole in self._held.view.disks if image_format == "raw" else ():
            volume = self._volume(whole, disk.removeprefix(f"{whole}.")) if disk.startswith(f"{whole}.") else None
            if volume is not None and _is_part(volume):
                file = File(volume.size, volume.size, self._held.time_ns)
                return file, self._held.guest.device(volume).read, partial(Runs.whole, volume.size)
        raise _nothing(("disk", name))

    def _notes(self) -> tuple[File, Read, Data]:
        heading = self._held.view.moment.found.words(self._held.view.vm.name, self._zone)
        text = f"{visible(heading)}\n\n{self._held.guest.note()}".encode()
        file = File(len(text), len(text), self._held.time_ns)
        return file, lambda offset, length: text[offset : offset + length], partial(Runs.whole, len(text))


def _is_part(volume: GuestVolume) -> bool:
    """Whether it has bytes of its own that are not all of a disk."""
    return volume.name != _WHOLE_DISK and volume.size > 0


def _nothing(path: Parts) -> NotFound:
    return NotFound(f"There is no {'/'.join(path)}.", on="/".join(path))
