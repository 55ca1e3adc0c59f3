# SPDX-License-Identifier: AGPL-3.0-or-later
"""How much there is: in all, and by VM. What is shared, and what would come free, is found by `freeing.py`.

- `logical_bytes`: what all moments would take as plain images side by side, blocks of zeroes left out.
- `unique_bytes`: the same with each different block counted once.
- `stored_bytes`: what the repository takes on its medium, second copies included, the reserve left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.ids import ChunkName
from everywhen.formats.node import decode_node, root_level
from everywhen.formats.point import RecoveryPoint, Tree
from everywhen.repository.blockmap import blocks_of
from everywhen.repository.folders import stored_bytes
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.ages import DAY
from everywhen.services.catalog import Catalog
from everywhen.services.keep.freeing import Need, Report, needs

GROWTH_DAYS = 30
"""Growth is the mean of so many days before a VM's newest moment, or of all its days where there are fewer."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Bytes per day over `days` days; None where there is less than a day of history."""

    stored: int | None
    changed: int | None
    days: float


@dataclass(frozen=True, slots=True)
class VmFigures:
    """One VM. `would_free_bytes`, `unique_bytes`, `shared_bytes`: None unless it was asked for by name.

    `unique_bytes`: its different blocks; `shared_bytes`: those of them that other VMs have too.
    """

    vm: Vm
    points: int
    logical_bytes: int
    growth: Growth
    would_free_bytes: int | None = None
    unique_bytes: int | None = None
    shared_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Statistics:
    """The repository; dropped moments are not counted, but what they take is in `stored_bytes`."""

    logical_bytes: int
    unique_bytes: int
    stored_bytes: int
    points: int
    chunks: int
    missing: int
    growth: Growth
    vms: list[VmFigures]


def statistics(repository: Repository, catalog: Catalog, named: Sequence[Vm], report: Report) -> Statistics:
    """Figures of the repository and its VMs; the `named` ones in depth. The index must be fresh. Raises Damaged."""
    points = catalog.points
    own = [{point.point for point in catalog.points_of(vm)} for vm in named]
    others = [{point.point for point in points} - mine for mine in own]
    whole, found = needs(repository, points, [*own, *others], report)
    without, alone = found[: len(named)], found[len(named) :]
    deep = {vm.vm: _in_depth(whole, rest, mine) for vm, rest, mine in zip(named, without, alone, strict=True)}
    counter = _BlockCounter(repository)
    vms = [
        VmFigures(
            vm,
            len(mine := catalog.points_of(vm)),
            sum(counter.bytes_of(tree) for point in mine for tree in point.trees()),
            growth(mine),
            *deep.get(vm.vm, ()),
        )
        for vm in (named or catalog.vms)
    ]
    logical = sum(counter.bytes_of(tree) for point in points for tree in point.trees())
    stored = stored_bytes(repository.store)
    total = Growth(
        _sum([figures.growth.stored for figures in vms]),
        _sum([figures.growth.changed for figures in vms]),
        max((figures.growth.days for figures in vms), default=0.0),
    )
    return Statistics(logical, whole.unique_bytes, stored, len(points), whole.chunks, whole.missing, total, vms)


def growth(points: Sequence[RecoveryPoint]) -> Growth:
    """How fast a VM grows, from what each of its moments (oldest first) added; its first copy is no growth."""
    if len(points) < 2:
        return Growth(None, None, 0.0)
    newest = points[-1].time_ns
    begin = max(points[0].time_ns, newest - GROWTH_DAYS * DAY)
    days = (newest - begin) / DAY
    if days < 1:
        return Growth(None, None, days)
    disks = [disk for point in points if point.time_ns > begin for disk in point.disks.values()]
    stored, changed = sum(disk.bytes_stored for disk in disks), sum(disk.bytes_changed for disk in disks)
    return Growth(round(stored / days), round(changed / days), days)


def _in_depth(whole: Need, rest: Need, alone: Need) -> tuple[int, int, int]:
    shared = alone.unique_bytes + rest.unique_bytes - whole.unique_bytes
    return whole.stored_bytes - rest.stored_bytes, alone.unique_bytes, shared


def _sum(figures: list[int | None]) -> int | None:
    known = [figure for figure in figures if figure is not None]
    return sum(known) if known else None


class _BlockCounter:
    """Counts the blocks below map nodes; points share most nodes, so each one is read once."""

    def __init__(self, repository: Repository) -> None:
        self._read = repository.fetcher.read
        self._below: dict[ChunkName, int] = {}

    def bytes_of(self, tree: Tree) -> int:
        if tree.root is None:
            return 0
        return min(tree.size, self._count(tree.root, root_level(blocks_of(tree.size))) * BLOCK_SIZE)

    def _count(self, name: ChunkName, level: int) -> int:
        known = self._below.get(name)
        if known is None:
            names = decode_node(self._read(name), level)
            rows = np.flatnonzero(names.any(axis=1))
            known = len(rows) if level == 0 else sum(self._count(ChunkName(names[row].tobytes()), level - 1) for row in rows)
            self._below[name] = known
        return known
