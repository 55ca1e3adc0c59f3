# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the VMs are that `everywhen rollback` sets back: images that were named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from everywhen.block.open_image import open_image
from everywhen.capture.hypervisor import StoredDisk
from everywhen.repository.ledger import Vm
from everywhen.services.failures import WrongUsage
from everywhen.services.rollback.machine import GivenImages, Machine


@dataclass(frozen=True, slots=True)
class Machines:
    """`images`: paths by disk, as they were given, and their `formats` where these were."""

    images: Mapping[str, str]
    formats: Mapping[str, str]

    def machine(self, vm: Vm, *, several: bool) -> Machine:
        """The one of this VM. Raises WrongUsage, ImageError."""
        unknown = sorted(self.formats.keys() - self.images.keys())
        if unknown:
            raise WrongUsage(f"Disk {unknown[0]} is not among the images.", on=unknown[0])
        if self.images:
            if several:
                raise WrongUsage("--disk names the images of one VM: roll them back one by one.", on=vm.name)
            return GivenImages({name: self._image(name, path) for name, path in self.images.items()})
        raise WrongUsage(f"Where are the disks of {vm.name}?", on=vm.name, do=["--disk DISK=IMAGE, each of them"])

    def _image(self, name: str, path: str) -> StoredDisk:
        where = os.path.abspath(path)
        with open_image(where, format=self.formats.get(name)) as image:
            return StoredDisk(where, image.format)
