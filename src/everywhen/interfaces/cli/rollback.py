# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen rollback`."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Annotated

import typer

from everywhen.interfaces.cli.app import (
    GET_BACK,
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
from everywhen.interfaces.cli.hypervisors import Domain
from everywhen.interfaces.cli.named_values import pairs
from everywhen.interfaces.cli.rollback_asked import Meant, meant, targets
from everywhen.interfaces.cli.rollback_capture import CaptureHere
from everywhen.interfaces.cli.rollback_machines import Machines
from everywhen.interfaces.cli.rollback_words import Telling, plan_document, tell_done, tell_plans
from everywhen.repository.reading import opened_points
from everywhen.repository.repository import Repository
from everywhen.services.addresses import Address
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import Busy, NotFound, WrongUsage
from everywhen.services.opening import open_moment
from everywhen.services.rollback.image_writer import QemuTools
from everywhen.services.rollback.planning import Asked, Plan, apart_ns, planned
from everywhen.services.rollback.record import Record, Step, alone, read_record, remove_record
from everywhen.services.rollback.rollback import Place, Rollback
from everywhen.services.rollback.running import all_done, not_begun, run


@app.command("rollback", rich_help_panel=GET_BACK)
def rollback_command(
    moments: Annotated[
        list[str],
        typer.Argument(metavar="MOMENT|group:NAME", help="VM[/DISK]@WHEN; VM~1 is what a VM's first rollback left."),
    ],
    libvirt: Annotated[
        str | None, typer.Option("--libvirt", metavar="URI", help="Else LIBVIRT_DEFAULT_URI, or qemu:///system.")
    ] = None,
    domain: Domain = None,
    yes_stop: Annotated[
        list[str] | None, typer.Option("--yes-stop", metavar="VM", help="Stop it, if it runs, and start it again. Repeatable.")
    ] = None,
    power_off: Annotated[
        bool, typer.Option("--power-off", help="Stop as by the switch: without asking the guest, which has a minute else.")
    ] = False,
    config: Annotated[
        bool, typer.Option("--config", help="Its definition, UEFI variables and TPM, too, as they were.")
    ] = False,
    disk: Annotated[
        list[str] | None,
        typer.Option("--disk", metavar="DISK=IMAGE", help="All images of a VM that is off, and that libvirt does not know."),
    ] = None,
    image_format: Annotated[
        list[str] | None, typer.Option("--image-format", metavar="DISK=FORMAT", help="Instead of detecting it.")
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Forward again to what the last rollback left; or back from one that was broken off.")
    ] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Refuse a moment that is not exactly the one named.")] = False,
    dry_run: DryRun = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Set VMs back where they are, writing only what differs. What is left stays, as a branch that can be gone back to."""
    context = context_of(locals())
    given = pairs(disk or [], "DISK=IMAGE"), pairs(image_format or [], "DISK=FORMAT")
    if config and given[0]:
        raise WrongUsage("--config is for VMs of libvirt's: of images nobody knows a definition.")
    machines = Machines(*given, libvirt, domain, context.env, secrets.token_bytes)
    tools = QemuTools(context.env.get("PATH"))
    context.output.kept = "Nothing of the disks was changed."
    with context.repository() as repository, ExitStack() as stack:
        found = meant(read_catalog(repository), moments, undo=undo)
        places = {
            one.vm.name: Place(
                machines.machine(one.vm, several=len(found) > 1),
                CaptureHere(context, one.vm.name),
                tools,
                context.state_folder(),
            )
            for one in found
        }
        for one in [] if dry_run else found:
            stack.enter_context(alone(context.state(one.vm.name)))
        records = _under_way(context, repository, found, tuple(moments), undo=undo, dry_run=dry_run)
        if not records:
            plans = _plans(context, repository, found, places, (tuple(moments), undo, exact, config))
            for plan in plans:
                machines.demand_known_formats(plan.asked.vm, plan.newest.point)
            apart = apart_ns(read_catalog(repository), plans)
            tell_plans(context, plans, apart)
            if dry_run:
                context.output.document({"vms": {plan.asked.vm.name: plan_document(plan, apart) for plan in plans}})
                context.output.line("Nothing was done (--dry-run).")
                return
            _demand_stop([plan.asked.vm.name for plan in plans if plan.record.ran], set(yes_stop or []))
            records = {plan.asked.vm.name: plan.record for plan in plans}
        stack.enter_context(_leased(repository, records))
        told = Telling(context, stack)
        vms = {one.vm.name: one.vm for one in found}
        rollbacks = [Rollback(repository, vms[name], places[name], record, told) for name, record in records.items()]
        context.output.kept = "Nothing is lost: the same command goes on with it, and with --undo it goes back."
        run(rollbacks, at_once=power_off)
        points = {one.vm.name: one.made() for one in rollbacks}
    tell_done(context, rollbacks, points)


@contextmanager
def _leased(repository: Repository, records: Mapping[str, Record]) -> Iterator[None]:
    """Nobody drops meanwhile what is gone back to. Raises NotFound where it was dropped since a run was broken off."""
    wanted = {name: record.goal.point for name, record in records.items() if not record.undo}
    points = {point.point: point for point in read_catalog(repository).points}
    gone = [name for name, point in wanted.items() if point not in points]
    if gone:
        raise NotFound(
            f"{gone[0]} cannot be set back to {wanted[gone[0]]}, which is not kept any more.",
            on=gone[0],
            safe="Nothing was changed now. Its disks may be a mixture of two moments.",
            do=[f"{records[gone[0]].command} --undo", f"everywhen prune --undo {wanted[gone[0]]}"],
        )
    with opened_points(repository, f"rollback {', '.join(records)}", [points[point] for point in wanted.values()]):
        yield


def _demand_stop(running: Sequence[str], told: set[str]) -> None:
    """Raises WrongUsage where nobody can be asked whether a VM may be stopped; Abort."""
    left = [name for name in running if name not in told]
    if not left:
        return
    if not sys.stdin.isatty():
        raise WrongUsage(
            f"{left[0]} is running, and nobody said that it may be stopped.",
            on=left[0],
            safe="Nothing was changed.",
            do=[f"If it may: {' '.join(f'--yes-stop {name}' for name in running)}"],
        )
    for name in left:
        if typer.prompt(f"{name} is running. Type its name to have it stopped and rolled back", err=True) != name:
            raise typer.Abort


def _under_way(
    context: Context, repository: Repository, found: Sequence[Meant], words: tuple[str, ...], *, undo: bool, dry_run: bool
) -> dict[str, Record]:
    """What an earlier run of this command has left; empty where it is to begin. Raises Busy, WrongUsage, Damage."""
    folders = {one.vm.name: context.state(one.vm.name) for one in found}
    records = {name: read_record(folder) for name, folder in folders.items()}
    known = {name: record for name, record in records.items() if record is not None}
    for name, record in known.items():
        _demand_same(name, record, repository, words, undo=undo)
    if known and dry_run:
        name, record = next(iter(known.items()))
        raise Busy(f"A rollback of {name} was broken off.", on=name, safe="Nothing was done.", do=[record.command])
    done = all_done(list(records.values()))
    if not known or (done and not undo):
        return known
    if done or not_begun(list(records.values())):
        for name in known:
            remove_record(folders[name])
        return {}
    missing = [name for name, record in records.items() if record is None]
    if missing:
        what = f"A rollback of {', '.join(known)} was broken off, and {missing[0]} had no part in it."
        raise Busy(what, on=missing[0], safe="Nothing was changed.", do=["Go on with it, and name that one alone after it."])
    return {name: _turned(name, record, undo=undo) for name, record in known.items()}


def _demand_same(name: str, record: Record, repository: Repository, words: tuple[str, ...], *, undo: bool) -> None:
    """Raises Busy where what is under way is something else."""
    ours = record.repository == repository.id.hex()
    if ours and (undo or (record.asked == words and not record.undo)):
        return
    what = "is being taken back" if record.undo else "is under way"
    other = "" if ours else " of another repository"
    raise Busy(
        f"A rollback of {name} to a moment{other} {what}, and was broken off.",
        on=name,
        safe="Nothing was changed now. Its disks may be a mixture of two moments.",
        do=[*([] if record.undo else [f"Go on with it: {record.command}"]), f"Back from it: {record.command} --undo"],
    )


def _turned(name: str, record: Record, *, undo: bool) -> Record:
    """The record of a rollback that is taken back. Raises Busy where it is over but for the start."""
    if undo and not record.undo and record.has(Step.COMMITTED):
        raise Busy(
            f"The disks of {name} are set back already; what is left is to start it.",
            on=name,
            safe="Nothing was changed now.",
            do=[f"Go on with it: {record.command}", f"Then forward again: everywhen rollback {name} --undo"],
        )
    return replace(record, undo=undo)


def _plans(
    context: Context,
    repository: Repository,
    found: Sequence[Meant],
    places: Mapping[str, Place],
    how: tuple[tuple[str, ...], bool, bool, bool],
) -> list[Plan]:
    """What would be done; `how`: the command's moments; whether to take the last rollback back, exactly there, configured."""
    words, undo, exact, config = how
    made = targets(context, repository, found, undo=undo, exact=exact)
    catalog, now = read_catalog(repository), repository.surroundings.clock()
    plans = []
    for one in made:
        newest = open_moment(repository, catalog, Address(one.vm.name), now_ns=now, zone=context.zone, exact=False)[1]
        place = places[one.vm.name]
        asked = Asked(one.vm, one.moment, one.disk, words, config)
        plans.append(planned(repository, catalog, asked, newest, place.machine, place.state))
    return plans
