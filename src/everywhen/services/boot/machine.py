# SPDX-License-Identifier: AGPL-3.0-or-later
"""The machine that a booted copy gets: what its moment's definition says, or what is usual where it has none.

Sources: libvirt, formatdomain.html; UEFI 2.10, 5.3.3 (types of GPT partitions).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol
from uuid import UUID
from xml.etree import ElementTree as ET

from everywhen.capture.domain_xml import domain_element
from everywhen.formats.errors import Corrupt, FormatError
from everywhen.formats.filesystems.partitions import decode_gpt_entries, decode_gpt_header

USUAL_MEMORY = 1 << 30
_EFI_SYSTEM = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")
_MOST_TABLE = 1 << 20
_UNITS: dict[str, int] = {"": 1024, "b": 1, "bytes": 1} | {
    name: base**power
    for power, letter in enumerate("kmgt", 1)
    for name, base in ((letter, 1024), (f"{letter}ib", 1024), (f"{letter}b", 1000))
}
_SCSI = {
    "virtio-scsi": "virtio-scsi-pci",
    "virtio-transitional": "virtio-scsi-pci",
    "virtio-non-transitional": "virtio-scsi-pci",
    "lsilogic": "lsi53c895a",
    "lsisas1068": "mptsas1068",
    "lsisas1078": "megasas",
    "vmpvscsi": "pvscsi",
}
"""QEMU's name of each of libvirt's models."""
_BUS_OF_NAME = {"vd": "virtio", "sd": "scsi", "hd": "ide"}
_CARDS = {"virtio": "virtio-net-pci"}


class Bus(StrEnum):
    """What disks may be attached to."""

    virtio = "virtio"
    scsi = "scsi"
    sata = "sata"
    ide = "ide"
    usb = "usb"


class Readable(Protocol):
    """A disk."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class MachineDisk:
    """A disk by its name in the moment; `controller`: QEMU's device, for `scsi`; `order`: the boot order that the definition
    gives it, 0 for none."""

    name: str
    bus: Bus
    controller: str = "virtio-scsi-pci"
    serial: str = ""
    order: int = 0


@dataclass(frozen=True, slots=True)
class Card:
    """A network card: QEMU's device, and its address, '' for any."""

    device: str = "virtio-net-pci"
    mac: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a copy is to have; memory in bytes. `loader`: the file of the UEFI that the definition names, '' for any;
    `remarks`: what it has not, though its definition says so."""

    disks: tuple[MachineDisk, ...]
    kind: str = "q35"
    memory: int = USUAL_MEMORY
    cpus: int = 1
    uefi: bool = False
    loader: str = ""
    secure: bool = False
    uuid: str = ""
    local_clock: bool = False
    card: Card = Card()
    remarks: tuple[str, ...] = ()

    @property
    def is_q35(self) -> bool:
        """Whether it is of the newer of the two families, which has no IDE."""
        return "q35" in self.kind

    def on_bus(self, bus: Bus) -> Machine:
        """The same with all disks on one bus."""
        return replace(self, disks=tuple(replace(disk, bus=bus, controller="virtio-scsi-pci") for disk in self.disks))


def usual_machine(disks: Mapping[str, Readable]) -> Machine:
    """For disks of which nothing more is known; the first one decides whether it has UEFI. Raises what reading them raises."""
    uefi = needs_uefi(next(iter(disks.values())))
    return Machine(tuple(MachineDisk(name, Bus.virtio) for name in disks), kind="q35" if uefi else "pc", uefi=uefi)


def needs_uefi(disk: Readable) -> bool:
    """Whether a disk has a GPT with a system partition for UEFI and none for boot code of a BIOS."""
    for sector in (512, 4096):
        try:
            header = decode_gpt_header(disk.read(sector, sector))
            table = disk.read(header.entries * sector, min(header.count * header.entry_size, _MOST_TABLE))
        except (FormatError, ValueError):  # no such header, or one that leads beyond the disk
            continue
        kinds = {entry.kind for entry in decode_gpt_entries(header, table)}
        return _EFI_SYSTEM in kinds and _BIOS_BOOT not in kinds
    return False


def defined_machine(xml: str, names: Iterable[str]) -> Machine:
    """What libvirt's XML says, for the disks of these names. Raises Corrupt for XML of no domain that can be booted here."""
    root = domain_element(xml)
    kind = root.find("os/type")
    architecture = "" if kind is None else kind.get("arch", "")
    if architecture not in ("", "x86_64", "i686"):
        raise Corrupt(f"the guest is one for {architecture}; only those for x86 are booted here")
    loader, vcpu, clock = root.find("os/loader"), root.find("vcpu"), root.find("clock")
    automatic = root.find("os[@firmware='efi']") is not None
    flash = loader is not None and loader.get("type") == "pflash"
    disks, remarks = _disks(root, list(names))
    return Machine(
        disks=tuple(disks),
        kind="pc" if kind is None else kind.get("machine", "pc"),
        memory=memory_of(root.find("memory")),
        cpus=1 if vcpu is None else _whole(vcpu.get("current") or vcpu.text, "vcpu"),
        uefi=flash or automatic,
        loader=(loader.text or "").strip() if loader is not None and flash else "",
        secure=loader is not None and loader.get("secure") == "yes",
        uuid=_uuid(root.findtext("uuid", "")),
        local_clock=clock is not None and clock.get("offset") == "localtime",
        card=_card(root.find("devices/interface")),
        remarks=(*remarks, *_missing(root)),
    )


def _disks(root: ET.Element, names: list[str]) -> tuple[list[MachineDisk], list[str]]:
    """Those of the moment, in the definition's order; what cannot be as it says."""
    controllers = {one.get("index", "0"): one.get("model", "") for one in root.iterfind("devices/controller[@type='scsi']")}
    found: list[MachineDisk] = []
    remarks: list[str] = []
    for disk in root.iterfind("devices/disk"):
        target, place, boot = disk.find("target"), disk.find("address"), disk.find("boot")
        name = "" if target is None else target.get("dev", "")
        if disk.get("device", "disk") in ("cdrom", "floppy"):
            continue
        if target is None or name not in names:
            remarks.append(f"it runs without its disk {name}")
            continue
        said = target.get("bus") or _BUS_OF_NAME.get(name[:2], "")
        bus = Bus(said) if said in set(Bus) else Bus.virtio
        if bus != said:
            remarks.append(f"its disk {name} is on virtio, as there is no {said or 'such'} bus here")
        model = controllers.get("0" if place is None else place.get("controller", "0"), "")
        order = 0 if boot is None else _whole(boot.get("order"), "boot order")
        found.append(MachineDisk(name, bus, _SCSI.get(model, "lsi53c895a"), disk.findtext("serial", "").strip(), order))
    others = [name for name in names if name not in {disk.name for disk in found}]
    remarks += [f"disk {name} is not in the definition" for name in others]
    usual = found[0].bus if found else Bus.virtio
    return found + [MachineDisk(name, usual) for name in others], remarks


def _missing(root: ET.Element) -> list[str]:
    """Devices that a copy does not get."""
    found = []
    if root.find("devices/tpm") is not None:
        found.append("it has no TPM here: what is sealed by one (BitLocker) asks for its recovery key")
    if root.find("devices/hostdev") is not None:
        found.append("devices of its host are not passed through")
    return found


def _card(interface: ET.Element | None) -> Card:
    model, mac = (None, None) if interface is None else (interface.find("model"), interface.find("mac"))
    name = "" if model is None else model.get("type", "")
    known = name if name in ("e1000", "e1000e", "rtl8139") else _CARDS["virtio"]
    address = "" if mac is None else mac.get("address", "")
    digits = address.replace(":", "")
    return Card(known, address if len(digits) == 12 and digits.isalnum() else "")


def memory_of(element: ET.Element | None) -> int:
    """Bytes that a definition's `memory` says; the usual ones where there is none. Raises Corrupt."""
    if element is None:
        return USUAL_MEMORY
    unit = _UNITS.get(element.get("unit", "").lower())
    if unit is None:
        raise Corrupt("its memory has a unit that is not known")
    return _whole(element.text, "memory") * unit


def _whole(text: str | None, what: str) -> int:
    word = (text or "").strip()
    if not (word.isascii() and word.isdigit() and len(word) < 16 and int(word)):
        raise Corrupt(f"its {what} is not a number")
    return int(word)


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        return ""
