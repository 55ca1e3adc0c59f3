# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the VMs are that `everywhen rollback` sets back: domains of this host's libvirt, or images that were named."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from everywhen.block.open_image import open_image
from everywhen.capture.stored_disk import StoredDisk
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.ledger import Vm
from everywhen.services.failures import Failed, WrongUsage
from everywhen.services.naming import is_name
from everywhen.services.rollback.machine import GivenImages, Machine

_USUAL = "qemu:///system"


@dataclass(frozen=True, slots=True)
class Machines:
    """`images`: paths by disk, as they were given, and their `formats` where these were; else the libvirt at `uri` has the VMs,
    and calls the one `domain`, where it was said what it calls it."""

    images: Mapping[str, str]
    formats: Mapping[str, str]
    uri: str | None
    domain: str | None
    env: Mapping[str, str]
    randomness: Callable[[int], bytes]

    def machine(self, vm: Vm, *, several: bool) -> Machine:
        """The one of this VM. Raises WrongUsage, ImageError, Failed."""
        unknown = sorted(self.formats.keys() - self.images.keys())
        if unknown:
            raise WrongUsage(f"Disk {unknown[0]} is not among the images.", on=unknown[0])
        if several and (self.images or self.domain):
            raise WrongUsage("--disk and --domain are of one VM: roll them back one by one.", on=vm.name)
        if not self.images:
            return self._of_libvirt(vm)
        if self.uri or self.domain:
            raise WrongUsage("A VM's images are named, or libvirt knows them: not both.", on=vm.name)
        return GivenImages({name: self._image(name, path) for name, path in self.images.items()})

    def demand_known_formats(self, vm: Vm, newest: RecoveryPoint) -> None:
        """Raises WrongUsage where an image was taken, by its content, for what it was not before: a guest can write into a raw
        image what looks like another format, and all that is written would go by that."""
        for name, path in self.images.items():
            known = newest.disks[name].format if newest.journal is None and name in newest.disks else "raw"
            found = self._image(name, path).image_format
            if name not in self.formats and found != known:
                raise WrongUsage(
                    f"{path} looks like {found}, and {vm.name}/{name} was not known to be that.",
                    on=name,
                    safe="Nothing was changed.",
                    do=[f"Say which it is: --image-format {name}={found}, or {name}=raw"],
                )

    def _image(self, name: str, path: str) -> StoredDisk:
        if not is_name(name):
            raise WrongUsage(f'"{name}" is not a name for a disk: use a-z, 0-9, dot, dash and underscore.', on=name)
        where = os.path.abspath(path)
        with open_image(where, format=self.formats.get(name)) as image:
            return StoredDisk(where, image.format)

    def _of_libvirt(self, vm: Vm) -> Machine:
        try:
            # Only here: most hosts of repositories have no libvirt.
            from everywhen.services.rollback.libvirt_machine import LibvirtMachine
        except ImportError as error:
            raise Failed(
                f"libvirt's Python library cannot be loaded: {error}.",
                on=vm.name,
                safe="Nothing was read or changed.",
                do=["Without libvirt, a VM that is off: --disk DISK=IMAGE, each of them"],
            ) from error
        uri = self.uri or self.env.get("LIBVIRT_DEFAULT_URI") or _USUAL
        return LibvirtMachine(uri, self.domain or vm.uuid or vm.source or vm.name, self.randomness)
