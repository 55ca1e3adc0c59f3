# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen restore MOMENT --define URI`: a VM defined on this host's libvirt again, with its disks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from everywhen.block.patched import Patches
from everywhen.capture.qmp import MonitorError
from everywhen.formats.point import RecoveryPoint
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
from everywhen.services.restore import Mode, RestoreOrder, bytes_used
from everywhen.services.returning.answering import started_and_seen
from everywhen.services.returning.leftovers import Ledger, Made, ledger_of
from everywhen.services.returning.making import MakeOrder, Ordered, goes_on_with, left_over, make, taken_up
from everywhen.services.returning.placing import WRITTEN, DiskPlace, Wanted
from everywhen.services.returning.planning import Returning, name_for, planned
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
    check_format(asked)
    with context.repository() as repository, reached(asked.uri) as host:
        ship_newest(context, address.vm)
        catalog = read_catalog(repository)
        now = repository.surroundings.clock()
        vm, opened = open_moment(repository, catalog, address, now_ns=now, zone=context.zone, exact=asked.exact)
        work = Work(context, repository, host, asked)
        with work.leased(vm.name, [opened.point]):
            answer = work.define(vm, opened, tell_plan)
            if asked.wishes.start and not asked.dry_run:
                work.start(answer)
    answer.seconds = time.monotonic() - asked.began
    context.output.document(answer.document())
    tell_defined(context, answer)
    return answer.exit


def check_format(asked: Definition) -> None:
    """Raises WrongUsage."""
    if asked.wishes.image_format not in (None, *WRITTEN):
        raise WrongUsage(f"A VM of libvirt's gets disks as {' or '.join(WRITTEN)}.", on=asked.wishes.image_format or "")


@dataclass(frozen=True, slots=True)
class Work:
    """What each VM's return needs. All methods raise Failure, and the errors of the layers below."""

    context: Context
    repository: Repository
    host: VmHost
    asked: Definition

    @contextmanager
    def leased(self, what: str, points: list[RecoveryPoint]) -> Iterator[None]:
        """While these points are read."""
        self.context.output.kept = "What was made of it is taken back; the repository was only read."
        with opened_points(self.repository, f"restore {what}", points) as leased:
            if not leased:
                self.context.output.warn("the repository cannot be written: nothing there says that this moment is being read")
            yield

    def look(self, vm: Vm, opened: OpenedMoment) -> Answer:
        """What would be made, and all checks; nothing is changed."""
        returning, wishes, ledger = self._asked(vm, opened)
        with ledger as book:
            return self._looked(returning, opened, wishes, book.read())

    def define(self, vm: Vm, opened: OpenedMoment, tell: Callable[[Context, Answer], None]) -> Answer:
        """The same, told; then, where nothing stands in the way and it is no dry run, made."""
        returning, wishes, ledger = self._asked(vm, opened)
        with ledger as book:
            left = book.read()
            answer = self._looked(returning, opened, wishes, left)
            tell(self.context, answer)
            demand(answer.checks, vm.name, "Nothing was written.")
            if not self.asked.dry_run:
                fresh = Made(self.asked.uri, answer.plan.name, str(answer.plan.made.uuid), returning.moment)
                made = left if left is not None and goes_on_with(left, fresh.moment, answer.plan) else fresh
                ordered = _orders(vm, opened, self.context, verify=self.asked.verify)
                with self.context.progress(f"restore {vm.name}") as job:
                    order = MakeOrder(answer.plan, self.host, book, made, ordered)
                    answer.written = make(self.repository, order, job.report)
        return answer

    def start(self, answer: Answer) -> None:
        """It stays defined, whatever happens here."""
        name, uuid, output = answer.plan.name, str(answer.plan.made.uuid), self.context.output
        output.kept = f'The domain "{name}" is defined, with its disks.'
        output.note(f"{name} starts; waiting until its guest is up, {_WAIT_S:g} s at most (Ctrl-C: it goes on without us)")
        try:
            sign = started_and_seen(self.host, uuid, _WAIT_S, time.monotonic, output.note)
            runs = bool(sign) or self.host.runs(uuid)
        except MonitorError as error:
            raise Failed(
                f"{name} does not start: {error}.",
                on=name,
                safe="It is defined, with its disks complete.",
                do=[f"virsh start {name}", f"Change it first: virsh edit {name}"],
            ) from error
        answer.seen = Seen(sign, time.monotonic() - self.asked.began, runs=runs)

    def _asked(self, vm: Vm, opened: OpenedMoment) -> tuple[Returning, Wishes, AbstractContextManager[Ledger]]:
        returning = returning_of(self.repository, vm, opened)
        wishes = replace(self.asked.wishes, storage=parse_storage(self.asked.storage, opened.point.disks))
        return returning, wishes, ledger_of(self.context.state_folder(), self.asked.uri, name_for(returning, wishes))

    def _looked(self, returning: Returning, opened: OpenedMoment, wishes: Wishes, left: Made | None) -> Answer:
        randomness = self.repository.surroundings.randomness
        plan = planned(returning, wishes, self.host, randomness, taken_up(left, returning.moment))
        checks = [*left_over(left, returning.moment, plan, self.host), *plan.checks]
        return Answer(self.asked.uri, returning, opened, wishes.kind, plan, checks)


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
