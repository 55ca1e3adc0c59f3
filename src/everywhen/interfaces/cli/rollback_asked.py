# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the arguments of `everywhen rollback` mean: VMs, and the moment of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.repository.branches import rollbacks
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.addresses import Address, branch_name, parse_address
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.groups import find_instant, members, parse_group
from everywhen.services.opening import OpenedMoment, open_at, open_moment
from everywhen.services.whens import parse_when


@dataclass(frozen=True, slots=True)
class Meant:
    """One VM: `address` names its moment, or the instant of a group does, with a WHEN."""

    vm: Vm
    address: Address | None = None
    group: str = ""
    when: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Where one VM is to go back to; `disk`: with this disk alone."""

    vm: Vm
    moment: OpenedMoment
    disk: str | None = None


def meant(catalog: Catalog, moments: Sequence[str], *, undo: bool) -> list[Meant]:
    """The VMs that are named, each once. Raises NotFound, WrongUsage."""
    found: list[Meant] = []
    for text in moments:
        if (group := parse_group(text)) is not None:
            if "@" not in text and not undo:
                raise WrongUsage(f"Back to when? Say {text}@WHEN.", on=text, safe="Nothing was changed.")
            found += [Meant(vm, group=group[0], when=group[1]) for vm in members(catalog, group[0])]
            continue
        address = parse_address(text)
        if address.path is not None:
            raise WrongUsage("This rolls back VMs and disks, not files inside them.", on=text, do=["everywhen cp"])
        if address.when is None and address.branch is None and not undo:
            raise WrongUsage(f"Back to when? Say {text}@WHEN.", on=text, safe="Nothing was changed.")
        found.append(Meant(catalog.vm(address.vm), address))
    twice = [one.vm.name for at, one in enumerate(found) if one.vm in [other.vm for other in found[:at]]]
    if twice:
        raise WrongUsage(f"{twice[0]} is named twice.", on=twice[0], safe="Nothing was changed.")
    return found


def targets(context: Context, repository: Repository, found: Sequence[Meant], *, undo: bool, exact: bool) -> list[Target]:
    """The moment of each. Raises NotFound, WrongUsage, Damaged, StorageError."""
    for one in found:
        ship_newest(context, one.vm.name)
    catalog, now = read_catalog(repository), repository.surroundings.clock()
    made: list[Target] = []
    for one in found:
        if undo or one.address is not None:
            address = _left(catalog, one.vm) if undo else one.address
            if address is None:
                raise ValueError("neither a moment nor a group")
            _, opened = open_moment(repository, catalog, address, now_ns=now, zone=context.zone, exact=exact)
            context.output.line(opened.found.words(_named(one.vm, address), context.zone))
            made.append(Target(one.vm, opened, address.disk))
    for group in dict.fromkeys((one.group, one.when) for one in found if one.group and not undo):
        when = parse_when(group[1], now_ns=now, zone=context.zone)
        instant = find_instant(repository, catalog, group[0], when, now_ns=now, zone=context.zone)
        context.output.line(instant.words(context.zone))
        made += [Target(vm, open_at(repository, catalog, vm, instant.time_ns, zone=context.zone)) for vm in instant.vms]
    return made


def _left(catalog: Catalog, vm: Vm) -> Address:
    """What the VM's last rollback left. Raises NotFound."""
    turns = rollbacks(catalog.history_of(vm))
    if not turns:
        raise NotFound(f"{vm.name} was never rolled back, as far as moments are kept.", on=vm.name, safe="Nothing was changed.")
    return Address(vm.name, branch=max(turns))


def _named(vm: Vm, address: Address) -> str:
    return vm.name if address.branch is None else branch_name(vm.name, address.branch)
