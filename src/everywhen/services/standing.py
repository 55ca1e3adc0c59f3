# SPDX-License-Identifier: AGPL-3.0-or-later
"""How things stand: what `everywhen status` shows, and what needs a person. Metadata only, so that it takes no time.

A VM is *protected* when its newest moment is not older than somebody is ready to lose (ux R15). Nobody has said how much
that is, so it is the caller's to say: MAX_AGE is a backup a day, with two hours for it to run. The newest moment may lie
after the newest point, in the journal: exactly where the VM is captured on this host, to a minute where it is on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from everywhen.formats.point import RecoveryPoint
from everywhen.repository.condemned import read_condemned
from everywhen.repository.damage import damaged_copies
from everywhen.repository.errors import Damaged
from everywhen.repository.ledger import Drop, Hold, Vm
from everywhen.repository.presence import Presence, list_presences
from everywhen.repository.repository import Repository
from everywhen.services.ages import HOUR, age, span
from everywhen.services.catalog import Catalog
from everywhen.services.failures import Exit, Failed
from everywhen.services.journal_reach import reached_ns
from everywhen.services.keep.brakes import CLOCK_TOLERANCE
from everywhen.services.keep.policies import Policies, Standing
from everywhen.services.keep.pruning import pending
from everywhen.services.protect.capture_states import work_of
from everywhen.services.protect.captured import ENDED, Captured
from everywhen.services.timeline import newest_captured
from everywhen.storage.base import Space

MAX_AGE = 26 * HOUR
_LOW = 0.05


@dataclass(frozen=True, slots=True)
class VmStanding:
    """One VM. `dropped`: its moments that can be taken back, until `back_until_ns` for the first of them.

    `newest`: its newest point; `newest_ns`: its newest moment, which may be later; `captured`: what a capture on this host
    says; `policy`: None where it cannot be understood here.
    """

    vm: Vm
    captured: Captured | None
    newest: RecoveryPoint | None
    newest_ns: int | None
    oldest: RecoveryPoint | None
    points: int
    policy: Standing | None
    held: list[Hold]
    dropped: int
    back_until_ns: int | None
    protected: bool
    needs: list[str]


@dataclass(frozen=True, slots=True)
class Work:
    """Somebody at work: a writer's session, or a reader's lease. `silent_ns`: since it was last heard of."""

    presence: Presence
    silent_ns: int
    alive: bool


@dataclass(frozen=True, slots=True)
class State:
    """The whole repository, as of `now_ns`. `needs`: sentences about what needs a person."""

    now_ns: int
    space: Space | None
    reserve_bytes: int
    vms: list[VmStanding]
    sessions: list[Work]
    leases: list[Work]
    unreadable: list[str]
    drops: list[Drop] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)

    @property
    def check(self) -> Exit:
        """The exit code for monitoring (ux 4.2): 1 something is not protected, 5 something needs a person, 0 all right."""
        if not all(vm.protected for vm in self.vms):
            return Exit.FAILED
        return Exit.LESS_THAN_ASKED if self.needs or any(vm.needs for vm in self.vms) else Exit.DONE


@dataclass(frozen=True, slots=True)
class _Look:
    """What is the same for all VMs."""

    catalog: Catalog
    policies: Policies
    drops: list[Drop]
    now_ns: int
    max_age_ns: int


def state(
    repository: Repository,
    catalog: Catalog,
    policies: Policies,
    vms: list[Vm],
    captures: Mapping[str, Captured],
    *,
    max_age_ns: int = MAX_AGE,
) -> State:
    """How things stand with the repository and these VMs; `captures` on this host by our names of their VMs.

    Raises StorageError, FormatError.
    """
    now = repository.surroundings.clock()
    unreadable = [*catalog.unreadable, *read_condemned(repository.documents)[1]]
    moments = {vm.vm: _newest_ns(repository, catalog.history_of(vm), captures.get(vm.name), unreadable) for vm in vms}
    drops = pending(catalog, now)
    look = _Look(catalog, policies, drops, now, max_age_ns)
    committed = {f"sessions/{point.point}" for point in (*catalog.points, *catalog.dropped_points)}
    reserve = sum(found.size for found in repository.store.list("reserve/"))
    found = State(
        now_ns=now,
        space=repository.store.space(),
        reserve_bytes=reserve,
        vms=[_vm_standing(look, vm, moments[vm.vm], captures.get(vm.name)) for vm in vms],
        # Its point is there, so the work is done: only its session was left behind, which gc clears away by itself.
        sessions=[work for work in at_work(repository, "sessions/", now) if work.presence.name not in committed],
        leases=at_work(repository, "leases/", now),
        unreadable=unreadable,
        drops=drops,
    )
    damaged = damaged_copies(repository.documents, unreadable)
    found.needs.extend(_needs(repository, found))
    if damaged:
        found.needs.append(f"damage was found in {len(damaged)} packs: everywhen verify")
    return found


def _newest_ns(
    repository: Repository, line: list[RecoveryPoint], captured: Captured | None, unreadable: list[str]
) -> int | None:
    """The newest moment of a VM: of its newest point, or after it in the journal, on this host or in the repository."""
    if not line:
        return None
    if captured and captured.nothing_to_capture:
        return repository.surroundings.clock()
    reached = captured.covered_ns if captured else None
    try:
        last = newest_captured(line)
        reached = reached or (reached_ns(repository, last, exactly=False) if last else None)
    except Damaged as error:
        unreadable.append(str(error))
    return max(line[-1].time_ns, reached or 0)


def _vm_standing(look: _Look, vm: Vm, newest_ns: int | None, captured: Captured | None) -> VmStanding:
    catalog, now_ns, max_age_ns = look.catalog, look.now_ns, look.max_age_ns
    points = catalog.points_of(vm)
    ids = {point.point for point in points}
    mine = {point.point for point in catalog.dropped_points if point.vm == vm.vm}
    back = {point: drop.effective_ns for drop in look.drops for point in drop.points if point in mine}
    newest = catalog.newest(vm)
    since = now_ns - newest_ns if newest_ns is not None else 0
    needs = captured.needs(now_ns) if captured else []
    policy = None
    try:
        policy = look.policies.of(vm)
    except Failed as error:
        needs.append(f"{error.what} everywhen policy set")
    if newest is None and captured is None:
        needs.append("it has no moment yet: everywhen backup")
    elif since > max_age_ns:
        needs.append(f"its newest moment is {age(since)} old, more than {span(max_age_ns)}")
    elif -since > CLOCK_TOLERANCE:
        needs.append(f"its newest moment lies {span(-since)} ahead: is the clock right?")
    if newest and newest.reached == "none" and newest_ns == newest.time_ns:
        needs.append(f"its newest moment is not consistent: {newest.why or 'it changed while it was read'}")
    if len(back) * 3 > len(points) + len(back):
        needs.append(f"{len(back)} of its {len(points) + len(back)} moments were dropped: everywhen prune --undo {vm.name}")
    return VmStanding(
        vm=vm,
        captured=captured,
        newest=newest,
        newest_ns=newest_ns,
        oldest=points[0] if points else None,
        points=len(points),
        policy=policy,
        held=[hold for hold in catalog.active_holds(now_ns) if hold.point in ids],
        dropped=len(back),
        back_until_ns=min(back.values(), default=None),
        protected=newest is not None and since <= max_age_ns,
        needs=needs,
    )


def at_work(repository: Repository, prefix: str, now_ns: int) -> list[Work]:
    """Who has a session (`sessions/`) or a lease (`leases/`), with those who are no longer there. Raises StorageError."""
    here = repository.surroundings.holder
    found = list_presences(repository.documents, prefix)
    # The clock by which one was refreshed may be ahead of ours.
    return [Work(one, max(0, now_ns - one.refreshed_ns), not one.expired(here, now_ns)) for one in found]


def _needs(repository: Repository, found: State) -> list[str]:
    needs = []
    if found.space and found.space.free < found.space.total * _LOW:
        share = 100 * found.space.free / found.space.total
        needs.append(f"only {share:.1f} % of the medium is free: everywhen policy preview --free 50GB")
    # What a capture that runs here lost and began again is over, and gc clears it; what it needs it says for itself.
    tries_again = {work_of(vm.vm.name) for vm in found.vms if vm.captured is not None and vm.captured.state not in ENDED}
    dead = [work for work in found.sessions if not work.alive and work.presence.what not in tries_again]
    if dead:
        longest = max(work.silent_ns for work in dead)
        needs.append(f"{len(dead)} unfinished, silent for {age(longest)}: run the backup again, or everywhen gc clears it")
    if found.unreadable:
        needs.append(f"{len(found.unreadable)} moments or records cannot be read: everywhen verify")
    if repository.unlocked.outdated:
        needs.append("key slots are outdated: everywhen key list")
    return needs
