# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a repository holds, as people name it: VMs, their moments, what is dropped and what is held. Read once a command."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import tzinfo

from everywhen.formats.point import RecoveryPoint, Tombstone
from everywhen.repository.branches import before_rollback, history, rollbacks
from everywhen.repository.ledger import Drop, Hold, Ledger, Vm
from everywhen.repository.repository import Repository
from everywhen.services.addresses import Address, branch_name
from everywhen.services.failures import NotFound
from everywhen.services.moments import Moment
from everywhen.services.naming import find_vm
from everywhen.services.whens import Found, Marked, PointNamed, When, parse_when, resolve

POLICY_LOST = "its record was lost"
"""A policy that nobody understands: a VM without a record may have had one that keeps more than the default does."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """A snapshot of the repository's metadata at the time of reading."""

    url: str
    vms: list[Vm]
    points: list[RecoveryPoint]
    """Oldest first; dropped ones are not among them."""
    dropped: dict[str, Drop]
    """Points that were dropped and can still be taken back, or are about to be deleted."""
    dropped_points: list[RecoveryPoint]
    tombstones: list[Tombstone]
    unreadable_points: list[str]
    unreadable_vms: list[str]
    unreadable_decisions: list[str]
    """Drops, what was taken back of them, and holds."""
    drops: list[Drop]
    holds: list[Hold]

    @property
    def unreadable(self) -> list[str]:
        """What cannot be read from either of its copies, as sentences."""
        return [*self.unreadable_points, *self.unreadable_vms, *self.unreadable_decisions]

    def vm(self, name: str) -> Vm:
        """The VM that a user named. Raises NotFound, WrongUsage."""
        ours = find_vm(name, {vm.name: vm.source for vm in self.vms}, where=self.url)
        return next(vm for vm in self.vms if vm.name == ours)

    def points_of(self, vm: Vm) -> list[RecoveryPoint]:
        """Its points, oldest first."""
        return [point for point in self.points if point.vm == vm.vm]

    def history_of(self, vm: Vm) -> list[RecoveryPoint]:
        """Its points without those of another branch (`repository/branches.py`), oldest first."""
        return history(self.points_of(vm))

    def on_branch(self, vm: Vm, branch: int | None) -> Catalog:
        """What there was of the VM when its rollback of that number was made, if there is such a number: nothing of it later.

        Raises NotFound.
        """
        if branch is None:
            return self
        turns = rollbacks(self.points_of(vm))
        if branch not in turns:
            known = ", ".join(branch_name(vm.name, number) for number in sorted(turns))
            hint = f"There are: {known}." if known else "It was never rolled back, as far as moments are kept."
            what = f"{vm.name} has no branch {branch_name(vm.name, branch)}. {hint}"
            raise NotFound(what, on=branch_name(vm.name, branch), do=[f"everywhen points {vm.name}"])
        kept = {point.point for point in before_rollback(self.points_of(vm), turns[branch])}
        return replace(self, points=[point for point in self.points if point.vm != vm.vm or point.point in kept])

    def newest(self, vm: Vm) -> RecoveryPoint | None:
        """The newest point of its history."""
        points = self.history_of(vm)
        return points[-1] if points else None

    def moments_of(self, vm: Vm) -> list[Moment]:
        """Its moments, for retention."""
        return [moment_of(point) for point in self.points_of(vm)]

    def moments_for(self, vm: Vm, when: When) -> list[Moment]:
        """Its moments that `when` may mean: to what lies beside the history only a name leads."""
        named = isinstance(when.target, PointNamed | Marked)
        return [moment_of(point) for point in (self.points_of(vm) if named else self.history_of(vm))]

    def find(self, address: Address, *, now_ns: int, zone: tzinfo, exact: bool) -> tuple[Vm, RecoveryPoint, Found]:
        """The point that an address means. Raises NotFound, WrongUsage."""
        vm = self.vm(address.vm)
        when = parse_when(address.when or "latest", now_ns=now_ns, zone=zone)
        moments = self.on_branch(vm, address.branch).moments_for(vm, when)
        found = resolve(vm.name, when, moments, zone=zone, exact=exact)
        point = next(point for point in self.points if point.point == found.moment.id)
        self.demand_disk(vm, point, address)
        return vm, point, found

    @staticmethod
    def demand_disk(vm: Vm, point: RecoveryPoint, address: Address) -> None:
        """Raises NotFound when the address names a disk that the VM did not have."""
        if address.disk is not None and address.disk not in point.disks:
            disks = ", ".join(sorted(point.disks))
            raise NotFound(f"{vm.name} had no disk {address.disk} at {point.point}. It had: {disks}.", on=str(address))

    def active_holds(self, now_ns: int) -> list[Hold]:
        """Holds that have not ended."""
        return [hold for hold in self.holds if hold.active(now_ns)]


def moment_of(point: RecoveryPoint) -> Moment:
    """A point as a moment."""
    left_ns = point.rolled_back.time_ns if point.rolled_back else None
    return Moment(point.point, point.time_ns, point.reached, point.mark, point.common, left_ns)


def read_catalog(repository: Repository) -> Catalog:
    """Read everything that can be read. Raises StorageError."""
    lost_vms: list[str] = []
    undecided: list[str] = []
    vms = Ledger(repository.documents, lost_vms).vms()
    ledger = Ledger(repository.documents, undecided)
    # Points before drops: a drop made in between names points that are known, never the other way round.
    points, tombstones, unreadable = repository.points.list()
    drops = ledger.drops()
    gone = {point: drop for drop in drops for point in drop.points}
    return Catalog(
        url=repository.store.url,
        vms=[*vms, *_without_record(vms, points)],
        points=[point for point in points if point.point not in gone],
        dropped=gone,
        dropped_points=[point for point in points if point.point in gone],
        tombstones=tombstones,
        unreadable_points=unreadable,
        unreadable_vms=lost_vms,
        drops=drops,
        holds=ledger.holds(),
        unreadable_decisions=undecided,
    )


def _without_record(vms: list[Vm], points: list[RecoveryPoint]) -> list[Vm]:
    """VMs whose record was lost: their moments are there, under a name made of their id; retention lets them alone."""
    lost = sorted({point.vm for point in points} - {vm.vm for vm in vms})
    return [Vm(vm, f"unnamed-{vm[:8]}", "", "", policy=POLICY_LOST, created_ns=0) for vm in lost]
