# SPDX-License-Identifier: AGPL-3.0-or-later
"""What QEMU is told: disks in their order on their buses, no network unless asked for, nothing of a guest's that steers it."""

from __future__ import annotations

import pytest

from everywhen.services.boot.arguments import Places, arguments
from everywhen.services.boot.firmware import Flash
from everywhen.services.boot.machine import Bus, Card, Machine, MachineDisk
from everywhen.services.failures import Failed


def told(machine: Machine, flash: Flash | None = None, *, kvm: bool = False, network: bool = False, name: str = "web1") -> str:
    places = Places({disk.name: f"web1/{disk.name}@-1s" for disk in machine.disks}, "/t/nbd", "/t/variables", 5, 6, "/t/agent")
    return " ".join(arguments(name, machine, flash, places, kvm=kvm, network=network))


def disks(*buses: Bus, kind: str = "pc") -> Machine:
    return Machine(tuple(MachineDisk(f"d{number}", bus) for number, bus in enumerate(buses)), kind=kind)


def devices(text: str) -> list[str]:
    return [word for word in text.split() if "drive=" in word]


def test_a_whole_command_line() -> None:
    machine = Machine((MachineDisk("vda", Bus.virtio, serial="a,b"),), kind="pc", memory=256 << 20, cpus=2)
    assert told(machine) == (
        "-nodefaults -no-user-config -name guest=web1 "
        "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny "
        "-machine pc -accel tcg -cpu max -smp 2 -m 256M -rtc base=utc -display none -vga std -device vmgenid,guid=auto "
        "-chardev socket,id=monitor,fd=5 -mon chardev=monitor,mode=control "
        "-chardev socket,id=console,fd=6 -serial chardev:console "
        "-chardev socket,id=agent,path=/t/agent,server=on,wait=off -device virtio-serial-pci "
        "-device virtserialport,chardev=agent,name=org.qemu.guest_agent.0 "
        "-blockdev driver=nbd,node-name=disk1,discard=unmap,server.type=unix,server.path=/t/nbd,export=web1/vda@-1s "
        "-device virtio-blk-pci,drive=disk1,id=device1,werror=report,rerror=report,bootindex=1,serial=a,,b "
        "-nic none"
    )


def test_commas_do_not_begin_options() -> None:
    assert "guest=a,,debug-threads=on" in told(disks(Bus.virtio), name="a,debug-threads=on")


def test_a_network_only_where_it_is_asked_for() -> None:
    machine = Machine((), card=Card("e1000", "52:54:00:11:22:33"))
    assert "netdev" not in told(machine)
    assert "-netdev user,id=network -device e1000,netdev=network,mac=52:54:00:11:22:33" in told(machine, network=True)


def test_kvm_before_emulation() -> None:
    assert "-accel kvm -accel tcg" in told(disks(Bus.virtio), kvm=True)


def test_what_the_definition_says_of_the_machine() -> None:
    text = told(Machine((), uuid="6a0ac472-495a-4ca2-95f7-8bbf4dc88772", local_clock=True))
    assert "-uuid 6a0ac472-495a-4ca2-95f7-8bbf4dc88772" in text
    assert "base=localtime" in text


def test_boot_order_as_defined_or_in_turn() -> None:
    machine = Machine((MachineDisk("a", Bus.virtio), MachineDisk("b", Bus.virtio, order=3)))
    assert ["bootindex" in device for device in devices(told(machine))] == [False, True]
    assert [f"bootindex={number}" in device for number, device in enumerate(devices(told(disks(Bus.ide, Bus.ide))), 1)] == [
        True,
        True,
    ]


def test_uefi() -> None:
    flash = Flash("/usr/share/OVMF/OVMF_CODE_4M.fd", b"", "qcow2", secure=False)
    text = told(disks(Bus.virtio, kind="q35"), flash)
    assert "driver=raw,node-name=code,read-only=on,file.driver=file,file.filename=/usr/share/OVMF/OVMF_CODE_4M.fd" in text
    assert "driver=qcow2,node-name=variables,file.driver=file,file.filename=/t/variables" in text
    assert "-machine pflash0=code,pflash1=variables" in text
    assert "smm" not in text
    secure = told(disks(Bus.virtio, kind="q35"), Flash("/c", b"", "raw", secure=True))
    assert "-machine q35,smm=on" in secure
    assert "driver=cfi.pflash01,property=secure,value=on" in secure


def test_disks_find_their_places() -> None:
    on_pc = told(disks(Bus.ide, Bus.ide, Bus.ide, Bus.ide, Bus.sata, Bus.usb, Bus.usb))
    places = [device.partition(",drive")[0] for device in devices(on_pc)]
    assert places == [
        "ide-hd,bus=ide.0,unit=0",
        "ide-hd,bus=ide.0,unit=1",
        "ide-hd,bus=ide.1,unit=0",
        "ide-hd,bus=ide.1,unit=1",
        "ide-hd,bus=ahci0.0",
        "usb-storage,bus=usb.0",
        "usb-storage,bus=usb.0",
    ]
    assert on_pc.count("ich9-ahci") == on_pc.count("qemu-xhci") == 1
    on_q35 = told(disks(*[Bus.sata] * 7, Bus.ide, kind="q35"))
    assert [device.split(",")[1] for device in devices(on_q35)] == [
        *(f"bus=ide.{port}" for port in range(6)),
        "bus=ahci0.0",
        "bus=ahci0.1",
    ]
    with pytest.raises(Failed, match="four disks"):
        told(disks(*[Bus.ide] * 5))


def test_a_controller_for_each_kind_of_scsi() -> None:
    kinds = ["virtio-scsi-pci", "lsi53c895a", "virtio-scsi-pci"]
    text = told(Machine(tuple(MachineDisk(f"sd{number}", Bus.scsi, kind) for number, kind in enumerate(kinds))))
    assert text.count("virtio-scsi-pci,id=scsi0") == text.count("lsi53c895a,id=scsi1") == 1
    places = [device.partition(",drive")[0] for device in devices(text)]
    assert places == ["scsi-hd,bus=scsi0.0,scsi-id=0", "scsi-hd,bus=scsi1.0,scsi-id=0", "scsi-hd,bus=scsi0.0,scsi-id=1"]
