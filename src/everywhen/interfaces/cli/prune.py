# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen prune`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from everywhen.interfaces.cli.app import (
    KEEP,
    AsJson,
    DryRun,
    PassphraseFile,
    ProgressStyle,
    Quiet,
    RecoveryKeyFile,
    Repo,
    app,
    context_of,
)
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.prune_preview import Preview, back_until, plan_document, preview_document, show_dry_run
from everywhen.repository.ledger import Drop
from everywhen.repository.repository import Repository
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.failures import Exit, WrongUsage
from everywhen.services.keep.policies import read_policies
from everywhen.services.keep.pruning import VmPlan, drop, plan_prune, undo
from everywhen.services.times import rfc3339

_FLAGS = {"third": "--yes-more-than-a-third", "clock": "--yes-the-clock-is-right"}
"""The flag that answers each brake where nobody can be asked. `last` never comes from a policy: the newest moment stays."""


@app.command("prune", rich_help_panel=KEEP)
def prune(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="VM", help="All when none is named; with --undo also POINTs.")
    ] = None,
    dry_run: DryRun = False,
    undo_: Annotated[bool, typer.Option("--undo", help="Take dropped moments back: those named, or all.")] = False,
    yes_third: Annotated[bool, typer.Option(_FLAGS["third"], help="Even if more than a third of a VM's moments go.")] = False,
    yes_clock: Annotated[
        bool, typer.Option(_FLAGS["clock"], help="Even if a VM's newest moment is more than a day away from the clock.")
    ] = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int | None:
    """Drop the moments that the policies let go. They can be taken back for some days; `gc` frees space after that."""
    context = context_of(locals())
    with context.repository() as repository:
        catalog = read_catalog(repository)
        if undo_:
            return _undo(context, repository, catalog, targets or [], dry_run=dry_run)
        policies = read_policies(repository.documents, catalog.vms)
        named = [catalog.vm(name) for name in targets or []]
        plans = plan_prune(repository, catalog, policies, named or catalog.vms)
        for text in catalog.unreadable:
            context.output.warn(text)
        if dry_run:
            repository.refresh()
            with context.progress("estimate") as job:
                shown = Preview.of(
                    repository, catalog, policies, plans, lambda done, total: job.step("what would come free", done, total)
                )
            context.output.document(preview_document(shown))
            show_dry_run(context, shown)
            _say_open(context, plans)
            for plan in plans:
                for brake in plan.brakes:
                    context.output.warn(f"{brake.words} Without a terminal: {_FLAGS[brake.code]}")
            context.output.line(f"{back_until(context, shown.effective_ns)} Nothing was done (--dry-run).")
            return None
        _ask(plans, {"third": yes_third, "clock": yes_clock})
        points = [moment.id for plan in plans for moment in plan.dropped]
        made = drop(repository, points, "prune by policy") if points else None
    _report(context, plans, made)
    return None


def _ask(plans: list[VmPlan], answers: dict[str, bool]) -> None:
    """Stop, or ask, when a plan goes far (I-11). Raises WrongUsage, Abort."""
    asked = [brake for plan in plans for brake in plan.brakes if not answers.get(brake.code, False)]
    if not asked:
        return
    if not sys.stdin.isatty():
        flags = sorted({_FLAGS[brake.code] for brake in asked})
        raise WrongUsage(
            asked[0].words if len(asked) == 1 else f"{asked[0].words} (And {len(asked) - 1} more like this.)",
            safe="Nothing was dropped.",
            do=["Look first: everywhen prune --dry-run", f"If it is right: everywhen prune {' '.join(flags)}"],
        )
    for brake in asked:
        typer.echo(brake.words, err=True)
    typer.confirm("Drop them? They can be taken back for a while", abort=True, err=True)


def _report(context: Context, plans: list[VmPlan], made: Drop | None) -> None:
    gone = set(made.points) if made else set()
    document = {
        "dry_run": False,
        "drop": made.drop if made else None,
        "dropped": sorted(gone),
        "effective": rfc3339(made.effective_ns) if made else None,
        "vms": [plan_document(plan) for plan in plans],
    }
    context.output.document(document)
    for plan in plans:
        count = len([moment for moment in plan.dropped if moment.id in gone])
        if count:
            context.output.line(f"{plan.vm.name}: {count} of {plan.moments} moments dropped")
    _say_open(context, plans)
    if made is None:
        context.output.line("Nothing to drop.")
    else:
        context.output.line(back_until(context, made.effective_ns))
        context.output.line("Take them back: everywhen prune --undo")


def _say_open(context: Context, plans: list[VmPlan]) -> None:
    for plan in plans:
        if plan.open:
            context.output.line(f"{plan.vm.name}: {len(plan.open)} moments are open now and stay until a later prune.")


def _undo(context: Context, repository: Repository, catalog: Catalog, wanted: list[str], *, dry_run: bool) -> int | None:
    names = {str(point.point): point.vm for point in catalog.dropped_points}
    vms = {vm.vm: vm.name for vm in catalog.vms}
    back, lost = undo(repository, catalog, wanted, dry_run=dry_run)
    context.output.document({"dry_run": dry_run, "taken_back": back, "lost": lost})
    by_vm: dict[str, int] = {}
    for point in back:
        name = vms.get(names.get(point, ""), "?")
        by_vm[name] = by_vm.get(name, 0) + 1
    for name, count in sorted(by_vm.items()):
        context.output.line(f"{name}: {count} moments {'would be taken' if dry_run else 'taken'} back")
    if not back:
        context.output.line("There are no dropped moments to take back.")
    if lost:
        context.output.warn(f"{len(lost)} moments are gone already: {', '.join(lost[:5])}")
        return Exit.LESS_THAN_ASKED
    return None
