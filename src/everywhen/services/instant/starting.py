# SPDX-License-Identifier: AGPL-3.0-or-later
"""With what a VM that runs from the backup begins: the moment that was asked for, or, after a kill, the newest one there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from everywhen.formats.point import RecoveryPoint, RolledBack
from everywhen.repository.branches import next_branch
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.addresses import Address
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.failures import NotFound
from everywhen.services.instant.line import Start
from everywhen.services.journal_reach import reached_ns
from everywhen.services.opening import OpenedMoment
from everywhen.services.protect.spool_import import import_left
from everywhen.services.timeline import newest_captured


def brought_in(repository: Repository, vm: Vm, spool: Path, alive: Callable[[], None]) -> RecoveryPoint | None:
    """What earlier runs left in the VM's spool on this host becomes durable in the repository; the point of its last moment.

    Raises ForeignSpool, SpoolInUse, SpoolDamaged, StorageError, Damaged, OSError.
    """
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    catalog = read_catalog(repository)
    points = [*catalog.points_of(vm), *(point for point in catalog.dropped_points if point.vm == vm.vm)]
    left = import_left(repository, spool, points, alive, all_known=not catalog.unreadable_points)
    return left.point if left else None


def start_at(repository: Repository, catalog: Catalog, vm: Vm, base: OpenedMoment) -> Start:
    """The VM begins again with `base`. Raises NotFound, Damaged, StorageError."""
    newest = catalog.newest(vm)
    if newest is None:
        raise NotFound(f"{vm.name} has no moment.", on=vm.name)
    captured = newest_captured(catalog.history_of(vm))
    reached = reached_ns(repository, captured, exactly=True) if captured else None
    known = max(newest.time_ns, reached or 0)
    moment = base.found.moment
    every = [*catalog.points_of(vm), *(point for point in catalog.dropped_points if point.vm == vm.vm)]
    back = RolledBack(base.point.point, moment.time_ns, next_branch(every)) if moment.time_ns < known else None
    return Start(base, newest, back, known)


def start_again(catalog: Catalog, vm: Vm) -> tuple[Address, RecoveryPoint]:
    """Where the newest moment is that a run before has brought about, once what it left is brought in. Raises NotFound."""
    newest = catalog.newest(vm)
    if newest is None:
        raise NotFound(f"{vm.name} has no moment.", on=vm.name)
    return Address(vm.name, when=newest.point), newest
