# SPDX-License-Identifier: AGPL-3.0-or-later
"""A moment's definition, rewritten for where its VM is defined now. Pure: XML and wishes in, XML and what is to be said out.

All that is not named here stays as it was: PCI addresses (a Windows asks for drivers anew where they move), processor, clock,
what QEMU is given beside libvirt, passwords of screens. Source: libvirt, formatdomain.html.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from uuid import UUID
from xml.etree import ElementTree as ET

from everywhen.capture.domain_xml import domain_element
from everywhen.formats.errors import Corrupt
from everywhen.services.returning.device_xml import (
    AsBefore,
    Network,
    connect_cards,
    drop_host_devices,
    forget_running,
    host_devices,
    host_folders,
    new_addresses,
    own_ports,
)
from everywhen.services.returning.disk_xml import Placement, Without, add_disks, chained, disks_of, place_disks

for _prefix, _place in {
    "qemu": "http://libvirt.org/schemas/domain/qemu/1.0",
    "libosinfo": "http://libosinfo.org/xmlns/libvirt/domain/1.0",
}.items():
    ET.register_namespace(_prefix, _place)  # else they are written as ns0 and ns1: the same to libvirt, not to people
_LIBOSINFO = ".//{http://libosinfo.org/xmlns/libvirt/domain/1.0}os"
_WINDOWS = "microsoft.com/"


class Genid(Enum):
    """What became of the VM-Generation-ID, by which a guest learns that it was set back or copied."""

    changed = "changed"
    added = "added"
    none = "none"


@dataclass(frozen=True, slots=True)
class Copy:
    """It is to live beside the original: the UUID it gets, and where random bytes for addresses come from."""

    uuid: UUID
    randomness: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be different. `None` and what is not named: as it was. `disks`: by name; all that the moment has.

    `generation`: the new VM-Generation-ID. `running`: the XML as it ran, for disks that only that has. `nvram`: the file of its
    UEFI variables; `loader`: of the firmware; `machine`: its type.
    """

    disks: Mapping[str, Placement]
    generation: UUID
    name: str | None = None
    copy: Copy | None = None
    network: Network = field(default_factory=AsBefore)
    running: str | None = None
    machine: str | None = None
    loader: str | None = None
    nvram: str | None = None
    emulator: str | None = None


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The XML to be defined; the identity in it; what is to be said; `cards`: how many network cards it has."""

    xml: str
    name: str
    uuid: UUID
    genid: Genid
    cards: int
    remarks: tuple[str, ...]


def rewritten(xml: str, changes: Changes) -> Rewritten:
    """Raises Corrupt for XML of no domain, KeyError for a disk that neither the definition nor the moment has."""
    root = domain_element(xml)
    forget_running(root)
    running = None if changes.running is None else domain_element(changes.running)
    if running is not None:
        forget_running(running)
    name, uuid = _identify(root, changes)
    there = {disk.name for disk in disks_of(root)}
    placed = [name for name, placement in changes.disks.items() if not isinstance(placement, Without)]
    remarks = chained(None if changes.running is None else domain_element(changes.running), placed)
    remarks += add_disks(root, running, [disk for disk in changes.disks if disk not in there])
    place_disks(root, changes.disks)
    genid = _generation(root, changes.generation)
    remarks += _hardware(root, apart=changes.copy is not None)
    if changes.copy is not None:
        new_addresses(root, changes.copy.randomness)
        remarks += own_ports(root)
    cards = connect_cards(root, changes.network)
    _start_from(root, changes)
    return Rewritten(ET.tostring(root, encoding="unicode"), name, uuid, genid, cards, tuple(remarks))


def new_generation(xml: str, generation: UUID) -> tuple[str, Genid]:
    """A definition with another VM-Generation-ID and nothing else changed; what became of it. Raises Corrupt."""
    root = domain_element(xml)
    genid = _generation(root, generation)
    return ET.tostring(root, encoding="unicode"), genid


def without_cpu(xml: str) -> str:
    """The same, for whatever processor there is. Raises Corrupt."""
    root = domain_element(xml)
    for element in root.findall("cpu"):
        root.remove(element)
    return ET.tostring(root, encoding="unicode")


def looks_like_windows(root: ET.Element) -> bool:
    """By what virt-manager wrote down, or by what is switched on for Windows alone."""
    system = root.find(_LIBOSINFO)
    said = "" if system is None else system.get("id", "")
    return _WINDOWS in said or (not said and root.find("features/hyperv") is not None)


def _identify(root: ET.Element, changes: Changes) -> tuple[str, UUID]:
    name = changes.name or root.findtext("name", "")
    try:
        uuid = UUID(root.findtext("uuid", "")) if changes.copy is None else changes.copy.uuid
    except ValueError as error:
        raise Corrupt("the definition has no UUID") from error
    if not name:
        raise Corrupt("the definition has no name")
    _child(root, "name").text = name
    _child(root, "uuid").text = str(uuid)
    for entry in root.iterfind("sysinfo/system/entry[@name='uuid']"):
        entry.text = str(uuid)  # libvirt refuses two
    return name, uuid


def _generation(root: ET.Element, generation: UUID) -> Genid:
    present = root.find("genid") is not None
    if not present and not looks_like_windows(root):
        return Genid.none
    _child(root, "genid").text = str(generation)
    return Genid.changed if present else Genid.added


def _hardware(root: ET.Element, *, apart: bool) -> list[str]:
    """What of its host it had. `apart`: it lives beside the original."""
    found = host_devices(root)
    said = [f"shows its guest {path}, a folder of its host, which is in no backup of it" for path in host_folders(root)]
    if apart:
        drop_host_devices(root)
        return said + [f"is without the {one}: that is the original's" for one in found]
    return said + [f"starts only where there is the {one}" for one in found]


def _start_from(root: ET.Element, changes: Changes) -> None:
    """Machine type, firmware, variables, emulator."""
    system = _child(root, "os")
    kind, loader = system.find("type"), system.find("loader")
    if changes.machine is not None and kind is not None:
        kind.set("machine", changes.machine)
    if changes.loader is not None and loader is not None:
        loader.text = changes.loader
    if changes.nvram is not None:
        nvram = _child(system, "nvram")
        for source in nvram.findall("source"):
            nvram.remove(source)
        nvram.attrib.pop("type", None)
        nvram.text = changes.nvram
    if changes.emulator is not None:
        _child(_child(root, "devices"), "emulator").text = changes.emulator


def _child(parent: ET.Element, tag: str) -> ET.Element:
    found = parent.find(tag)
    return ET.SubElement(parent, tag) if found is None else found
