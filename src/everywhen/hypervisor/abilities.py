# SPDX-License-Identifier: AGPL-3.0-or-later
"""What domains a libvirt host may have: architectures, machine types, emulators, acceleration (libvirt: formatcaps.html)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET


@dataclass(frozen=True, slots=True)
class Abilities:
    """By architecture: names of machine types, kinds of domains (`qemu`, `kvm`), the emulator's path. `memory`: of the host,
    in bytes, 0 where it does not say."""

    machines: Mapping[str, frozenset[str]]
    kinds: Mapping[str, frozenset[str]]
    emulators: Mapping[str, str]
    memory: int


def abilities_of(xml: str) -> Abilities:
    """From libvirt's capabilities."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own
    machines: dict[str, frozenset[str]] = {}
    kinds: dict[str, frozenset[str]] = {}
    emulators: dict[str, str] = {}
    for arch in root.iterfind("guest/arch"):
        name = arch.get("name", "")
        # Machine types that one kind of domain alone has are below its element.
        machines[name] = frozenset(one.text or "" for one in arch.iter("machine"))
        kinds[name] = frozenset(one.get("type", "") for one in arch.iterfind("domain"))
        emulators[name] = arch.findtext("emulator", "")
    memory = sum(int(cell.text or 0) << 10 for cell in root.iterfind("host/topology/cells/cell/memory[@unit='KiB']"))
    return Abilities(machines, kinds, emulators, memory)
