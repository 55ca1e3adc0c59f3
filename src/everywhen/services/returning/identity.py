# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether a VM may have its name, its UUID, its hardware and its networks on a host; each refusal names its way out."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from uuid import UUID
from xml.etree import ElementTree as ET

from everywhen.formats.errors import Corrupt
from everywhen.hypervisor.abilities import Abilities
from everywhen.hypervisor.host import KnownDomain
from everywhen.services.boot.firmware import flash_for
from everywhen.services.boot.machine import Machine, memory_of
from everywhen.services.boot.machine_types import nearest
from everywhen.services.failures import Failure, NotFound
from everywhen.services.returning.device_xml import AsBefore, Connected, Network, Unconnected, networks_of
from everywhen.services.returning.wishes import As, Check, Wishes, failed, warned
from everywhen.services.sizes import size
from everywhen.services.spelling import nearest as spelled

_BRIDGES = "/sys/class/net"


def free_identity(domains: Sequence[KnownDomain], name: str, uuid: UUID | None, rollback: str) -> list[Check]:
    """Name and UUID; `uuid` None: it gets a new one. `rollback`: the command by which a VM is set back where it is."""
    beside = f"Beside it, with a UUID of its own: --as new --name {name}-restored"
    same_name = next((one for one in domains if one.name == name), None)
    same_uuid = next((one for one in domains if uuid is not None and one.uuid == str(uuid)), None)
    there = same_uuid or same_name
    if there is None:
        return [Check("name free"), Check("UUID free" if uuid is not None else "new UUID")]
    state = "running" if there.runs else "off"
    if same_name is None:
        what = f'The domain "{there.name}" ({state}) has its UUID {uuid}: it is the same VM, renamed, or a copy of it.'
        return [failed(what, beside)]
    what = f'There is a domain "{name}" already (UUID {same_name.uuid}, {state}).'
    if uuid is None:
        return [failed(what, "Another name: --name NAME")]
    back = [f"It is the same VM: set it back where it is: {rollback}"] if there.uuid == same_name.uuid == str(uuid) else []
    first = "shut it down, then " if same_name.runs else ""
    return [failed(what, *back, beside, f"In its place: {first}virsh undefine {name} --nvram (its images stay)")]


def known_machine(root: ET.Element, abilities: Abilities, wanted: str | None, moment: str) -> list[Check]:
    """Architecture, machine type and acceleration."""
    kind = root.find("os/type")
    arch = "" if kind is None else kind.get("arch", "")
    said = "" if kind is None else kind.get("machine", "")
    if arch not in abilities.machines:
        there = ", ".join(sorted(abilities.machines))
        return [
            failed(
                f"No QEMU here emulates {arch or 'its architecture'}; there are: {there}.",
                "Install it: apt-get install qemu-system",
            )
        ]
    checks = [_machine(wanted or said, abilities.machines[arch])]
    by = root.get("type", "")
    if by not in abilities.kinds[arch]:
        checks.append(
            failed(
                f"This host has no acceleration by {by}, which its definition wants."
                if by != "kvm"
                else "KVM cannot be used on this host.",
                "modprobe kvm_intel or kvm_amd; where that fails, it is switched off in the BIOS, or not passed into this VM",
                f"A copy in software emulation, slow: everywhen boot {moment}",
            )
        )
    return checks


def _machine(machine: str, there: Collection[str]) -> Check:
    if machine in there:
        return Check(f"machine type {machine}")
    try:
        near = nearest(machine, there)
    except Corrupt:
        return failed(f"There is no machine type {machine} here.", "Install a QEMU that has it", kind=NotFound)
    newest = f"It may start with {near}: --machine {near}"
    return failed(
        f"There is no machine type {machine} here; the nearest is {near}.", newest, "Update QEMU on this host", kind=NotFound
    )


def memory(root: ET.Element, abilities: Abilities) -> list[Check]:
    """Whether the host has as much as it wants."""
    try:
        wanted = memory_of(root.find("memory"))
    except Corrupt as error:
        return [failed(f"The definition cannot be used: {error}.")]
    if 0 < abilities.memory < wanted:
        return [warned(f"memory: it wants {size(wanted)}, this host has {size(abilities.memory)}; virsh edit changes that")]
    return []


def firmware(root: ET.Element, variables: bytes | None) -> tuple[Check | None, str | None]:
    """Of what its UEFI is here; the file, where it is another one than the definition says."""
    loader = root.find("os/loader")
    path = "" if loader is None else (loader.text or "").strip()
    if loader is None or not path:
        return None, None
    if os.path.isfile(path):
        return Check("firmware"), None
    secure = loader.get("secure") == "yes"
    try:
        flash = flash_for(Machine((), uefi=True, loader=path, secure=secure), variables)
    except Failure as error:
        return failed(f"The firmware {path} is not here. {error.what}", *error.do, kind=NotFound), None
    return warned(f"firmware: {path} is not here, it gets {flash.code}"), flash.code


def network_for(root: ET.Element, wishes: Wishes, networks: Mapping[str, bool]) -> tuple[Network, list[Check]]:
    """Where its cards lead to, and whether that is there."""
    asked = wishes.network or ("none" if wishes.kind is As.new else "as-before")
    if asked == "none" or not root.findall("devices/interface"):
        return Unconnected(), []
    if asked == "as-before":
        return AsBefore(), [_there(one, networks, start=wishes.start) for one in networks_of(root)]
    one = Connected(asked) if asked in networks or not _is_bridge(asked) else Connected(asked, "bridge")
    return one, [_there(one, networks, start=wishes.start)]


def _there(one: Connected, networks: Mapping[str, bool], *, start: bool) -> Check:
    if one.kind == "bridge" and _is_bridge(one.name):
        return Check(f"bridge {one.name}")
    if one.kind == "network" and networks.get(one.name):
        return Check(f"network {one.name}")
    if one.kind == "network" and one.name in networks:
        what = f'network "{one.name}" is not active: virsh net-start {one.name}'
        return failed(f'The network "{one.name}" is not active.', f"virsh net-start {one.name}") if start else warned(what)
    close = spelled(one.name, networks)
    hint = f" Close: {close[0]}." if close else f" There are: {', '.join(sorted(networks))}." if networks else " There is none."
    what = "bridge" if one.kind == "bridge" else "network"
    return failed(
        f'There is no {what} "{one.name}" here.{hint}',
        "Without a connection: --network none",
        "Another: --network NAME",
        kind=NotFound,
    )


def _is_bridge(name: str) -> bool:
    return "/" not in name and os.path.isdir(os.path.join(_BRIDGES, name, "bridge"))
