# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which machine a copy gets: what a definition says, what is usual without one, and what is said where it differs."""

from __future__ import annotations

import struct
from pathlib import Path
from uuid import UUID

import pytest

from everywhen.formats.errors import Corrupt
from everywhen.services.boot.firmware import flash_for
from everywhen.services.boot.machine import Bus, Card, Machine, MachineDisk, defined_machine, needs_uefi, usual_machine
from everywhen.services.boot.machine_types import listed, nearest
from everywhen.services.boot.plan import Wishes, planned
from everywhen.services.definition_files import Files
from everywhen.services.failures import Failed, NotFound

DEFINED = """<domain type='kvm'><name>web</name><uuid>6a0ac472-495a-4ca2-95f7-8bbf4dc88772</uuid>
  <memory unit='KiB'>4194304</memory><currentMemory>1</currentMemory><vcpu placement='static' current='2'>4</vcpu>
  <os><type arch='x86_64' machine='pc-q35-9.1'>hvm</type>
    <loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader><nvram>/n_VARS.fd</nvram></os>
  <clock offset='localtime'/>
  <devices>
    <disk type='file' device='cdrom'><target dev='sdz' bus='sata'/></disk>
    <disk type='file' device='disk'><source file='/a'/><target dev='sdb' bus='scsi'/><serial>a,b</serial><boot order='2'/>
      <address type='drive' controller='1' bus='0' target='0' unit='0'/></disk>
    <disk type='file' device='disk'><source file='/b'/><target dev='vda' bus='virtio'/><boot order='1'/></disk>
    <disk type='file' device='disk'><source file='/c'/><target dev='sdc' bus='sata'/></disk>
    <disk type='file' device='disk'><source file='/d'/><target dev='xvda' bus='xen'/></disk>
    <disk type='file' device='disk'><source file='/e'/><target dev='vdz' bus='virtio'/></disk>
    <controller type='scsi' index='0' model='lsilogic'/><controller type='scsi' index='1' model='virtio-scsi'/>
    <interface type='network'><mac address='52:54:00:11:22:33'/><model type='e1000e'/></interface>
    <tpm model='tpm-crb'/><hostdev mode='subsystem' type='pci'/>
  </devices></domain>"""
QEMU_HELP = "Supported machines are:\nmicrovm  microvm\npc    Standard PC (alias of pc-i440fx-7.2)\npc-q35-7.2   Standard PC\n"
ESP, BIOS_BOOT = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "21686148-6449-6e6f-744e-656564454649"


class Bytes:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise ValueError
        return self.content[offset : offset + length]


def gpt(*kinds: str, sector: int = 512) -> Bytes:
    header = b"EFI PART" + bytes(64) + struct.pack("<QIII", 2, 128, 128, 0)
    entries = b"".join(UUID(kind).bytes_le + bytes(112) for kind in kinds)
    return Bytes((bytes(sector) + header.ljust(sector, b"\0") + entries).ljust(1 << 20, b"\0"))


def test_a_definition_is_followed() -> None:
    machine = defined_machine(DEFINED, ["vda", "sdb", "sdc", "xvda", "vdx"])
    assert (machine.kind, machine.memory, machine.cpus, machine.uuid) == (
        "pc-q35-9.1",
        4 << 30,
        2,
        "6a0ac472-495a-4ca2-95f7-8bbf4dc88772",
    )
    assert (machine.uefi, machine.secure, machine.loader) == (True, True, "/usr/share/OVMF/OVMF_CODE_4M.ms.fd")
    assert machine.local_clock
    assert machine.card == Card("e1000e", "52:54:00:11:22:33")
    assert machine.disks == (
        MachineDisk("sdb", Bus.scsi, "virtio-scsi-pci", "a,b", 2),
        MachineDisk("vda", Bus.virtio, "lsi53c895a", "", 1),
        MachineDisk("sdc", Bus.sata, "lsi53c895a"),
        MachineDisk("xvda", Bus.virtio, "lsi53c895a"),
        MachineDisk("vdx", Bus.scsi),
    )
    assert [remark.partition(":")[0] for remark in machine.remarks] == [
        "its disk xvda is on virtio, as there is no xen bus here",
        "it runs without its disk vdz",
        "disk vdx is not in the definition",
        "it has no TPM here",
        "devices of its host are not passed through",
    ]


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ("<memory>2048</memory>", 2 << 20),
        ("<memory unit='GiB'>2</memory>", 2 << 30),
        ("<memory unit='MB'>3</memory>", 3_000_000),
        ("", 1 << 30),
    ],
)
def test_units_of_memory(memory: str, expected: int) -> None:
    assert defined_machine(f"<domain>{memory}</domain>", ["vda"]).memory == expected


@pytest.mark.parametrize(
    "inside",
    [
        "<memory>much</memory>",
        "<memory unit='hogshead'>1</memory>",
        "<memory>0</memory>",
        "<vcpu>-1</vcpu>",
        "<os><type arch='aarch64' machine='virt'>hvm</type></os>",
    ],
)
def test_what_no_pc_has_is_refused(inside: str) -> None:
    with pytest.raises(Corrupt):
        defined_machine(f"<domain>{inside}</domain>", ["vda"])


def test_a_hostile_address_of_a_card_is_not_passed_on() -> None:
    card = "<mac address='52:54:00:11:22,romfile=/x'/><model type='evil,x'/>"
    assert defined_machine(f"<domain><devices><interface>{card}</interface></devices></domain>", ["vda"]).card == Card()


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_disk_without_definition_says_by_its_table_whether_it_has_uefi(sector: int) -> None:
    assert needs_uefi(gpt(ESP, sector=sector))
    assert not needs_uefi(gpt(ESP, BIOS_BOOT, sector=sector))
    assert not needs_uefi(Bytes(bytes(1 << 20)))
    assert not needs_uefi(Bytes(b""))
    assert usual_machine({"vda": gpt(ESP), "vdb": Bytes(b"")}).kind == "q35"
    assert usual_machine({"vda": Bytes(b""), "vdb": gpt(ESP)}).kind == "pc"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("pc-q35-7.2", "pc-q35-7.2"),
        ("pc-q35-9.1", "pc-q35-7.2"),
        ("pc-q35-7.1", "pc-q35-2.10"),
        ("pc-q35-2.9", "pc-q35-2.10"),
        ("pc-q35-noble", "q35"),
        ("pc-q35-rhel9.4.0", "q35"),
        ("pc-i440fx-9.0", "pc-i440fx-2.12"),
        ("pc-0.14", "pc"),
        ("pc", "pc"),
    ],
)
def test_the_nearest_machine_type(wanted: str, expected: str) -> None:
    there = ["pc", "q35", "pc-q35-7.2", "pc-q35-2.10", "pc-i440fx-2.12", "pc-i440fx-2.9", "microvm"]
    assert nearest(wanted, there) == expected


def test_machine_types() -> None:
    assert listed(QEMU_HELP) == ["microvm", "pc", "pc-q35-7.2"]
    for other in ("microvm", "virt-7.2", "xenfv"):
        with pytest.raises(Corrupt):
            nearest(other, ["microvm", "pc"])


def firmware(folder: Path, *names: str) -> list[str]:
    for name in names:
        large = "_4M" in name
        variables = (540_672 if large else 131_072) if "VARS" in name else 0
        (folder / name).write_bytes(bytes(variables or (4 << 20) - 540_672 if large else variables or (2 << 20) - 131_072))
    return [str(folder)]


def test_uefi_is_chosen_by_the_size_of_its_variables(tmp_path: Path) -> None:
    folders = firmware(tmp_path, "OVMF_CODE.fd", "OVMF_CODE_4M.fd", "OVMF_CODE.secboot.fd", "OVMF_VARS.fd", "OVMF_VARS_4M.fd")
    machine = Machine((), uefi=True)
    assert flash_for(machine, bytes(540_672), folders).code.endswith("/OVMF_CODE_4M.fd")
    assert flash_for(machine, bytes(131_072), folders).code.endswith("/OVMF_CODE.fd")
    fresh = flash_for(machine, None, folders)
    assert (fresh.code.rpartition("/")[2], len(fresh.variables), fresh.secure) == ("OVMF_CODE_4M.fd", 540_672, False)
    secure = flash_for(Machine((), uefi=True, secure=True), bytes(131_072), folders)
    assert (secure.code.rpartition("/")[2], secure.secure) == ("OVMF_CODE.secboot.fd", True)
    named = Machine((), uefi=True, loader=str(tmp_path / "OVMF_CODE.secboot.fd"))
    assert flash_for(named, bytes(131_072), [str(tmp_path / "elsewhere"), *folders]).secure
    (tmp_path / "mine").write_bytes(bytes((2 << 20) - 100))
    with pytest.raises(NotFound):
        flash_for(Machine((), uefi=True, loader=str(tmp_path / "mine")), bytes(100), folders)
    image = b"QFI\xfb" + bytes(4) + bytes(8) + bytes(8) + struct.pack(">Q", 131_072) + bytes(100)
    found = flash_for(machine, image, folders)
    assert (found.code.rpartition("/")[2], found.format, found.variables) == ("OVMF_CODE.fd", "qcow2", image)


def test_variables_that_are_none_are_refused(tmp_path: Path) -> None:
    folders = firmware(tmp_path, "OVMF_CODE.fd")
    for nvram in (bytes(100), None):
        with pytest.raises(NotFound, match="OVMF"):
            flash_for(Machine((), uefi=True), nvram, folders)
    backed = b"QFI\xfb" + struct.pack(">IQIIQ", 2, 104, 9, 0, 131_072) + bytes(72) + b"/etc/hosts"
    external = b"QFI\xfb" + struct.pack(">IQIIQ40xQ", 3, 0, 0, 0, 131_072, 1 << 2) + bytes(24) + b"/etc/hosts"
    for elsewhere in (backed, external):
        with pytest.raises(Failed, match="another file"):
            flash_for(Machine((), uefi=True), elsewhere, folders)


def files(**contents: str) -> Files:
    named = {name.replace("_", "."): text.encode() for name, text in contents.items()}
    return Files({name: len(text) for name, text in named.items()}, named.__getitem__)


def test_a_plan_says_what_differs() -> None:
    disks = {"vda": Bytes(bytes(4096))}
    types = ["pc", "q35", "pc-q35-7.2"]
    usual = planned(disks, files(), Wishes(), types)
    assert (usual.machine, usual.flash) == (Machine((MachineDisk("vda", Bus.virtio),), kind="pc"), None)
    assert "no definition" in usual.remarks[0]
    (other,) = planned(disks, files(), Wishes(cpus=4, bus=Bus.sata), types).remarks
    assert "it is a PC with BIOS, 1024 MiB, 4 CPU, and disks on sata" in other
    xml = "<domain><memory unit='GiB'>4</memory><vcpu>8</vcpu><os><type machine='pc-q35-8.0'>hvm</type></os></domain>"
    found = planned(disks, files(web1_xml=xml), Wishes(memory=256 << 20, bus=Bus.sata), types)
    assert (found.machine.kind, found.machine.memory, found.machine.cpus) == ("pc-q35-7.2", 256 << 20, 8)
    assert found.machine.disks[0].bus == Bus.sata
    assert "its machine type pc-q35-8.0 is not there: pc-q35-7.2" in found.remarks
    with pytest.raises(Failed, match="cannot be used"):
        planned(disks, files(domain_xml="<network/>"), Wishes(), types)
