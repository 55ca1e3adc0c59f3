# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which VM a name means, and how one becomes known to the repository."""

from __future__ import annotations

from dataclasses import replace

from blake3 import blake3

from everywhen.repository.ledger import Ledger, Vm
from everywhen.repository.repository import Repository
from everywhen.services.catalog import Catalog
from everywhen.services.failures import WrongUsage
from everywhen.storage.base import AlreadyExists


def vm_by_name(repository: Repository, catalog: Catalog, name: str) -> tuple[Vm, bool]:
    """The VM of that name, and whether it is known.

    Images given by hand have no hypervisor's UUID: the identity follows from the name, so that two first backups at the
    same time make one VM.
    """
    for vm in catalog.vms:
        if vm.name == name:
            return vm, True
    identity = blake3(b"vm by name\0" + name.encode(), key=_key(repository)).hexdigest(16)
    return Vm(identity, name, name, "", "", repository.surroundings.clock()), False


def vm_of(repository: Repository, catalog: Catalog, name: str, source: str, uuid: str) -> tuple[Vm, bool]:
    """The VM of that name, bound to its hypervisor's name and UUID of it ('': nobody says), and whether it is known so.

    A name stays with its VM, and a VM with its name, whatever the hypervisor calls it. Raises WrongUsage.
    """
    vm, known = vm_by_name(repository, catalog, name)
    if not uuid:
        return vm, known
    other = next((one for one in catalog.vms if one.uuid == uuid and one.name != name), None)
    if other is not None:
        raise WrongUsage(
            f'This VM is called "{other.name}" here.', on=name, safe="Nothing was read or changed.", do=[f"Say {other.name}."]
        )
    if vm.uuid and vm.uuid != uuid:
        raise WrongUsage(
            f'"{name}" is another VM here: its UUID was {vm.uuid}, and that of {source} is {uuid}.',
            on=name,
            safe="Nothing was read or changed.",
            do=["Choose another name for this one: everywhen protect NAME --domain DOMAIN"],
        )
    if not known:
        vm = replace(vm, vm=blake3(b"vm by uuid\0" + uuid.encode(), key=_key(repository)).hexdigest(16))
    bound = replace(vm, source=source, uuid=uuid)
    return bound, known and bound == vm


def record(repository: Repository, vm: Vm) -> None:
    """Make a VM known, or what its hypervisor calls it, before its next point is. Raises StorageError."""
    # Of two first backups at once the later one must not undo what was set on the VM in between.
    try:
        repository.documents.put(f"vms/{vm.vm}", vm.to_json(), if_absent=True)
    except AlreadyExists:
        if vm.uuid:
            ledger = Ledger(repository.documents)
            current = ledger.current(vm)
            ledger.put_vm(replace(current, source=vm.source, uuid=vm.uuid))


def put_into_group(repository: Repository, vm: Vm, group: str) -> Vm:
    """Let a VM, which is known, be one of a group, '' of none; as it is from then on. Raises StorageError."""
    ledger = Ledger(repository.documents)
    current = ledger.current(vm)
    ledger.put_vm(replace(current, group=group))
    return replace(vm, group=group)


def _key(repository: Repository) -> bytes:
    return repository.unlocked.keyset.naming_key
