# SPDX-License-Identifier: AGPL-3.0-or-later
"""Disks in libvirt's XML of a domain: what is there, and sources put in others' place (libvirt: formatdomain.html)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from xml.etree import ElementTree as ET

_MEDIA = ("cdrom", "floppy")
_OF_THE_SOURCE = ("backingStore", "mirror", "auth", "encryption")
"""What says how the old source was reached and what it stood on: a restored disk is one image, in the clear."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """An image file on the domain's host."""

    path: str
    format: str


@dataclass(frozen=True, slots=True)
class DeviceSource:
    """A block device of the domain's host; raw."""

    path: str


@dataclass(frozen=True, slots=True)
class NbdSource:
    """An export of an NBD server at a unix socket; raw."""

    socket: str
    export: str


Source = FileSource | DeviceSource | NbdSource


class Without(Enum):
    """What becomes of a disk that gets no other source."""

    kept = "kept"
    """As the definition has it."""
    empty = "empty"
    """A drive without a medium."""
    gone = "gone"
    """The domain does not have it."""


Placement = Source | Without


@dataclass(frozen=True, slots=True)
class DefinedDisk:
    """A disk of a definition. `kind`: libvirt's type of its source; `path`: of a file or device, '' for what is neither;
    `volume`: pool and name in it, where it is one; `is_medium`: of a CD or floppy drive."""

    name: str
    kind: str
    path: str
    format: str
    volume: tuple[str, str] | None
    is_medium: bool
    readonly: bool


def disks_of(root: ET.Element) -> list[DefinedDisk]:
    """Those of a domain that have a target, in its order."""
    return [_defined(disk) for disk in root.iterfind("devices/disk") if _name(disk)]


def place_disks(root: ET.Element, placements: Mapping[str, Placement]) -> None:
    """Give disks other sources; one that is not named stays. Raises KeyError for a disk that the domain does not have."""
    devices = root.find("devices")
    there = {} if devices is None else {_name(disk): disk for disk in devices.iterfind("disk")}
    for name, placement in placements.items():
        disk = there[name]
        if placement is Without.gone and devices is not None:
            devices.remove(disk)
        elif placement is Without.empty:
            _eject(disk)
        elif not isinstance(placement, Without):
            _place(disk, placement)


def add_disks(root: ET.Element, running: ET.Element | None, names: Iterable[str]) -> list[str]:
    """Disks that the definition does not have, as it ran with them, else on virtio. What is to be said about each."""
    devices = root.find("devices")
    if devices is None:
        devices = ET.SubElement(root, "devices")
    ran = {} if running is None else {_name(disk): disk for disk in running.iterfind("devices/disk")}
    said = []
    for name in names:
        if name in ran:
            disk = copy.deepcopy(ran[name])
            # Where it was plugged in while the VM ran may be another's place when it is started anew.
            for element in disk.findall("address"):
                disk.remove(element)
            said.append(f"its disk {name} had been attached while it ran; it is in its definition now")
        else:
            disk = ET.Element("disk", {"device": "disk"})
            ET.SubElement(disk, "target", {"dev": name, "bus": "virtio"})
            said.append(f"its disk {name} was in no definition; it is on virtio now")
        devices.append(disk)
    return said


def chained(running: ET.Element | None, names: Iterable[str]) -> list[str]:
    """What is to be said of disks that stood on a chain of images, as only a running domain says."""
    disks = [] if running is None else running.findall("devices/disk")
    on_others = [_name(disk) for disk in disks if disk.find("backingStore/source") is not None]
    return [f"its disk {name} stood on other images; it is one image now" for name in on_others if name in names]


def _defined(disk: ET.Element) -> DefinedDisk:
    source, driver = disk.find("source"), disk.find("driver")
    values: Mapping[str, str] = {} if source is None else source.attrib
    pool, volume = values.get("pool", ""), values.get("volume", "")
    return DefinedDisk(
        name=_name(disk),
        kind=disk.get("type", "file"),
        path=values.get("file") or values.get("dev") or "",
        format="" if driver is None else driver.get("type", ""),
        volume=(pool, volume) if pool and volume else None,
        is_medium=disk.get("device", "disk") in _MEDIA,
        readonly=disk.find("readonly") is not None,
    )


def _name(disk: ET.Element) -> str:
    target = disk.find("target")
    return "" if target is None else target.get("dev", "")


def _eject(disk: ET.Element) -> None:
    for element in [one for one in disk if one.tag in ("source", *_OF_THE_SOURCE)]:
        disk.remove(element)
    disk.set("type", "file")


def _place(disk: ET.Element, source: Source) -> None:
    _eject(disk)
    driver = disk.find("driver")
    if driver is None:
        driver = ET.Element("driver", {"name": "qemu"})
        disk.insert(0, driver)
    driver.set("type", source.format if isinstance(source, FileSource) else "raw")
    driver.attrib.pop("metadata_cache", None)
    for element in driver.findall("metadata_cache"):  # of qcow2 alone
        driver.remove(element)
    element = ET.Element("source")
    disk.insert(list(disk).index(driver) + 1, element)
    if isinstance(source, FileSource):
        disk.set("type", "file")
        element.set("file", source.path)
    elif isinstance(source, DeviceSource):
        disk.set("type", "block")
        element.set("dev", source.path)
    else:
        disk.set("type", "network")
        driver.attrib.pop("io", None)  # how files and devices are read
        element.attrib.update({"protocol": "nbd", "name": source.export})
        ET.SubElement(element, "host", {"transport": "unix", "socket": source.socket})
    if disk.get("device") == "lun" and not isinstance(source, DeviceSource):
        disk.set("device", "disk")
        for name in ("rawio", "sgio"):
            disk.attrib.pop(name, None)
