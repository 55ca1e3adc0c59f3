# SPDX-License-Identifier: AGPL-3.0-or-later
"""Prune: what the policies let go, dropped by one record, and taken back by another (I-11, docs/locking.md).

Nothing is deleted here. A drop is a promise to gc for later; until it takes effect it can be undone. Held and open
moments never go. Holds are read again after the drop was written, as `holding.py` reads drops again after it wrote a hold:
whoever of two that act at once comes second, sees the other, and the hold wins.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from everywhen.formats.ids import PointId, random_word
from everywhen.repository.condemned import list_condemned
from everywhen.repository.ledger import Drop, Ledger, Undone, Vm
from everywhen.repository.presence import list_presences
from everywhen.repository.repository import Repository
from everywhen.services.catalog import Catalog
from everywhen.services.failures import Damage, NotFound, WrongUsage
from everywhen.services.keep import thinning
from everywhen.services.keep.brakes import Brake, brakes, gone_at
from everywhen.services.keep.policies import Policies, Standing, read_delays, signature
from everywhen.services.moments import Moment
from everywhen.services.times import rfc3339
from everywhen.storage.base import ObjectNotFound


class TooLate(NotFound):
    """Moments that gc is about to delete, or has deleted."""


@dataclass(frozen=True, slots=True)
class VmPlan:
    """What pruning one VM means. `open`: moments that the policy lets go, but that somebody has open now."""

    vm: Vm
    standing: Standing
    plan: thinning.Plan
    dropped: list[Moment]
    open: list[Moment]
    brakes: list[Brake]

    @property
    def moments(self) -> int:
        """How many the VM has now."""
        return len(self.plan.decisions)


def holds_for_thinning(catalog: Catalog) -> list[thinning.Hold]:
    """The holds of the repository, as thinning wants them."""
    return [thinning.Hold(hold.point, hold.reason, hold.until_ns or None) for hold in catalog.holds]


def plan_vm(catalog: Catalog, vm: Vm, standing: Standing, opened: Collection[str], now_ns: int) -> VmPlan:
    """What a policy means for one VM. `opened`: ids of points that somebody has open."""
    moments = catalog.moments_of(vm)
    plan = thinning.plan(standing.policy, moments, holds=holds_for_thinning(catalog), now_ns=now_ns)
    going = plan.dropped
    dropped = [moment for moment in going if moment.id not in opened]
    kept_open = [moment for moment in going if moment.id in opened]
    return VmPlan(vm, standing, plan, dropped, kept_open, brakes(vm.name, moments, dropped, now_ns=now_ns))


def plan_prune(repository: Repository, catalog: Catalog, policies: Policies, vms: Sequence[Vm]) -> list[VmPlan]:
    """Plans for these VMs, all by one clock. Raises Damage where it is not known what is held or dropped."""
    if catalog.unreadable_decisions:
        raise Damage(
            f"prune stops: {catalog.unreadable_decisions[0]}. What is held, or was dropped already, is not known.",
            on=catalog.url,
            safe="Nothing was dropped.",
            do=["everywhen verify"],
        )
    now = repository.surroundings.clock()
    opened = open_points(repository)
    return [plan_vm(catalog, vm, policies.of(vm), opened, now) for vm in vms]


def open_points(repository: Repository) -> set[str]:
    """Points that readers have open (R11)."""
    here, now = repository.surroundings.holder, repository.surroundings.clock()
    leases = list_presences(repository.documents, "leases/")
    return {point for lease in leases if not lease.expired(here, now) for point in lease.points}


def drop(repository: Repository, points: list[str], why: str) -> Drop:
    """Drop points, durable on return; what was held meanwhile is left out of the drop that is given back."""
    now = repository.surroundings.clock()
    repository.unlocked.superblock.require("write")
    ledger = Ledger(repository.documents)
    ledger.holds()  # where one cannot be read, nothing is dropped
    made = Drop(
        drop=random_word(repository.surroundings.randomness, 16),
        points=points,
        dropped_ns=now,
        effective_ns=gone_at(now, read_delays(repository.documents), now_ns=now),
        why=why,
        by=signature(repository),
    )
    ledger.put_drop(made)
    held = {hold.point for hold in ledger.holds() if hold.active(now)} & set(points)
    if held:
        take_back(repository, made, held)
        made = replace(made, points=[point for point in points if point not in held])
    return made


def take_back(repository: Repository, dropped: Drop, points: Collection[str]) -> None:
    """Let `points` of a drop be moments again, durable on return."""
    word = random_word(repository.surroundings.randomness, 16)
    now = repository.surroundings.clock()
    undone = Undone(word, dropped.drop, sorted(points), now, signature(repository))
    Ledger(repository.documents).put_undone(undone)


def pending(catalog: Catalog, now_ns: int) -> list[Drop]:
    """Drops that can still be undone, the oldest first."""
    return sorted((drop for drop in catalog.drops if now_ns < drop.effective_ns), key=lambda drop: drop.dropped_ns)


def undo(
    repository: Repository, catalog: Catalog, wanted: Sequence[str], *, dry_run: bool = False
) -> tuple[list[str], list[str]]:
    """Take moments back: those named (points, beginnings of them, or VMs), or all that can be.

    Gives their ids, and of those that were asked for but are not there any more. Raises NotFound, WrongUsage, TooLate.
    """
    now = repository.surroundings.clock()
    drops = pending(catalog, now)
    chosen = {point for drop in drops for point in drop.points}
    if wanted:
        chosen = {point for word in wanted for point in _named(catalog, word, chosen)}
    _refuse_condemned(repository, chosen, written=False)
    if not dry_run:
        repository.unlocked.superblock.require("write")
        for one in drops:
            if mine := chosen & set(one.points):
                take_back(repository, one, mine)
        # A gc that condemns from now on reads drops after that, and keeps them. One that came between may have read before.
        _refuse_condemned(repository, chosen, written=True)
    there = {point for point in chosen if _is_there(repository, point)}
    return sorted(there), sorted(chosen - there)


def _refuse_condemned(repository: Repository, points: Collection[str], *, written: bool) -> None:
    condemned = {point for one in list_condemned(repository.documents) for point in one.points}
    late = sorted(condemned & set(points))
    if not late:
        return
    which = late[0] if len(late) == 1 else f"{late[0]} and {len(late) - 1} more"
    others = sorted(set(points) - condemned)
    do = ["everywhen points, when gc has ended, shows what is left"]
    if others and not written:
        do.append(f"Name the others: everywhen prune --undo {' '.join(others[:5])}{' …' if len(others) > 5 else ''}")
    raise TooLate(
        f"{which} cannot be taken back any more: gc has begun to delete it.",
        on=late[0],
        safe="Those that gc did not look at yet were taken back." if written else "Nothing was taken back.",
        do=do,
    )


def _named(catalog: Catalog, word: str, undoable: set[str]) -> set[str]:
    names = {point.point: point.vm for point in catalog.dropped_points}
    if not word.startswith("p-"):
        vm = catalog.vm(word)
        found = {point for point in undoable if names.get(PointId(point)) == vm.vm}
        if not found:
            raise NotFound(f"No moments of {vm.name} can be taken back.", on=word, do=["everywhen status"])
        return found
    fitting = sorted(point for point in names if point.startswith(word))
    if len(fitting) > 1:
        raise WrongUsage(f"{word} fits {len(fitting)} dropped moments.", on=word, do=fitting[:5])
    if not fitting:
        raise NotFound(f"No dropped moment {word}.", on=word, do=["everywhen status"])
    if fitting[0] not in undoable:
        since = rfc3339(catalog.dropped[fitting[0]].effective_ns)
        raise NotFound(f"{fitting[0]} cannot be taken back any more: since {since} gc may delete it.", on=word)
    return {str(fitting[0])}


def _is_there(repository: Repository, point: str) -> bool:
    try:
        # Not through the cache of points, which may know one that another computer's gc has deleted.
        repository.documents.get("points/" + point)
    except ObjectNotFound:
        return False
    return True
