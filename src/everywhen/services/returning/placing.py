# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where each disk goes: where the definition has it, beside that, to a path, or into a pool of libvirt's."""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Sequence
from contextlib import closing
from dataclasses import dataclass

from everywhen.block import qemu_locks
from everywhen.block.detect import detect
from everywhen.block.host_file import HostFile
from everywhen.block.image_errors import ImageError
from everywhen.block.open_image import open_image
from everywhen.hypervisor.host import Pool
from everywhen.services.failures import NotAllowed, NotFound
from everywhen.services.returning.disk_xml import DefinedDisk, DeviceSource, FileSource, Source
from everywhen.services.returning.wishes import As, Check, Wishes, failed
from everywhen.services.sizes import size
from everywhen.services.spelling import nearest

_OF_FILES = ("dir", "fs", "netfs")
"""Kinds of pools whose volumes are files of a folder."""
_OF_DEVICES = ("logical",)
"""Kinds of pools that make block devices."""
WRITTEN = ("raw", "qcow2")
"""Formats that disks of a VM of libvirt's get; of another one it becomes a qcow2."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A disk of the moment: its name, size, and bytes that a restore of it writes."""

    name: str
    size: int
    used: int


@dataclass(frozen=True, slots=True)
class DiskPlace:
    """Where a disk goes: a file, or a block device, in a pool or none. `volume`: its name, where a pool has to make it;
    `there`: it is not written, but taken as it is."""

    disk: Wanted
    path: str
    format: str
    is_device: bool = False
    pool: str = ""
    volume: str = ""
    there: bool = False

    @property
    def source(self) -> Source:
        """As a definition has it."""
        return DeviceSource(self.path) if self.is_device else FileSource(self.path, self.format)


class NoPlace(Exception):
    """A disk has no place. `check` says why."""

    def __init__(self, check: Check) -> None:
        super().__init__(check.what)
        self.check = check


class Places:
    """Chooses for one VM, of that name; looks at the file system, and changes nothing."""

    def __init__(
        self, name: str, wishes: Wishes, pools: Sequence[Pool], complete: Container[str] = (), begun: Container[str] = ()
    ) -> None:
        """`complete`: images of ours that were made already; `begun`: of others the names may be taken, by ourselves."""
        self._name = name
        self._wishes = wishes
        self._complete = complete
        self._begun = begun
        self._pools = {pool.name: pool for pool in pools}

    def place(self, disk: Wanted, defined: DefinedDisk | None) -> DiskPlace:
        """Where it goes. Raises NoPlace."""
        asked = self._wishes.storage.get(disk.name, self._wishes.storage.get(""))
        if self._wishes.kind is As.files:
            return self._left(disk, asked, defined)
        if asked is None:
            return self._as_defined(disk, defined)
        if os.sep in asked:
            return self._at_path(disk, asked, defined)
        return self._in_pool(disk, self._pool(disk, asked), f"{self._name}-{disk.name}", defined)

    def _as_defined(self, disk: Wanted, defined: DefinedDisk | None) -> DiskPlace:
        """Where it was, or, for a copy, beside that."""
        if defined is None or not (defined.volume or (defined.path and defined.kind in ("file", "block"))):
            why = (
                "was in no definition"
                if defined is None
                else f"was on {defined.kind}, which is nothing that can be written here"
            )
            raise NoPlace(failed(f"Disk {disk.name} {why}.", *self._elsewhere(disk)))
        beside = self._wishes.kind is As.new
        if defined.volume:
            pool, volume = defined.volume
            return self._in_pool(
                disk, self._pool(disk, pool), f"{self._name}-{disk.name}" if beside else volume, defined, exact=True
            )
        folder, base = os.path.split(defined.path)
        pool_of = next((pool for pool in self._pools.values() if pool.path and os.path.normpath(pool.path) == folder), None)
        if pool_of is not None and pool_of.kind in _OF_DEVICES:
            return self._in_pool(disk, pool_of, f"{self._name}-{disk.name}" if beside else base, defined)
        if defined.kind == "block":
            raise NoPlace(
                failed(
                    f"Disk {disk.name} was the block device {defined.path}, in no pool of libvirt's here.",
                    *self._elsewhere(disk),
                )
            )
        image_format = self._format(defined)
        return self._file(
            disk, os.path.join(folder, f"{self._name}-{disk.name}.{image_format}") if beside else defined.path, image_format
        )

    def _at_path(self, disk: Wanted, asked: str, defined: DefinedDisk | None) -> DiskPlace:
        path = os.path.abspath(asked)
        if _is_device(path):
            if not self._wishes.overwrite:
                raise NoPlace(failed(f"{path} is a block device.", "Overwrite all of it: --overwrite"))
            return DiskPlace(disk, path, "raw", is_device=True)
        image_format = self._format(defined)
        if asked.endswith(os.sep) or os.path.isdir(path):
            path = os.path.join(path, f"{self._name}-{disk.name}.{image_format}")
        return self._file(disk, path, image_format)

    def _in_pool(self, disk: Wanted, pool: Pool, name: str, defined: DefinedDisk | None, *, exact: bool = False) -> DiskPlace:
        """`exact`: the volume has that name already, with what stands for its format."""
        if not pool.active:
            raise NoPlace(failed(f'The pool "{pool.name}" is not active.', f"virsh pool-start {pool.name}"))
        if os.sep in name:
            raise NoPlace(failed(f'"{name}" is no name of a volume.', *self._elsewhere(disk)))
        if pool.kind in _OF_DEVICES:
            path = os.path.join(pool.path, name)
            if os.path.lexists(path) and f"{pool.name}/{name}" not in self._begun:
                raise NoPlace(_exists(disk, path))
            return DiskPlace(disk, path, "raw", is_device=True, pool=pool.name, volume=name)
        if pool.kind in _OF_FILES:
            image_format = self._format(defined)
            base = name if exact else f"{name}.{image_format}"
            return self._file(disk, os.path.join(pool.path, base), image_format, pool.name)
        raise NoPlace(
            failed(
                f'The pool "{pool.name}" is of the kind {pool.kind}, into which nothing is restored.', *self._elsewhere(disk)
            )
        )

    def _file(self, disk: Wanted, path: str, image_format: str, pool: str = "") -> DiskPlace:
        if path in self._complete:
            return DiskPlace(disk, path, image_format, pool=pool, there=True)
        if os.path.lexists(path) and not (path in self._begun and not os.path.getsize(path)):
            raise NoPlace(_exists(disk, path))
        folder = os.path.dirname(path)
        if not os.path.isabs(path) or not os.path.isdir(folder):
            raise NoPlace(failed(f"There is no folder {folder} for disk {disk.name}.", *self._elsewhere(disk), kind=NotFound))
        if not os.access(folder, os.W_OK):
            raise NoPlace(failed(f"This user may not write to {folder}.", "sudo", *self._elsewhere(disk), kind=NotAllowed))
        inside = pool or next((one.name for one in self._pools.values() if one.active and one.path == folder), "")
        return DiskPlace(disk, path, image_format, pool=inside)

    def _left(self, disk: Wanted, asked: str | None, defined: DefinedDisk | None) -> DiskPlace:
        """An image that is there, made before."""
        path = os.path.abspath(asked) if asked else "" if defined is None else defined.path
        if path and os.path.isdir(path):
            raise NoPlace(failed(f"{path} is a folder.", f"Name the image: --storage {disk.name}=PATH"))
        if not path or not os.path.exists(path):
            what = f"There is no image of disk {disk.name}" + (f" at {path}." if path else " named.")
            raise NoPlace(
                failed(what, f"Name it: --storage {disk.name}=PATH", "Have it made: --as original, or new", kind=NotFound)
            )
        is_device = _is_device(path)
        image_format = "raw" if is_device else self._format_there(path, defined)
        try:
            qemu_locks.look([path])
            with closing(open_image(path, format=image_format, allow_outside=True)) as image:
                found = image.size
        except ImageError as error:
            raise NoPlace(failed(f"{error}.", f"Another image: --storage {disk.name}=PATH")) from error
        if found < disk.size:
            what = f"{path} has {size(found)}, but disk {disk.name} of the moment {size(disk.size)}."
            raise NoPlace(failed(what, f"Another image: --storage {disk.name}=PATH"))
        return DiskPlace(disk, path, image_format, is_device=is_device, there=True)

    def _format_there(self, path: str, defined: DefinedDisk | None) -> str:
        """Never what the content alone looks like: of a raw disk the guest decides that, and a qcow2 names other files."""
        if self._wishes.image_format:
            return self._wishes.image_format
        said = defined.format if defined is not None and defined.format else "raw"
        with closing(HostFile(path)) as host:
            looks = detect(host)
        if looks in (said, "raw"):
            return looks
        raise NoPlace(
            failed(f"{path} looks like {looks}, and the definition says {said}.", "Say which it is: --format raw, or qcow2")
        )

    def _format(self, defined: DefinedDisk | None) -> str:
        if self._wishes.image_format:
            return self._wishes.image_format
        was = "qcow2" if defined is None else defined.format or "raw"  # as libvirt takes it where nothing is said
        return was if was in WRITTEN else "qcow2"

    def _pool(self, disk: Wanted, name: str) -> Pool:
        pool = self._pools.get(name)
        if pool is None:
            close = nearest(name, self._pools)
            hint = f" Close: {close[0]}." if close else ""
            raise NoPlace(failed(f'There is no pool "{name}" here.{hint}', *self._elsewhere(disk), kind=NotFound))
        return pool

    def _elsewhere(self, disk: Wanted) -> list[str]:
        usable = [pool for pool in self._pools.values() if pool.active and pool.kind in (*_OF_FILES, *_OF_DEVICES)]
        there = ", ".join(f"{pool.name} ({size(pool.free)} free)" for pool in usable)
        return [f"Into a folder: --storage {disk.name}=PATH/"] + (
            [f"Into a pool: --storage {disk.name}=POOL, of {there}"] if there else []
        )


def _exists(disk: Wanted, path: str) -> Check:
    return failed(
        f"{path} exists.",
        f"Another place for it: --storage {disk.name}=POOL|PATH",
        "Take it as it is, as the disk: --as files",
        "Write over it first: everywhen restore --to, with --in-place or --overwrite; then --as files",
    )


def _is_device(path: str) -> bool:
    return os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode)
