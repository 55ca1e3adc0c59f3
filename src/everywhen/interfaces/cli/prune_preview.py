# SPDX-License-Identifier: AGPL-3.0-or-later
"""How `prune --dry-run` and `policy preview` show what would go (ux 4.3), and `policy preview --free` what could."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everywhen.interfaces.cli.context import Context
from everywhen.repository.repository import Repository
from everywhen.services.catalog import Catalog
from everywhen.services.keep.brakes import gone_at
from everywhen.services.keep.freeing import Report, frees
from everywhen.services.keep.making_room import Proposal
from everywhen.services.keep.policies import Policies, read_delays
from everywhen.services.keep.pruning import VmPlan, plan_vm
from everywhen.services.keep.thinning import HELD, NEWEST, Plan
from everywhen.services.moments import Moment
from everywhen.services.sizes import size
from everywhen.services.times import local_time, rfc3339, zone_label

_GROUPS = 12
"""Beyond so many policies only the sum is estimated: each costs a marking."""


@dataclass(frozen=True, slots=True)
class Preview:
    """Plans, what is in force now for each, and what would come free: by group (as in `groups`) and in all."""

    plans: list[VmPlan]
    before: dict[str, Plan]
    groups: list[list[VmPlan]]
    frees: list[int | None]
    frees_all: int
    effective_ns: int

    @classmethod
    def of(cls, repository: Repository, catalog: Catalog, policies: Policies, plans: list[VmPlan], report: Report) -> Preview:
        """Estimate. `policies` are those in force; the plans may be for others. The index must be fresh."""
        now = repository.surroundings.clock()
        by_policy: dict[tuple[str, str], list[VmPlan]] = {}
        for plan in plans:
            by_policy.setdefault((plan.standing.origin, str(plan.standing.policy)), []).append(plan)
        groups = list(by_policy.values())
        choices = [{moment.id for plan in group for moment in plan.dropped} for group in groups]
        everything = {moment.id for plan in plans for moment in plan.dropped}
        single = [choice for choice in choices if choice and choice != everything][:_GROUPS]
        found = frees(repository, catalog.points, [everything, *single], report) if everything else [0]
        by_choice = [0 if not choice else found[0] if choice == everything else None for choice in choices]
        for choice, bytes_free in zip(single, found[1:], strict=True):
            by_choice[choices.index(choice)] = bytes_free
        before = {plan.vm.vm: plan_vm(catalog, plan.vm, policies.of(plan.vm), (), now).plan for plan in plans}
        effective = gone_at(now, read_delays(repository.documents), now_ns=now)
        return cls(plans, before, groups, by_choice, found[0], effective)


def show_dry_run(context: Context, preview: Preview) -> None:
    """The table of `prune --dry-run`."""
    rows = []
    for group, bytes_free in zip(preview.groups, preview.frees, strict=True):
        dropped = [moment for plan in group for moment in plan.dropped]
        standing = group[0].standing
        name = str(standing.policy) if standing.origin == "own" else f"default: {standing.policy}"
        now = sum(plan.moments for plan in group)
        rows.append(
            (name, str(len(group)), f"{now:,}", f"{len(dropped):,}", first_and_last(context, dropped), _free(bytes_free))
        )
    held = sum(HELD in decision.kept_as for plan in preview.plans for decision in plan.plan.decisions)
    rows.append(("held", "-", f"{held:,}", "0", "-", ""))
    context.output.table(
        ["POLICY", "VMS", "MOMENTS NOW", "TO DROP", "FIRST AND LAST TO GO", "FREES (±10 %)"],
        rows,
        right=["VMS", "MOMENTS NOW", "TO DROP", "FREES (±10 %)"],
    )
    if len(preview.groups) > 1:
        context.output.line(f"All together free {size(preview.frees_all)} (±10 %).")


def show_preview(context: Context, preview: Preview) -> None:
    """What `policy preview` says: the table, then each VM's ladder, before and after."""
    show_dry_run(context, preview)
    for plan in preview.plans:
        context.output.line()
        context.output.line(f"{plan.vm.name}: {plan.standing.policy}")
        before, after = ladder(preview.before[plan.vm.vm]), ladder(plan.plan)
        for kind in sorted({*before, *after}, key=[*before, *after].index):
            now, then = _rung(context, before.get(kind)), _rung(context, after.get(kind))
            context.output.line(f"  {kind:12}  {now}" if now == then else f"  {kind:12}  now {now}; then {then}")
        gone = first_and_last(context, plan.dropped)
        context.output.line(f"  {len(plan.dropped)} of {plan.moments} moments would go" + (f": {gone}" if plan.dropped else ""))
        for brake in plan.brakes:
            context.output.line(f"  prune will ask: {brake.words}")


def preview_document(preview: Preview) -> dict[str, object]:
    """The document of `prune --dry-run` and `policy preview`."""
    return {
        "dry_run": True,
        "frees_bytes": preview.frees_all,
        "effective": rfc3339(preview.effective_ns),
        "vms": [
            {
                **plan_document(plan),
                "ladder_before": _ladder_document(preview.before[plan.vm.vm]),
                "ladder_after": _ladder_document(plan.plan),
            }
            for plan in preview.plans
        ],
    }


def plan_document(plan: VmPlan) -> dict[str, object]:
    """One VM's part of a prune."""
    times = [moment.time_ns for moment in plan.dropped]
    return {
        "vm": plan.vm.name,
        "policy": str(plan.standing.policy),
        "moments": plan.moments,
        "dropped": [moment.id for moment in plan.dropped],
        "first": rfc3339(min(times)) if times else None,
        "last": rfc3339(max(times)) if times else None,
        "held": sum(HELD in decision.kept_as for decision in plan.plan.decisions),
        "open": [moment.id for moment in plan.open],
        "asks": [{"code": brake.code, "words": brake.words} for brake in plan.brakes],
    }


def ladder(plan: Plan) -> dict[str, list[Moment]]:
    """What each term keeps, from the newest to the oldest; terms in the order of the notation."""
    found: dict[str, list[Moment]] = {}
    for decision in plan.decisions:
        for kind in decision.kept_as:
            found.setdefault(kind, []).append(decision.moment)
    return found


def first_and_last(context: Context, moments: Sequence[Moment]) -> str:
    """`2026-11-08 11:00:00 … 2026-11-15 10:00:00` in the reader's time, or `-`."""
    times = [moment.time_ns for moment in moments]
    if not times:
        return "-"
    first, last = local_time(min(times), context.zone), local_time(max(times), context.zone)
    return first if first == last else f"{first} … {last}"


def show_proposals(context: Context, found: list[Proposal], wanted: int, catalog: Catalog) -> None:
    """What could be done for room, the cheapest first."""
    context.output.document(
        {
            "wanted_bytes": wanted,
            "proposals": [
                {
                    "what": one.words,
                    "do": one.do,
                    "moments_lost": one.moments,
                    "frees_bytes": one.frees,
                    "enough": one.frees >= wanted,
                }
                for one in found
            ],
        }
    )
    rows = [(str(one.moments), one.words, _free(one.frees), "yes" if one.frees >= wanted else "no", one.do) for one in found]
    context.output.table(
        ["MOMENTS LOST", "WHAT", "FREES (±10 %)", "ENOUGH", "COMMAND"], rows, right=["MOMENTS LOST", "FREES (±10 %)"]
    )
    if not found:
        context.output.line("Nothing can be freed by any policy.")
    held = len({hold.point for hold in catalog.holds})
    if held:
        context.output.line(f"{held} moments are held and were left alone: everywhen hold")
    context.output.line("After a policy: everywhen prune, and, when dropped moments are gone for good, everywhen gc.")


def back_until(context: Context, effective_ns: int) -> str:
    """The sentence about what can still be undone."""
    zone = zone_label(effective_ns, context.zone)
    until = f"{local_time(effective_ns, context.zone)} {zone}"
    return f"Dropped moments can be taken back until {until}; after that `everywhen gc` frees their space."


def _free(count: int | None) -> str:
    return "-" if count is None else size(count)


def _rung(context: Context, kept: list[Moment] | None) -> str:
    if not kept:
        return "none"
    return f"{len(kept)}, back to {local_time(kept[-1].time_ns, context.zone)}"


def _ladder_document(plan: Plan) -> dict[str, object]:
    return {
        kind: {"moments": len(kept), "oldest": rfc3339(kept[-1].time_ns)}
        for kind, kept in ladder(plan).items()
        if kind != NEWEST
    }
