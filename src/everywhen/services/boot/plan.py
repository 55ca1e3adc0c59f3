# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a moment and a user's wishes to the machine that is started: with what is there, and what is said where that differs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from everywhen.capture.domain_files import DEFINITION, NVRAM, RUNNING
from everywhen.formats.errors import Corrupt
from everywhen.services.boot.firmware import Flash, flash_for
from everywhen.services.boot.machine import Bus, Machine, Readable, defined_machine, usual_machine
from everywhen.services.boot.machine_types import nearest
from everywhen.services.definition_files import Files, definition_name, read_small
from everywhen.services.failures import Failed


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked for instead of what the definition says; None: as it is there. Memory in bytes."""

    memory: int | None = None
    cpus: int | None = None
    bus: Bus | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The machine, of a type that is there; what it boots from; what is to be said about it."""

    machine: Machine
    flash: Flash | None
    remarks: list[str]


def planned(disks: Mapping[str, Readable], files: Files, wishes: Wishes, machine_types: Collection[str]) -> Plan:
    """Raises Failed, NotFound, and what reading the moment raises."""
    name = definition_name(files.sizes, (RUNNING, DEFINITION))  # as it ran, or would be started
    if name is None:
        machine = usual_machine(disks)
        remarks = []
    else:
        try:
            machine = defined_machine(read_small(files, name, do=_BY_HAND).decode(errors="replace"), disks)
            kind = nearest(machine.kind, machine_types)
        except Corrupt as error:
            raise Failed(f"The VM's definition ({name}) cannot be used: {error}.", do=[_BY_HAND]) from error
        remarks = list(machine.remarks)
        if kind != machine.kind:
            remarks.append(f"its machine type {machine.kind} is not there: {kind}")
        machine = replace(machine, kind=kind)
    machine = replace(machine, memory=wishes.memory or machine.memory, cpus=wishes.cpus or machine.cpus)
    if wishes.bus is not None:
        machine = machine.on_bus(wishes.bus)
    if name is None:
        remarks.append(f"no definition in this moment: it is {_kind(machine)}; --memory, --cpus and --bus say it better")
    nvram = read_small(files, NVRAM, do=_BY_HAND) if machine.uefi and NVRAM in files.sizes else None
    return Plan(machine, flash_for(machine, nvram) if machine.uefi else None, remarks)


_BY_HAND = "Its disks as devices, for a QEMU of your own: everywhen serve nbd --overlay"


def _kind(machine: Machine) -> str:
    firmware = "UEFI" if machine.uefi else "BIOS"
    return f"a PC with {firmware}, {machine.memory >> 20} MiB, {machine.cpus} CPU, and disks on {machine.disks[0].bus}"
