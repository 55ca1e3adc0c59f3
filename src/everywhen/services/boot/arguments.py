# SPDX-License-Identifier: AGPL-3.0-or-later
"""What QEMU is told for a machine (QEMU: qemu-system-x86_64(1), docs/pcie.txt, docs/specs/vmgenid).

Nothing is there that is not named: no configuration file of the host, no network card, no window. The process may start no
other one and gain no rights (`-sandbox`): its guest's programs are not ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from everywhen.services.boot.firmware import Flash
from everywhen.services.boot.machine import Machine, MachineDisk
from everywhen.services.failures import Failed

AGENT_CHANNEL = "org.qemu.guest_agent.0"
_MIB = 1 << 20
_AHCI_PORTS = 6


@dataclass(frozen=True, slots=True)
class Places:
    """Where QEMU finds its disks (NBD exports, by disk, at one socket), its UEFI variables, and its ends of the monitor, the
    console and the agent's channel."""

    exports: Mapping[str, str]
    nbd: str
    variables: str
    monitor_fd: int
    console_fd: int
    agent: str


def arguments(name: str, machine: Machine, flash: Flash | None, places: Places, *, kvm: bool, network: bool) -> list[str]:
    """All but the program's name. `machine.kind` must be one that this QEMU has. Raises Failed for what no PC can have."""
    secure = flash is not None and flash.secure
    found = ["-nodefaults", "-no-user-config", "-name", f"guest={_word(name)}"]
    found += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    found += ["-machine", machine.kind + (",smm=on" if secure else "")]
    for accelerator in ("kvm", "tcg") if kvm else ("tcg",):
        found += ["-accel", accelerator]
    found += ["-cpu", "max", "-smp", str(machine.cpus), "-m", f"{max(1, machine.memory // _MIB)}M"]
    found += ["-rtc", f"base={'localtime' if machine.local_clock else 'utc'}"]
    found += ["-uuid", machine.uuid] if machine.uuid else []
    found += ["-display", "none", "-vga", "std", "-device", "vmgenid,guid=auto"]
    found += _firmware(flash, places.variables)
    found += ["-chardev", f"socket,id=monitor,fd={places.monitor_fd}", "-mon", "chardev=monitor,mode=control"]
    found += ["-chardev", f"socket,id=console,fd={places.console_fd}", "-serial", "chardev:console"]
    found += ["-chardev", f"socket,id=agent,path={_word(places.agent)},server=on,wait=off", "-device", "virtio-serial-pci"]
    found += ["-device", f"virtserialport,chardev=agent,name={AGENT_CHANNEL}"]
    found += [*_disks(machine, places), *_network(machine, there=network)]
    return found


def _firmware(flash: Flash | None, variables: str) -> list[str]:
    if flash is None:
        return []
    found = ["-blockdev", f"driver=raw,node-name=code,read-only=on,file.driver=file,file.filename={_word(flash.code)}"]
    found += ["-blockdev", f"driver={flash.format},node-name=variables,file.driver=file,file.filename={_word(variables)}"]
    found += ["-machine", "pflash0=code,pflash1=variables"]
    if flash.secure:
        found += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        found += ["-global", "ICH9-LPC.disable_s3=1"]  # a guest that sleeps would wake up past the protection (edk2)
    return found


def _network(machine: Machine, *, there: bool) -> list[str]:
    if not there:
        return ["-nic", "none"]
    address = f",mac={machine.card.mac}" if machine.card.mac else ""
    return ["-netdev", "user,id=network", "-device", f"{machine.card.device},netdev=network{address}"]


def _disks(machine: Machine, places: Places) -> list[str]:
    slots = _Slots(machine)
    ordered = any(disk.order for disk in machine.disks)
    found: list[str] = []
    for number, disk in enumerate(machine.disks, 1):
        node = f"disk{number}"
        export = f"export={_word(places.exports[disk.name])}"
        found += [
            "-blockdev",
            f"driver=nbd,node-name={node},discard=unmap,server.type=unix,server.path={_word(places.nbd)},{export}",
        ]
        controllers, device = slots.device(disk)
        for controller in controllers:
            found += ["-device", controller]
        boot = disk.order if ordered else number
        words = [device, f"drive={node}", f"id=device{number}", "werror=report", "rerror=report"]
        words += [f"bootindex={boot}"] if boot else []
        words += [f"serial={_word(disk.serial)}"] if disk.serial else []
        found += ["-device", ",".join(words)]
    return found


class _Slots:
    """Places at controllers, given out in turn."""

    def __init__(self, machine: Machine) -> None:
        self._q35 = machine.is_q35
        self._sata = self._ports(own=self._q35)
        self._ide = iter([f"bus=ide.{bus},unit={unit}" for bus in (0, 1) for unit in (0, 1)])
        self._scsi: dict[str, tuple[str, int]] = {}
        self._usb = False

    def device(self, disk: MachineDisk) -> tuple[list[str], str]:
        """Controllers that must be there before, and the device. Raises Failed."""
        if disk.bus == "scsi":
            return self._scsi_device(disk)
        if disk.bus == "sata" or (disk.bus == "ide" and self._q35):
            controllers, place = next(self._sata)
            return controllers, f"ide-hd,{place}"
        if disk.bus == "ide":
            place = next(self._ide, "")
            if not place:
                raise Failed("An IDE controller has four disks at most; this VM would have more.", do=["--bus sata"])
            return [], f"ide-hd,{place}"
        if disk.bus == "usb":
            first, self._usb = not self._usb, True
            return ["qemu-xhci,id=usb"] if first else [], "usb-storage,bus=usb.0"
        return [], "virtio-blk-pci"

    def _scsi_device(self, disk: MachineDisk) -> tuple[list[str], str]:
        name, taken = self._scsi.get(disk.controller, (f"scsi{len(self._scsi)}", 0))
        self._scsi[disk.controller] = name, taken + 1
        return [] if taken else [f"{disk.controller},id={name}"], f"scsi-hd,bus={name}.0,scsi-id={taken}"

    @staticmethod
    def _ports(*, own: bool) -> Iterator[tuple[list[str], str]]:
        """Ports of SATA, six at a controller; a Q35 has one of its `own`."""
        if own:
            yield from (([], f"bus=ide.{port}") for port in range(_AHCI_PORTS))
        controller = 0
        while True:
            for port in range(_AHCI_PORTS):
                yield [] if port else [f"ich9-ahci,id=ahci{controller}"], f"bus=ahci{controller}.{port}"
            controller += 1


def _word(text: str) -> str:
    """In QEMU's lists of options a comma is doubled."""
    return text.replace(",", ",,")
