# SPDX-License-Identifier: AGPL-3.0-or-later
"""What libvirt's XML says about a domain, as far as capture needs it (libvirt: formatdomain.html). No libvirt is needed here.

The XML of a running domain says more than the stored one: aliases, by which QEMU's devices are found, and whose process it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree as ET

from everywhen.formats.errors import Corrupt

_MEDIA = ("cdrom", "floppy")
_PAST_QEMU = ("vhostuser", "vhostvdpa")


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """A disk as the domain has it. `target`: the name that does not change when others come and go (`vda`); `alias`: of QEMU's
    device, '' while it does not run; `source`: a path, or the name that a pool or server knows it by."""

    target: str
    alias: str
    kind: str
    device: str
    source: str
    format: str
    readonly: bool
    shareable: bool
    transient: bool

    @property
    def is_written(self) -> bool:
        """Whether it belongs into a recovery point: not removable media, nor what its guest cannot write to."""
        return self.device not in _MEDIA and not self.readonly

    @property
    def is_past_qemu(self) -> bool:
        """Whether its writes go to another process or to hardware; QEMU has no node of it."""
        return self.kind in _PAST_QEMU


@dataclass(frozen=True, slots=True)
class DomainXml:
    """A domain. `nvram`: path of its UEFI variables, or None; `chosen_firmware`: libvirt chooses its UEFI at each start,
    and says where its variables are only while it runs; `emulated_tpm`: whether it has a TPM whose state libvirt keeps;
    `owner`: whose process QEMU is, as libvirt writes it (`+64055:+105`), '' when libvirt does not say."""

    name: str
    uuid: str
    disks: tuple[DomainDisk, ...]
    nvram: str | None
    chosen_firmware: bool
    emulated_tpm: bool
    owner: str


def domain_element(xml: str) -> ET.Element:
    """The root of a domain's XML. Raises Corrupt for what is no domain."""
    if "<!DOCTYPE" in xml:
        raise Corrupt("libvirt's XML of a domain has no document type")  # where entities would be declared
    try:
        root = ET.fromstring(xml)  # noqa: S314 - without a document type there is nothing to expand
    except ET.ParseError as error:
        raise Corrupt(f"the domain's XML cannot be read: {error}") from error
    if root.tag != "domain":
        raise Corrupt("this is not the XML of a domain")
    return root


def parse_domain(xml: str) -> DomainXml:
    """Raises Corrupt for what is no domain."""
    root = domain_element(xml)
    name, uuid = root.findtext("name"), root.findtext("uuid")
    if not name or not uuid:
        raise Corrupt("this is not the XML of a domain")
    owners = [label.findtext("label", "") for label in root.iterfind("seclabel[@model='dac']")]
    return DomainXml(
        name=name,
        uuid=uuid,
        disks=tuple(_disk(disk) for disk in root.iterfind("devices/disk")),
        nvram=_nvram(root.find("os/nvram")),
        chosen_firmware=root.find("os[@firmware='efi']") is not None,
        emulated_tpm=root.find("devices/tpm/backend[@type='emulator']") is not None,
        owner=next((owner for owner in owners if owner), ""),
    )


def _disk(disk: ET.Element) -> DomainDisk:
    target, alias, driver, source = (disk.find(name) for name in ("target", "alias", "driver", "source"))
    if target is None or not target.get("dev"):
        raise Corrupt("a disk of the domain has no target")
    return DomainDisk(
        target=target.get("dev", ""),
        alias="" if alias is None else alias.get("name", ""),
        kind=disk.get("type", "file"),
        device=disk.get("device", "disk"),
        source="" if source is None else _where(source),
        format="" if driver is None else driver.get("type", ""),
        readonly=disk.find("readonly") is not None,
        shareable=disk.find("shareable") is not None,
        transient=disk.find("transient") is not None,
    )


def _where(source: ET.Element) -> str:
    """What a disk's source is called: a file, device or folder; in a pool, its volume; on a server, its name there."""
    pool = f"{source.get('pool')}/" if source.get("pool") else ""
    return pool + next((value for key in ("file", "dev", "dir", "volume", "name") if (value := source.get(key))), "")


def _nvram(element: ET.Element | None) -> str | None:
    """The file of the UEFI variables: since libvirt 8.5 it may be written like a disk's source."""
    if element is None:
        return None
    source = element.find("source")
    path = (element.text or "").strip() if source is None else source.get("file", "")
    return path or None
