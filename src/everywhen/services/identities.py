# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which VM a name means, and how one becomes known to the repository."""

from __future__ import annotations

from contextlib import suppress

from blake3 import blake3

from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.catalog import Catalog
from everywhen.storage.base import AlreadyExists


def vm_by_name(repository: Repository, catalog: Catalog, name: str) -> tuple[Vm, bool]:
    """The VM of that name, and whether it is known.

    Images given by hand have no hypervisor's UUID: the identity follows from the name, so that two first backups at the
    same time make one VM.
    """
    for vm in catalog.vms:
        if vm.name == name:
            return vm, True
    key = repository.unlocked.keyset.naming_key
    identity = blake3(b"vm by name\0" + name.encode(), key=key).hexdigest(16)
    return Vm(identity, name, name, "", "", repository.surroundings.clock()), False


def record(repository: Repository, vm: Vm) -> None:
    """Make a new VM known, before its first point is. Raises StorageError."""
    # Of two first backups at once the later one must not undo what was set on the VM in between.
    with suppress(AlreadyExists):
        repository.documents.put(f"vms/{vm.vm}", vm.to_json(), if_absent=True)
