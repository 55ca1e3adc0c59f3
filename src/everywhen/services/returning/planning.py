# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a moment and what is asked for to all that a VM on this host will be; everything is looked at, nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID
from xml.etree import ElementTree as ET

from everywhen.capture.domain_files import DEFINITION, LIBVIRT_STATE, NVRAM, RUNNING, TPM
from everywhen.capture.domain_xml import domain_element, parse_domain
from everywhen.formats.errors import Corrupt
from everywhen.hypervisor.abilities import Abilities
from everywhen.hypervisor.host import KnownDomain, Pool, VmHost
from everywhen.services.definition_files import Files, definition_name, read_small
from everywhen.services.failures import Failed, NotFound
from everywhen.services.returning.definition import Changes, Copy, Rewritten, rewritten, without_cpu
from everywhen.services.returning.device_xml import Network
from everywhen.services.returning.disk_xml import DefinedDisk, Placement, Without, disks_of
from everywhen.services.returning.identity import firmware, free_identity, known_machine, memory, network_for
from everywhen.services.returning.placing import DiskPlace, NoPlace, Places, Wanted
from everywhen.services.returning.room import room, twice
from everywhen.services.returning.state_files import StateFile, TpmState, Variables
from everywhen.services.returning.wishes import As, Check, State, Wishes, failed, warned

_VARIABLES = LIBVIRT_STATE / "qemu" / "nvram"
"""Where libvirt makes them for a domain that does not say where."""


@dataclass(frozen=True, slots=True)
class Returning:
    """A moment that is to be a VM again: its VM's name here, how it is called in commands, its disks, its files."""

    vm: str
    moment: str
    disks: Sequence[Wanted]
    files: Files


@dataclass(frozen=True, slots=True)
class Surrounding:
    """What is on the host already."""

    domains: Sequence[KnownDomain]
    abilities: Abilities
    networks: dict[str, bool]
    pools: Sequence[Pool]

    @classmethod
    def of(cls, host: VmHost) -> Surrounding:
        """As it is now. Raises MonitorError."""
        return cls(host.domains(), host.abilities(), host.networks(), host.pools())


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be made. `checks`: all, also those that failed."""

    name: str
    made: Rewritten
    places: Sequence[DiskPlace]
    states: Sequence[StateFile]
    network: Network
    checks: Sequence[Check]
    remarks: Sequence[str]


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a return that was killed has left, and this one goes on with: paths of complete images; of others (or `POOL/VOLUME`)
    that were begun; the domain's UUID; whether it may be defined already."""

    complete: frozenset[str] = frozenset()
    begun: frozenset[str] = frozenset()
    uuid: str = ""
    defined: bool = False


def planned(returning: Returning, wishes: Wishes, host: VmHost, randomness: Callable[[int], bytes], earlier: Earlier) -> Plan:
    """What is to be made there.

    Raises NotFound, Failed where the moment has no definition that can be used; MonitorError, what reading the moment raises.
    """
    chosen, running = _definition(returning)
    try:
        return _Planner(returning, wishes, host, randomness, earlier).plan(chosen, running)
    except Corrupt as error:
        raise Failed(f"The definition of {returning.moment} cannot be used: {error}.", do=[_disks_alone(returning)]) from error


def name_for(returning: Returning, wishes: Wishes) -> str:
    """What the domain will be called. Raises as `planned` does."""
    if wishes.name:
        return wishes.name
    try:
        known = parse_domain(_definition(returning)[0])
    except Corrupt as error:
        raise Failed(f"The definition of {returning.moment} cannot be used: {error}.", do=[_disks_alone(returning)]) from error
    return f"{known.name}-restored" if wishes.kind is As.new else known.name


def _definition(returning: Returning) -> tuple[str, str | None]:
    """The XML as it would be started next, else as it ran; and that as it ran, where there is one."""
    name = definition_name(returning.files.sizes, (DEFINITION, RUNNING))
    by_hand = _disks_alone(returning)
    if name is None:
        raise NotFound(
            f"{returning.moment} has no definition: its disks were backed up alone.",
            on=returning.vm,
            safe="Nothing was written.",
            do=[by_hand, f"A copy of it, with the machine that is usual: everywhen boot {returning.moment}"],
        )
    texts = {
        one: read_small(returning.files, one, do=by_hand).decode(errors="replace")
        for one in (name, RUNNING)
        if one in returning.files.sizes
    }
    return texts[name], texts.get(RUNNING)


def _disks_alone(returning: Returning) -> str:
    return f"Its disks, for a VM that you define yourself: everywhen restore {returning.moment} --to DIR/"


class _Planner:
    def __init__(
        self, returning: Returning, wishes: Wishes, host: VmHost, randomness: Callable[[int], bytes], earlier: Earlier
    ) -> None:
        self._returning = returning
        self._wishes = wishes
        self._host = host
        self._randomness = randomness
        self._earlier = earlier
        self._there = Surrounding.of(host)
        self._checks: list[Check] = []
        self._remarks: list[str] = []

    def plan(self, xml: str, running: str | None) -> Plan:
        root = domain_element(xml)
        known = parse_domain(xml)
        ran = None if running is None else parse_domain(running)
        kind, wishes = self._wishes.kind, self._wishes
        fresh = UUID(self._earlier.uuid) if self._earlier.uuid else UUID(bytes=self._randomness(16), version=4)
        uuid = fresh if kind is As.new else UUID(known.uuid)
        name = name_for(self._returning, wishes)
        ours = str(uuid) if self._earlier.defined else ""
        others = [domain for domain in self._there.domains if (domain.name, domain.uuid) != (name, ours)]
        self._checks += free_identity(others, name, None if kind is As.new else uuid, self._rollback())
        machine = known_machine(root, self._there.abilities, wishes.machine, self._returning.moment)
        self._checks += machine
        self._checks += memory(root, self._there.abilities)
        places, placements = self._disks(root, name)
        network, found = network_for(root, wishes, self._there.networks)
        self._checks += found
        nvram = known.nvram or (ran.nvram if ran is not None else None)
        states = self._states(name, uuid, nvram, uefi=known.chosen_firmware or nvram is not None, tpm=known.emulated_tpm)
        variables = next((state for state in states if isinstance(state, Variables)), None)
        checked, loader = firmware(root, None if variables is None else variables.content)
        self._checks += [checked] if checked is not None else []
        changes = Changes(
            placements,
            UUID(bytes=self._randomness(16), version=4),
            name=name,
            copy=Copy(uuid, self._randomness) if kind is As.new else None,
            network=network,
            running=running,
            machine=wishes.machine,
            loader=loader,
            nvram=None if variables is None else variables.path,
            emulator=self._emulator(root),
        )
        made = rewritten(xml, changes)
        self._remarks += made.remarks
        if all(check.state is not State.failed for check in machine):
            self._ask(made.xml, name)
        return Plan(name, made, places, states, network, self._checks, self._remarks)

    def _rollback(self) -> str:
        return f"everywhen rollback {self._returning.moment} --libvirt {self._host.uri}"

    def _disks(self, root: ET.Element, name: str) -> tuple[list[DiskPlace], dict[str, Placement]]:
        """Where disks of the moment go; what becomes of all disks of the definition."""
        defined = {disk.name: disk for disk in disks_of(root)}
        earlier = self._earlier
        choice = Places(name, self._wishes, self._there.pools, earlier.complete, earlier.begun)
        places: list[DiskPlace] = []
        for disk in self._returning.disks:
            try:
                places.append(choice.place(disk, defined.get(disk.name)))
            except NoPlace as error:
                self._checks.append(error.check)
        self._checks += twice(places)
        self._checks += room(places, self._there.pools)
        placements: dict[str, Placement] = {place.disk.name: place.source for place in places}
        # One without a place stays in the definition, which is made for the other checks.
        placements |= {
            disk.name: Without.gone for disk in self._returning.disks if disk.name not in placements and disk.name in defined
        }
        ours = {disk.name for disk in self._returning.disks}
        placements |= {other.name: self._not_ours(other) for other in defined.values() if other.name not in ours}
        return places, placements

    def _not_ours(self, disk: DefinedDisk) -> Without:
        """A disk or drive of which the moment has nothing."""
        there = not disk.path or os.path.exists(disk.path)
        if disk.is_medium:
            if there:
                return Without.kept
            self._remarks.append(f"its drive {disk.name} is empty: {disk.path} is not here")
            return Without.empty
        where = disk.path or "/".join(disk.volume or ()) or disk.kind
        if there and (disk.readonly or self._wishes.kind is not As.new):
            self._remarks.append(f"its disk {disk.name} is not in this moment: it has {where} as that is now")
            return Without.kept
        why = "that is the original's" if there else "that is not here"
        self._remarks.append(f"it is without its disk {disk.name} ({where}): {why}, and this moment does not have it")
        return Without.gone

    def _states(self, name: str, uuid: UUID, nvram: str | None, *, uefi: bool, tpm: bool) -> list[StateFile]:
        """UEFI variables and TPM, where they go, and whether they may."""
        found: list[StateFile] = []
        sizes, by_hand = self._returning.files.sizes, _disks_alone(self._returning)
        if NVRAM in sizes:
            path = Path(nvram or _VARIABLES / f"{name}_VARS.fd")
            if self._wishes.kind is As.new:
                path = path.with_name(f"{name}_VARS{path.suffix}")
            found.append(Variables(str(path), read_small(self._returning.files, NVRAM, do=by_hand)))
        elif uefi:
            self._remarks.append("its UEFI variables are not in this moment: it starts with those of new firmware")
        if TPM in sizes:
            found.append(TpmState(str(LIBVIRT_STATE / "swtpm" / str(uuid)), read_small(self._returning.files, TPM, do=by_hand)))
        elif tpm:
            self._remarks.append("its TPM's state is not in this moment: what it sealed (BitLocker) asks for its recovery key")
        self._checks += [check for state in found if (check := state.check()) is not None]
        return found

    def _emulator(self, root: ET.Element) -> str | None:
        """Another one than the definition's, where that is not here."""
        said, kind = root.findtext("devices/emulator", ""), root.find("os/type")
        if not said or os.path.isfile(said):
            return None
        return self._there.abilities.emulators.get("" if kind is None else kind.get("arch", "")) or None

    def _ask(self, xml: str, name: str) -> None:
        """What libvirt says to the definition; of this host's processor apart, as that keeps it from starting alone."""
        objection = self._host.objection(xml)
        if not objection:
            self._checks.append(Check("libvirt takes the definition"))
        elif self._host.objection(without_cpu(xml)):
            edited = f"Its files, to change {DEFINITION} in: everywhen restore {self._returning.moment} --to DIR/"
            self._checks.append(failed(f"libvirt would not take the definition of {name}: {objection}.", edited))
        elif self._wishes.start:
            edit = f"Define it without --start, then change its processor: virsh edit {name}"
            self._checks.append(
                failed(f"This host's processor is not what the definition of {name} asks for: {objection}.", edit)
            )
        else:
            self._checks.append(
                warned(f"CPU: it will not start with this host's ({objection}); virsh edit {name} changes that")
            )
