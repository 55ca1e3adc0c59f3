# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen restore group:NAME@WHEN`: every VM of a group as of one instant, each into a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.group_instant import instant_of
from everywhen.interfaces.cli.restored_words import restored_document, tell_restored
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.failures import Failed, WrongUsage
from everywhen.services.opening import OpenedMoment, open_at
from everywhen.services.restore import Mode, RestoreOrder, RestoreResult, restore
from everywhen.services.times import rfc3339


@dataclass(frozen=True, slots=True)
class Into:
    """Where disks go, in which format, and what becomes of what is there."""

    folder: str
    format: str
    mode: Mode
    verify: bool = False
    dry_run: bool = False


def restore_group(context: Context, group: str, written: str, into: Into, *, exact: bool) -> None:
    """`written`: WHEN. Raises Failure."""
    if into.folder == "-":
        raise WrongUsage("Standard output takes one disk, not a group.", on=into.folder)
    with context.repository() as repository:
        catalog, found = instant_of(context, repository, group, written, exact=exact)
        folders = {vm.name: os.path.join(into.folder, vm.name) for vm in found.vms}
        if into.mode == "new":
            _demand_room(folders.values())
        context.output.line(found.words(context.zone))
        results: dict[str, object] = {}
        seconds = 0.0
        for vm in found.vms:
            # One after the other: up to 256 MiB of journal lie over a point.
            opened = open_at(repository, catalog, vm, found.time_ns, zone=context.zone)
            context.output.line(opened.found.words(vm.name, context.zone))
            result = _restored(context, repository, vm, opened, into, folders[vm.name])
            for remark in result.remarks:
                context.output.warn(remark)
            tell_restored(context, vm.name, opened, result)
            results[vm.name] = restored_document(vm.name, opened, result)
            seconds += result.seconds
    how = {"write_order": found.in_order, "held_back": found.held_back}
    context.output.document({"group": group, "time": rfc3339(found.time_ns), **how, "vms": results})
    context.output.line(f"{seconds:.1f} s")


def _restored(context: Context, repository: Repository, vm: Vm, opened: OpenedMoment, into: Into, folder: str) -> RestoreResult:
    if not into.dry_run:
        os.makedirs(folder, exist_ok=True)
    disks, state = sorted(opened.point.disks), context.state_folder()
    order = RestoreOrder(
        vm, opened, disks, folder, into.format, into.mode, -1, files=True, state=state, verify=into.verify, dry_run=into.dry_run
    )
    with context.progress(f"restore {vm.name}") as job:
        return restore(repository, order, lambda done, total: job.report(done, total))


def _demand_room(folders: Iterable[str]) -> None:
    """That the last VM's files are there already should not be learned when the first ones are written. Raises Failed."""
    for folder in folders:
        if os.path.isdir(folder) and os.listdir(folder):
            raise Failed(f"There is something in {folder}.", on=folder, safe="Nothing was written.", do=["--overwrite"])
