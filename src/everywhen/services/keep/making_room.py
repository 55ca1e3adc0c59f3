# SPDX-License-Identifier: AGPL-3.0-or-later
"""Room is wanted: what could go, what that frees, and what it costs (`policy preview --free SIZE`, ux J5).

Cost is counted in moments that would be lost beyond what the policies give up already. Proposals come cheapest first:
what costs nothing (space nobody needs, moments dropped before, what prune would drop anyway), then one term of one policy
at half its length, then VMs that have had no new moment for a month. Each proposal stands for itself; the figures of two
of them do not add up exactly, since they may share chunks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from everywhen.formats.point import RecoveryPoint
from everywhen.repository.repository import Repository
from everywhen.services.ages import DAY, age
from everywhen.services.catalog import Catalog
from everywhen.services.keep import thinning
from everywhen.services.keep.freeing import Report, needs
from everywhen.services.keep.policies import Policies
from everywhen.services.keep.pruning import VmPlan, holds_for_thinning
from everywhen.services.keep.retention import Policy

SILENT = 30 * DAY
_MOST = 9
"""Proposals that are worth a marking each."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """`words`: what would go; `do`: the command; `moments` lost; `frees` bytes."""

    words: str
    do: str
    moments: int
    frees: int


@dataclass(frozen=True, slots=True)
class _Candidate:
    words: str
    do: str
    points: frozenset[str]


def proposals(
    repository: Repository, catalog: Catalog, policies: Policies, plans: list[VmPlan], report: Report
) -> list[Proposal]:
    """What could be done for room, the cheapest first; what would free nothing is left out. The index must be fresh."""
    now = repository.surroundings.clock()
    held = {hold.point for hold in catalog.active_holds(now)}
    given_up = frozenset(str(point.point) for point in catalog.dropped_points) - held
    pruned = frozenset(moment.id for plan in plans for moment in plan.dropped)
    stored = {str(point.point): sum(disk.bytes_stored for disk in point.disks.values()) for point in catalog.points}
    candidates = [*_shorter(catalog, policies, plans, now), *_silent(plans, now)]
    candidates = [found for found in candidates if found.points - pruned]
    candidates.sort(key=lambda found: sum(stored.get(point, 0) for point in found.points), reverse=True)
    chosen = candidates[:_MOST]
    everything: list[RecoveryPoint] = [*catalog.points, *catalog.dropped_points]
    sets = [given_up, given_up | pruned, *(given_up | pruned | found.points for found in chosen)]
    whole, without = needs(repository, everything, sets, report)
    unneeded = repository.index.counts().stored_bytes - whole.stored_bytes
    dropped, prune = without[0].stored_bytes, without[1].stored_bytes
    found = [
        Proposal("free what no moment needs any more", "everywhen gc", 0, unneeded),
        Proposal("wait for the moments that were dropped already", "everywhen status", 0, whole.stored_bytes - dropped),
        Proposal("drop what the policies let go", "everywhen prune", 0, dropped - prune),
    ]
    for candidate, rest in zip(chosen, without[2:], strict=True):
        lost = len(candidate.points - pruned)
        found.append(Proposal(candidate.words, candidate.do, lost, prune - rest.stored_bytes))
    return sorted((one for one in found if one.frees > 0), key=lambda one: (one.moments, -one.frees))


def _shorter(catalog: Catalog, policies: Policies, plans: list[VmPlan], now_ns: int) -> Iterable[_Candidate]:
    """Each policy in force, with one of its terms at half its length."""
    default = [plan for plan in plans if plan.standing.origin != "own"]
    own = [plan for plan in plans if plan.standing.origin == "own"]
    groups: list[tuple[str, Policy, list[VmPlan]]] = [(plan.vm.name, plan.standing.policy, [plan]) for plan in own]
    if default:
        groups.insert(0, ("--default", policies.default.policy, default))
    for whose, policy, members in groups:
        for term in policy.terms:
            if term.amount < 2:
                continue
            half = replace(term, amount=term.amount // 2)
            tried = replace(policy, terms=tuple(half if one is term else one for one in policy.terms))
            points = _dropped_by(catalog, members, tried, now_ns)
            name = "the default policy" if whose == "--default" else whose
            yield _Candidate(f"{name}: {term} → {half}", f'everywhen policy set {whose} "{tried}"', points)


def _silent(plans: list[VmPlan], now_ns: int) -> Iterable[_Candidate]:
    """VMs without a new moment for long: all but the newest one."""
    for plan in plans:
        kept = [decision for decision in plan.plan.decisions if thinning.HELD not in decision.kept_as]
        if kept and len(kept) > 1 and now_ns - kept[0].moment.time_ns > SILENT:
            since = age(now_ns - kept[0].moment.time_ns)
            points = frozenset(decision.moment.id for decision in kept[1:])
            words = f"{plan.vm.name}, silent for {since}: keep its newest moment only"
            yield _Candidate(words, f'everywhen policy set {plan.vm.name} "last 1"', points)


def _dropped_by(catalog: Catalog, members: list[VmPlan], policy: Policy, now_ns: int) -> frozenset[str]:
    holds = holds_for_thinning(catalog)
    found: set[str] = set()
    for member in members:
        moments = [decision.moment for decision in member.plan.decisions]
        plan = thinning.plan(policy, moments, holds=holds, now_ns=now_ns)
        found.update(moment.id for moment in plan.dropped)
    return frozenset(found)
