# SPDX-License-Identifier: AGPL-3.0-or-later
"""What gc must keep: live points; and which dropped points are to be deleted now."""

from __future__ import annotations

from dataclasses import dataclass, replace

from everywhen.formats.ids import PointId
from everywhen.formats.point import RecoveryPoint, Tombstone
from everywhen.repository.ledger import Ledger
from everywhen.repository.presence import SECOND, list_presences
from everywhen.repository.repository import Repository

SLACK = 600 * SECOND
"""A drop is carried out this long after it takes effect, so that undoing it at the last moment cannot meet gc."""


@dataclass(frozen=True, slots=True)
class Roots:
    """`live` points and their trees are kept; `doomed` ones may be deleted; `leased` ones not now."""

    live: list[RecoveryPoint]
    doomed: list[RecoveryPoint]
    leased: set[str]
    tombstones: dict[PointId, Tombstone]
    unreadable: list[str]

    def spare(self, condemned: set[str]) -> Roots:
        """The same, with only `condemned` points doomed: the others live until a run has waited for those who use them."""
        doomed = [point for point in self.doomed if point.point in condemned]
        live = self.live + [point for point in self.doomed if point.point not in condemned]
        return replace(self, live=live, doomed=doomed)


def find_roots(repository: Repository) -> Roots:
    """Read points, then drops, holds and leases (in this order: docs/locking.md). Raises StorageError, FormatError, Damaged."""
    now = repository.surroundings.clock()
    points, tombstones, unreadable = repository.points.list()
    ledger = Ledger(repository.documents)
    dropped = {point for drop in ledger.drops() if drop.effective_ns + SLACK <= now for point in drop.points}
    held = {hold.point for hold in ledger.holds() if hold.active(now)}
    here = repository.surroundings.holder
    leases = [lease for lease in list_presences(repository.documents, "leases/") if not lease.expired(here, now)]
    leased = {point for lease in leases for point in lease.points}
    doomed = [point for point in points if point.point in dropped - held - leased]
    gone = {point.point for point in doomed}
    live = [point for point in points if point.point not in gone]
    return Roots(live, doomed, leased, {stone.point: stone for stone in tombstones}, unreadable)
