# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen restore MOMENT --define URI`: a VM defined on this host's libvirt again, with its disks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from everywhen.block.patched import Patches
from everywhen.capture.qmp import MonitorError
from everywhen.hypervisor.host import VmHost
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.defined_words import Answer, Seen, tell_defined, tell_plan
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.repository.ledger import Vm
from everywhen.repository.reading import opened_points
from everywhen.repository.repository import Repository
from everywhen.services.addresses import Address
from everywhen.services.catalog import read_catalog
from everywhen.services.definition_files import files_of
from everywhen.services.failures import Exit, Failed, WrongUsage
from everywhen.services.opening import OpenedMoment, open_moment
from everywhen.services.restore import Mode, RestoredDisk, RestoreOrder, bytes_used
from everywhen.services.returning.answering import started_and_seen
from everywhen.services.returning.leftovers import Made, ledger_of
from everywhen.services.returning.making import MakeOrder, Ordered, left_over, make, taken_up
from everywhen.services.returning.placing import WRITTEN, DiskPlace, Wanted
from everywhen.services.returning.planning import Plan, Returning, name_for, planned
from everywhen.services.returning.wishes import Wishes, demand, parse_storage
from everywhen.services.times import rfc3339

_WAIT_S = 300.0
"""So long a guest may take until it is up, as with `boot`."""


@dataclass(frozen=True, slots=True)
class Definition:
    """Where, and what is asked for; `storage`: as it was typed; `began`: by the monotonic clock."""

    uri: str
    wishes: Wishes
    storage: tuple[str, ...]
    began: float
    exact: bool = False
    verify: bool = False
    dry_run: bool = False


def define(context: Context, address: Address, asked: Definition) -> Exit:
    """Raises Failure."""
    if address.path is not None or address.disk is not None:
        raise WrongUsage(
            "A VM is defined, with all its disks.", on=str(address), do=[f"everywhen restore {address.vm}@… --define"]
        )
    if asked.wishes.image_format not in (None, *WRITTEN):
        raise WrongUsage(f"A VM of libvirt's gets disks as {' or '.join(WRITTEN)}.", on=asked.wishes.image_format or "")
    context.output.kept = "What was made of it is taken back; the repository was only read."
    with context.repository() as repository:
        ship_newest(context, address.vm)
        catalog = read_catalog(repository)
        now = repository.surroundings.clock()
        vm, opened = open_moment(repository, catalog, address, now_ns=now, zone=context.zone, exact=asked.exact)
        with opened_points(repository, f"restore {vm.name}", [opened.point]) as leased:
            if not leased:
                context.output.warn("the repository cannot be written: nothing there says that this moment is being read")
            answer = _defined(context, repository, vm, opened, asked)
    asked_up = answer.seen is not None and not answer.seen.sign
    return Exit.LESS_THAN_ASKED if asked_up else Exit.DONE


def _defined(context: Context, repository: Repository, vm: Vm, opened: OpenedMoment, asked: Definition) -> Answer:
    returning = returning_of(repository, vm, opened)
    wishes = replace(asked.wishes, storage=parse_storage(asked.storage, opened.point.disks))
    randomness = repository.surroundings.randomness
    name = name_for(returning, wishes)
    with reached(asked.uri) as host, ledger_of(context.state_folder(), asked.uri, name) as ledger:
        left = ledger.read()
        plan = planned(returning, wishes, host, randomness, taken_up(left, returning.moment))
        checks = [*left_over(left, returning.moment, plan), *plan.checks]
        answer = Answer(asked.uri, returning, opened, wishes.kind, plan, checks)
        tell_plan(context, answer)
        demand(checks, vm.name, "Nothing was written.")
        if not asked.dry_run:
            made = left or Made(asked.uri, name, str(plan.made.uuid), returning.moment)
            ordered = _orders(vm, opened, context, verify=asked.verify)
            answer.written = _made(repository, MakeOrder(plan, host, ledger, made, ordered), context, f"restore {vm.name}")
            if wishes.start:
                answer.seen = _started(context, host, plan, asked)
    answer.seconds = time.monotonic() - asked.began
    context.output.document(answer.document())
    tell_defined(context, answer)
    return answer


def _orders(vm: Vm, opened: OpenedMoment, context: Context, *, verify: bool) -> Ordered:
    def ordered(place: DiskPlace, mode: Mode) -> RestoreOrder:
        return RestoreOrder(
            vm,
            opened,
            [place.disk.name],
            place.path,
            place.format,
            mode,
            -1,
            files=False,
            state=context.state_folder(),
            verify=verify,
        )

    return ordered


def returning_of(repository: Repository, vm: Vm, opened: OpenedMoment) -> Returning:
    """A moment as what is to be a VM again. Raises StorageError, Damaged."""
    disks = []
    for name, disk in sorted(opened.point.disks.items()):
        patches = opened.patches.get(name) or Patches()
        disks.append(Wanted(name, disk.tree.size, bytes_used(repository, disk.tree, patches)))
    # A point, or an exact time: the same when the command is given again.
    when = rfc3339(opened.found.moment.time_ns) if opened.found.writes_after else opened.point.point
    return Returning(vm.name, f"{vm.name}@{when}", disks, files_of(repository, opened.point))


def _made(repository: Repository, order: MakeOrder, context: Context, title: str) -> list[RestoredDisk]:
    with context.progress(title) as job:
        return make(repository, order, job.report)


def _started(context: Context, host: VmHost, plan: Plan, asked: Definition) -> Seen:
    """It stays defined, whatever happens here."""
    context.output.kept = f'The domain "{plan.name}" is defined, with its disks.'
    uuid = str(plan.made.uuid)
    context.output.note(
        f"{plan.name} starts; waiting until its guest is up, {_WAIT_S:g} s at most (Ctrl-C: it goes on without us)"
    )
    try:
        sign = started_and_seen(host, uuid, _WAIT_S, time.monotonic, context.output.note)
        runs = bool(sign) or host.runs(uuid)
    except MonitorError as error:
        raise Failed(
            f"{plan.name} does not start: {error}.",
            on=plan.name,
            safe="It is defined, with its disks complete.",
            do=[f"virsh start {plan.name}", f"Change it first: virsh edit {plan.name}"],
        ) from error
    return Seen(sign, time.monotonic() - asked.began, runs=runs)


@contextmanager
def reached(uri: str) -> Iterator[VmHost]:
    """The libvirt of this host; its errors become failures. Raises WrongUsage, Failed."""
    if urlsplit(uri).hostname:
        raise WrongUsage(
            f"{uri} is on another host: disks, UEFI variables and TPM are written as files of this one.",
            on=uri,
            do=["Run everywhen there, with the same repository, and --define qemu:///system"],
        )
    try:
        with VmHost(uri) as host:
            yield host
    except MonitorError as error:
        raise Failed(
            f"{error}.",
            on=uri,
            do=["Is it running? systemctl status libvirtd virtqemud", "May this user? sudo, or the group libvirt"],
        ) from error
