# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen policy list|show|set|preview`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from everywhen.interfaces.cli.app import (
    KEEP,
    AsJson,
    PassphraseFile,
    ProgressStyle,
    Quiet,
    RecoveryKeyFile,
    Repo,
    app,
    context_of,
)
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.prune_preview import Preview, preview_document, show_preview, show_proposals
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.ages import parse_span, span
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.failures import Failed, NotFound, WrongUsage
from everywhen.services.keep.brakes import delay_in_force
from everywhen.services.keep.making_room import proposals
from everywhen.services.keep.policies import (
    BUILT_IN,
    Policies,
    Standing,
    read_delays,
    read_policies,
    set_default,
    set_delay,
    set_policy,
)
from everywhen.services.keep.pruning import plan_prune
from everywhen.services.keep.retention import Policy, parse_terms, sentence
from everywhen.services.sizes import parse_size
from everywhen.services.times import local_time, zone_named

policy_app = typer.Typer(
    help="Which moments stay, and how long.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)
app.add_typer(policy_app, name="policy", rich_help_panel=KEEP)

_DEFAULT = "default"


@policy_app.command("list")
def list_policies(
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The policy of each VM, and the default."""
    context = context_of(locals())
    with context.repository() as repository:
        catalog, policies = _read(repository)
        delay = delay_in_force(read_delays(repository.documents), repository.surroundings.clock())
    rows = [(vm.name, policies.of(vm)) for vm in catalog.vms]
    context.output.document(
        {
            "default": _document(policies.default),
            "vms": {name: _document(standing) for name, standing in rows},
            "delete_delay_seconds": delay // 10**9,
        }
    )
    table = [("(default)", policies.default), *rows]
    cells = [(name, standing.origin, str(standing.policy), _ends(standing.policy)) for name, standing in table]
    context.output.table(["VM", "FROM", "POLICY", "PERIODS END, AGES COUNT"], cells)
    context.output.line(f"Dropped moments can be taken back for {span(delay)}.")


@policy_app.command("show")
def show(
    vm: Annotated[str | None, typer.Argument(metavar="VM", help="Without: the default.")] = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """A policy, and what it means in a sentence."""
    context = context_of(locals())
    with context.repository() as repository:
        catalog, policies = _read(repository)
    standing = policies.of(catalog.vm(vm)) if vm else policies.default
    context.output.document(_document(standing))
    _say(context, vm or "The default", standing)


@policy_app.command("set")
def set_(
    target: Annotated[str | None, typer.Argument(metavar="VM", help="Whose policy; or --default.")] = None,
    line: Annotated[
        str | None, typer.Argument(metavar="LINE", help='As "hourly 14d, daily 90d"; "default": the default\'s again.')
    ] = None,
    for_default: Annotated[bool, typer.Option("--default", help="The policy of all VMs that have none of their own.")] = False,
    zone: Annotated[str | None, typer.Option("--zone", help="Where days and weeks end, as Europe/Berlin.")] = None,
    by_calendar: Annotated[
        bool | None,
        typer.Option("--by-calendar/--by-newest-moment", help="Count ages from today, or (usual) from the newest moment."),
    ] = None,
    delete_delay: Annotated[
        str | None, typer.Option("--delete-delay", metavar="SPAN", help="How long dropped moments can be taken back, as 72h.")
    ] = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Set a policy. It drops nothing by itself: `prune` does. What is not said (zone, how ages count) stays as it is."""
    context = context_of(locals())
    if for_default and line is None:
        target, line = None, target
    if delete_delay is not None and not (target or line or for_default):
        _set_delay(context, delete_delay)
        return
    changes = line is not None or zone is not None or by_calendar is not None
    if (target is None) != for_default or delete_delay is not None or not changes:
        raise WrongUsage(
            "Say whose policy, and what it is to be.",
            do=[
                'everywhen policy set web1 "hourly 14d, daily 90d"',
                'everywhen policy set --default "daily 90d" --zone Europe/Berlin',
                "everywhen policy set --delete-delay 7d",
            ],
        )
    with context.repository() as repository:
        catalog, policies = _read(repository)
        vm = catalog.vm(target) if target else None
        before = _before(policies, vm)
        if line == _DEFAULT:
            after = policies.default.policy if vm else BUILT_IN
            wanted = None
        else:
            after = wanted = _changed(context, before, line, zone, by_calendar)
        if vm:
            set_policy(repository, vm, wanted)
        else:
            set_default(repository, wanted)
        catalog, policies = _read(repository)
        standing = policies.of(vm_again(catalog, vm)) if vm else policies.default
        touched = [vm_again(catalog, vm)] if vm else [one for one in catalog.vms if not policies.has_own(one)]
        plans = plan_prune(repository, catalog, policies, touched)
    going = sum(len(plan.dropped) for plan in plans)
    context.output.document({**_document(standing), "before": str(before.policy), "next_prune_drops": going})
    _say(context, vm.name if vm else "The default", Standing(after, standing.origin))
    if going:
        whose = f"of {vm.name}" if vm else f"of {len([plan for plan in plans if plan.dropped])} VMs"
        context.output.line(f"The next prune would drop {going} moments {whose}: everywhen policy preview")


@policy_app.command("preview")
def preview(
    target: Annotated[str | None, typer.Argument(metavar="VM", help="All when none is named.")] = None,
    line: Annotated[str | None, typer.Argument(metavar="LINE", help="A policy to try; without: those in force.")] = None,
    free: Annotated[str | None, typer.Option("--free", metavar="SIZE", help="Propose what to thin to free so much.")] = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What a policy would drop, and what that frees. Changes nothing."""
    context = context_of(locals())
    if free is not None and line is not None:
        raise WrongUsage("--free proposes changes to the policies in force: leave the other policy out.")
    with context.repository() as repository:
        catalog, policies = _read(repository)
        if line is None and target is not None and " " in target.strip() and not _is_vm(catalog, target):
            target, line = None, target
        vms = [catalog.vm(target)] if target else catalog.vms
        tried = policies
        if line is not None:
            tried = policies.trying({vm.vm: _changed(context, policies.of(vm), line, None, None) for vm in vms})
        plans = plan_prune(repository, catalog, tried, vms)
        repository.refresh()
        with context.progress("estimate") as job:

            def report(done: int, total: int) -> None:
                job.step("finding what would come free", done, total)

            if free is not None:
                space = repository.store.space()
                wanted = parse_size(free, whole=space.total if space else None)
                found = proposals(repository, catalog, tried, plans, report)
            else:
                shown = Preview.of(repository, catalog, policies, plans, report)
    if free is not None:
        show_proposals(context, found, wanted, catalog)
        return
    context.output.document(preview_document(shown))
    show_preview(context, shown)


def vm_again(catalog: Catalog, vm: Vm) -> Vm:
    """The record of a VM in another catalog."""
    return next(known for known in catalog.vms if known.vm == vm.vm)


def _read(repository: Repository) -> tuple[Catalog, Policies]:
    catalog = read_catalog(repository)
    return catalog, read_policies(repository.documents, catalog.vms)


def _before(policies: Policies, vm: Vm | None) -> Standing:
    """What is in force; for what cannot be understood here, the built-in policy: it is about to be replaced."""
    try:
        return policies.of(vm) if vm else policies.default
    except Failed:
        return Standing(BUILT_IN, "built in")


def _is_vm(catalog: Catalog, name: str) -> bool:
    try:
        catalog.vm(name)
    except NotFound:
        return False
    return True


def _changed(context: Context, before: Standing, line: str | None, zone: str | None, by_calendar: bool | None) -> Policy:
    """A policy out of what was said and what was in force; one that nobody has set takes this machine's zone."""
    policy = before.policy
    if before.origin == "built in":
        policy = replace(policy, zone=zone_named(zone_here(context)))
    if line is not None:
        policy = replace(policy, terms=parse_terms(line))
    if zone is not None:
        policy = replace(policy, zone=zone_named(zone))
    return policy if by_calendar is None else replace(policy, by_calendar=by_calendar)


def zone_here(context: Context) -> str:
    """This machine's time zone by its name: TZ, or where /etc/localtime points; UTC where it has none."""
    name = context.env.get("TZ", "").lstrip(":")
    if not name:
        _, found, name = os.path.realpath("/etc/localtime").partition("zoneinfo/")
        name = name if found and Path("/etc/localtime").exists() else ""
    try:
        return zone_named(name).key if name else "UTC"
    except WrongUsage:
        return "UTC"


def _set_delay(context: Context, text: str) -> None:
    wish = parse_span(text)
    with context.repository() as repository:
        prolonged = set_delay(repository, wish)
        settings = read_delays(repository.documents)
        now = repository.surroundings.clock()
        in_force = delay_in_force(settings, now)
    context.output.document(
        {
            "delete_delay_seconds": wish // 10**9,
            "in_force_seconds": in_force // 10**9,
            "prolonged_moments": sum(len(drop.points) for drop in prolonged),
        }
    )
    if in_force > wish:
        context.output.line(
            f"Dropped moments can then be taken back for {span(wish)} only; until that takes effect, for {span(in_force)}."
        )
        context.output.line(f"A lower delay takes effect when the old one has run: {local_time(now + in_force, context.zone)}.")
    else:
        context.output.line(f"Dropped moments can be taken back for {span(wish)} from now on.")
    for drop in prolonged:
        end = local_time(drop.effective_ns, context.zone)
        context.output.line(f"{len(drop.points)} moments dropped before can be taken back until {end}.")


def _ends(policy: Policy) -> str:
    counted = "from today" if policy.by_calendar else "from the newest moment"
    return f"{policy.zone.key}, {counted}"


def _document(standing: Standing) -> dict[str, object]:
    policy = standing.policy
    return {
        "policy": str(policy),
        "zone": policy.zone.key,
        "by_calendar": policy.by_calendar,
        "from": standing.origin,
        "sentence": sentence(policy),
    }


def _say(context: Context, whose: str, standing: Standing) -> None:
    origin = {"own": "", "default": " (the default)", "built in": " (built in)", "tried": ""}[standing.origin]
    context.output.line(f"{whose}: {standing.policy}{origin}")
    context.output.line(f"  {sentence(standing.policy)}")
