# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is said of an address at which there are no files: what there is instead, and how to get at it (ux 4.4, J2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from everywhen.guest.errors import GuestError, NoSuchPath, WrongKind
from everywhen.guest.recognition import Role, without_files
from everywhen.guest.walking import find
from everywhen.services.addresses import Address
from everywhen.services.failures import Failed, Failure, NotFound, WrongUsage
from everywhen.services.sizes import size
from everywhen.services.spelling import nearest
from everywhen.services.view.files import GuestFiles, NoSuchVolume
from everywhen.services.view.guest_root import NoSystem
from everywhen.services.view.volumes import GuestVolume

_MOST = 8
"""Volumes, or notes, in one message."""


@dataclass(frozen=True, slots=True)
class MissingPath:
    """An address that leads to no files of a guest. `vm`: its name; `at`: the time of its moment, for people."""

    files: GuestFiles
    address: Address
    vm: str
    at: str

    def failure(self, error: GuestError) -> Failure:
        """What is told of `error`, which GuestFiles.place has raised."""
        if isinstance(error, NoSuchVolume):
            return self._no_volume()
        if isinstance(error, NoSuchPath):
            return self._no_path(error.nearest)
        if isinstance(error, NoSystem):
            return self._no_system()
        if isinstance(error, WrongKind):
            return WrongUsage(f"{self.address}: {error}.", on=str(self.address))
        first = self._asked.partition("/")[0]
        volume = next((one for one in self._volumes if self.address.disk and one.name == first), None)
        if volume is None or volume.role is Role.FILES or volume.problem:
            what = f"{self.address}: {error}."
        else:
            what = f"{self._of(volume)} {without_files(volume.kind, volume.role)}."
        return Failed(what, on=str(self.address), do=self._devices([volume] if volume else []))

    @property
    def _asked(self) -> str:
        return (self.address.path or "").strip("/")

    @property
    def _volumes(self) -> list[GuestVolume]:
        """Of the disk that is named, or of all."""
        return [one for one in self.files.volumes if self.address.disk in (None, *one.disks)]

    def _of(self, volume: GuestVolume, path: str = "") -> Address:
        return replace(self.address, disk=self.address.disk or volume.disks[0], path=f"/{volume.name}{path}")

    def _no_volume(self) -> Failure:
        name, disk = self._asked.partition("/")[0], f"{self.vm}/{self.address.disk}"
        has = ", ".join(f"{one.name} ({one.words}, {size(one.size)})" for one in self._volumes)
        if not name:
            do = [f"everywhen ls {self._of(one)}" for one in self._volumes if one.role is Role.FILES]
            return WrongUsage(f"{self.address}: in which volume? {disk} has {has}.", on=str(self.address), do=do[:_MOST])
        close = nearest(name, [one.name for one in self._volumes])
        meant = [f"/{one}" for one in close] or [str(one.path) for one in self._elsewhere()]
        hints = [f"Did you mean {meant[0]}?"] if meant else []
        what = f"No volume {name} on {disk} at {self.at}. It has {has}."
        return NotFound(what, on=str(self.address), do=[*hints, f"everywhen ls {replace(self.address, path='/')}"])

    def _elsewhere(self) -> list[Address]:
        """Where the volumes themselves have the path that was asked for."""
        found = []
        readable = [one for one in self._volumes if one.role is Role.FILES]
        for volume in readable[:_MOST] if self._asked else ():
            try:
                find(self.files.system(volume), self._asked)
            except GuestError:
                continue
            found.append(self._of(volume, f"/{self._asked}"))
        return found

    def _no_path(self, near: str) -> Failure:
        """`near` is on another way where a link of the guest's leads off this one."""
        where = "" if self.address.disk is None else f"/{self.address.disk}"
        folder, asked = near.rstrip("/"), f"/{self._asked}"
        link, meant = "", []
        if asked.startswith(f"{folder}/"):
            meant = nearest(asked[len(folder) + 1 :].partition("/")[0], self._beside(near))
        else:
            link = f" A link on the way leads to {near}, and there the rest is not."
        hints = [f"Did you mean {folder}/{meant[0]}?"] if meant else []
        what = f"No {self.address.path} in {self.vm}{where} at {self.at}.{link}"
        do = [*hints, f"everywhen ls {replace(self.address, path=near)}", *self._notes(near)]
        return NotFound(what, on=str(self.address), do=do)

    def _beside(self, near: str) -> list[str]:
        try:
            return self.files.beside(self.address.disk, near)
        except GuestError:
            return []  # a hint is not worth an error

    def _notes(self, near: str) -> list[str]:
        """Why it may be missing: a volume that is not shown, changes that are in a journal."""
        try:
            found = self.files.place(self.address.disk, near).system.notes
        except GuestError:
            return []
        return [one if one.endswith(".") else f"{one}." for one in found[:_MOST]]

    def _no_system(self) -> Failure:
        volumes = self._volumes
        do = [f"Did you mean {one}?" for one in self._elsewhere()]
        do += [self._line(one) for one in volumes[:_MOST]]
        if len(volumes) > _MOST:
            do.append(f"everywhen ls {replace(self.address, path=None)} (all {len(volumes)} volumes)")
        do += self._devices([one for one in volumes if one.role not in (Role.FILES, Role.LVM, Role.SWAP)][:1])
        what = f"{self.address}: no volume of {self.vm} looks like the root of a guest's system. Each has a path of its own."
        return Failed(what, on=str(self.address), do=do)

    def _line(self, volume: GuestVolume) -> str:
        """How a volume's files are reached, or why not."""
        if volume.role is not Role.FILES:
            return f"{self._of(volume)} {without_files(volume.kind, volume.role)}."
        try:
            system = self.files.system(volume)
        except GuestError as error:
            return f"{self._of(volume)} cannot be read: {error}."
        label = f', "{system.label}"' if system.label else ""
        return f"everywhen ls {self._of(volume)} ({system.kind}{label}, {size(volume.size)})"

    def _devices(self, volumes: list[GuestVolume]) -> list[str]:
        """How to get at the devices that these volumes are on."""
        if volumes and volumes[0].role is Role.LVM:
            return [f"everywhen ls {replace(self.address, disk=None, path=None)}"]
        disk = volumes[0].disks[0] if volumes and len(volumes[0].disks) == 1 else self.address.disk
        if disk is None:
            return ["everywhen serve nbd --socket PATH (the disks as devices)"]
        return [f"everywhen serve nbd {replace(self.address, disk=disk, path=None)} --socket PATH (the disk as a device)"]
