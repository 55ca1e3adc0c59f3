# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen boot MOMENT --define URI --production`: a VM runs from the backup at once, and moves to its own storage."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from everywhen.capture.qmp import MonitorError
from everywhen.capture.socket_access import NoAccess, ProcessUser, let_connect, let_into
from everywhen.capture.spool_reader import SpoolDamaged
from everywhen.hypervisor.host import VmHost
from everywhen.hypervisor.moving import MovingDomain
from everywhen.interfaces.cli.asking import LOOK_S
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.define import reached, returning_of
from everywhen.interfaces.cli.defined_words import Answer, tell_plan
from everywhen.interfaces.control_socket import NoAnswer, NobodyThere, ask
from everywhen.interfaces.sockets import unix_socket
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.addresses import Address, parse_address
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import Busy, Failed, Failure, Interrupted, NoSpace, NotFound, WrongUsage
from everywhen.services.instant.line import Line, Start
from everywhen.services.instant.production import Production, on_server
from everywhen.services.instant.record import Record, Recorded, Target, alone
from everywhen.services.instant.serving import served
from everywhen.services.instant.starting import brought_in, start_again, start_at
from everywhen.services.protect.capture_order import REPOSITORY_FAILS, Time
from everywhen.services.protect.lineage import Displaced
from everywhen.services.protect.spool_import import ForeignSpool, SpoolInUse
from everywhen.services.returning.planning import Earlier, planned
from everywhen.services.returning.wishes import Wishes, demand, failed, parse_storage
from everywhen.services.view.moments import MomentView, OpenMoments

_SPOOL = 32 << 30
"""Bytes that may wait here while the repository is away."""
_LOOK_S = 0.5
_SOCKET = "instant.sock"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for; `pace`: bytes a second of each disk, 0: no limit; `began`: by the monotonic clock."""

    moment: str
    uri: str
    storage: tuple[str, ...]
    network: str | None
    pace: int
    began: float
    back: bool = False
    dry_run: bool = False


def in_production(context: Context, asked: Asked) -> None:
    """Raises Failure."""
    address = parse_address(asked.moment)
    if address.path is not None or address.disk is not None:
        raise WrongUsage("A VM runs with all its disks.", on=asked.moment)
    with context.repository() as repository, reached(asked.uri) as host, ExitStack() as stack:
        vm = read_catalog(repository).vm(address.vm)
        folder = context.state(vm.name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(alone(folder))
        recorded = Recorded.found(folder)
        if recorded is not None and asked.moment != recorded.now.asked:
            again = recorded.now.command
            raise Busy(
                f"{vm.name} was begun to be brought back as {recorded.now.asked}.",
                on=vm.name,
                safe="Nothing was done.",
                do=[f"Go on with that: {again}", f"Or take it back: {again} --back"],
            )
        _demand_no_capture(vm, folder)
        try:
            if asked.back:
                _back(context, repository, _Host(host, vm, folder), recorded)
            else:
                _Run(context, repository, asked, _Host(host, vm, folder)).run(address, recorded)
        except MonitorError as error:
            again = "The same command again goes on from there; with --back all of it is taken back"
            raise Failed(f"{error}.", on=vm.name, do=[again]) from error


def _demand_no_capture(vm: Vm, folder: Path) -> None:
    """It would tap the domain as soon as that is started, and take over. Raises Busy."""
    with suppress(NobodyThere):
        with suppress(NoAnswer):
            ask(folder, {"wish": "status"}, patience_s=LOOK_S)
        raise Busy(
            f"A capture of {vm.name} runs on this host.",
            on=vm.name,
            safe="Nothing was done.",
            do=[f"End it: everywhen unprotect {vm.name}", f"Does it run here? Then go back: everywhen rollback {vm.name}@WHEN"],
        )


@dataclass(frozen=True, slots=True)
class _Host:
    """Where the VM is to be; `folder`: its state on this host."""

    host: VmHost
    vm: Vm
    folder: Path

    @property
    def socket(self) -> Path:
        return self.folder / "sockets" / _SOCKET


def _bring_in(repository: Repository, where: _Host) -> None:
    """What earlier runs left. Raises Busy, Failed."""
    try:
        brought_in(repository, where.vm, where.folder / "spool", lambda: None)
    except SpoolInUse as error:
        raise Busy(f"{error}.", on=where.vm.name, safe="Nothing was done.", do=["Try again in a moment."]) from error
    except (ForeignSpool, SpoolDamaged) as error:
        raise Failed(f"{error}.", on=where.vm.name, safe="Nothing was done.") from error


def _back(context: Context, repository: Repository, where: _Host, recorded: Recorded | None) -> None:
    if recorded is None:
        raise NotFound(f"{where.vm.name} is not being brought back on this host.", on=where.vm.name, safe="Nothing was done.")
    with closing(MovingDomain(where.host.uri, recorded.now.uuid)) as domain:
        Production(recorded, where.host, domain, context.output.note).back()
    _bring_in(repository, where)
    recorded.over()
    context.output.document({"vm": where.vm.name, "domain": recorded.now.name, "back": True})
    context.output.line(f"{recorded.now.name} is off and not defined any more; what was copied of it is removed.")
    context.output.line(f"All that it wrote is in its timeline: everywhen points {where.vm.name}")


@dataclass(slots=True)
class _Run:
    """One run, from serving the disks to the end."""

    context: Context
    repository: Repository
    asked: Asked
    where: _Host
    stack: ExitStack = field(default_factory=ExitStack)

    def run(self, address: Address, recorded: Recorded | None) -> None:
        """Raises Failure, MonitorError."""
        _bring_in(self.repository, self.where)
        surroundings = self.context.surroundings()
        with self.stack, Repository(self.repository.store, self.repository.unlocked, surroundings, 1) as reading:
            moments = OpenMoments(
                reading, "boot", zone=self.context.zone, monotonic=time.monotonic, linger_s=0, before=lambda _: None
            )
            self.stack.callback(moments.close)
            catalog = read_catalog(self.repository)
            newest = catalog.newest(self.where.vm)
            if recorded is not None and newest is not None and newest.point != recorded.now.parent:
                address, parent = start_again(catalog, self.where.vm)
                view = self.stack.enter_context(moments.used(address))
                start = Start(view.moment, parent)
            else:
                address = parse_address(recorded.now.moment) if recorded is not None else address
                view = self.stack.enter_context(moments.used(address))
                start = start_at(self.repository, catalog, self.where.vm, view.moment)
            self.context.output.note(view.moment.found.words(view.vm.name, self.context.zone))
            recorded = recorded or self._begun(view, start)
            if recorded is not None:
                self._serve(view, start, recorded)

    def _begun(self, view: MomentView, start: Start) -> Recorded | None:
        """What is going to be done, looked at and written down; None where only that was wanted. Raises Failure."""
        asked, where = self.asked, self.where
        returning = returning_of(self.repository, where.vm, view.moment)
        wishes = Wishes(storage=parse_storage(asked.storage, view.disks), network=asked.network, start=True)
        plan = planned(returning, wishes, where.host, self.repository.surroundings.randomness, Earlier())
        devices = [
            failed(
                f"{place.path} is a block device: a VM that runs from a backup moves into files.",
                f"Name one: --storage {place.disk.name}=PATH",
            )
            for place in plan.places
            if place.is_device
        ]
        checks = [*plan.checks, *devices]
        tell_plan(self.context, Answer(asked.uri, returning, view.moment, wishes.kind, plan, checks))
        demand(checks, where.vm.name, "Nothing was done.")
        if asked.dry_run:
            self.context.output.document({"vm": where.vm.name, "domain": plan.name, "dry_run": True})
            return None
        xml, policies = on_server(plan.made.xml, str(where.socket), view.disks)
        states = [state for state in plan.states if not os.path.lexists(state.path)]
        for state in states:
            state.put()
        return Recorded.begun(
            where.folder,
            Record(
                asked=asked.moment,
                moment=returning.moment,
                parent=start.parent.point,
                vm=where.vm.vm,
                repository=self.repository.id.hex(),
                uri=asked.uri,
                uuid=str(plan.made.uuid),
                name=plan.name,
                xml=xml,
                policies=policies,
                targets={place.disk.name: Target(place.path, place.format) for place in plan.places},
                states=tuple(state.path for state in states),
            ),
        )

    def _serve(self, view: MomentView, start: Start, recorded: Recorded) -> None:
        """Until it is on its own storage. Raises Failure, MonitorError."""
        where, output = self.where, self.context.output
        output.kept = "What the VM wrote is in its timeline."
        domain = self.stack.enter_context(closing(MovingDomain(where.host.uri, recorded.now.uuid)))
        steps = Production(recorded, where.host, domain, self._note_of(recorded), self.asked.pace)
        line = self.stack.enter_context(
            Line(self.repository, where.vm, where.folder / "spool", start, _SPOOL, Time(time.monotonic, time.sleep))
        )
        try:
            with self._at_socket(view, line, domain), _signals() as woken:
                steps.begin()
                started = time.monotonic() - self.asked.began
                output.note(f"{recorded.now.name} runs from the backup after {started:.1f} s; it moves to its own storage now")
                self._follow(steps, line, woken)
                line.closed()
                steps.let_go()
        except Failure:
            with suppress(*REPOSITORY_FAILS, OSError):  # what is in the spool stays there, and the next run brings it in
                line.end()
            raise
        point = line.end()
        recorded.over()
        moved = time.monotonic() - self.asked.began
        output.document(
            {
                "vm": where.vm.name,
                "domain": recorded.now.name,
                "uuid": recorded.now.uuid,
                "moment": recorded.now.moment,
                "point": point.point,
                "images": {name: target.path for name, target in recorded.now.targets.items()},
                "seconds_until_running": round(started, 3),
                "seconds_until_moved": round(moved, 3),
            }
        )
        output.line(f"{recorded.now.name} is on its own storage after {moved:.1f} s, and runs on without us.")
        for name, target in recorded.now.targets.items():
            output.line(f"  {name}  {target.path}")
        output.line(f"  Until here every write is in its timeline. From now on: everywhen protect {where.vm.name}")

    def _note_of(self, recorded: Recorded) -> Callable[[str], None]:
        return lambda what: self.context.output.note(f"{recorded.now.name}: {what}")

    @contextmanager
    def _at_socket(self, view: MomentView, line: Line, domain: MovingDomain) -> Iterator[None]:
        """The disks are served where QEMU finds them, and may. Raises Failed, OSError."""
        sockets = self.where.socket.parent
        sockets.mkdir(mode=0o700, exist_ok=True)
        with ExitStack() as stack:
            listening = unix_socket(str(self.where.socket), stack)
            try:
                user = ProcessUser.of_label(domain.label())
                let_into(sockets, user)
                let_connect(self.where.socket, user)
            except NoAccess as error:
                raise Failed(f"{error}.", on=str(sockets), do=["EVERYWHEN_STATE=FOLDER, which QEMU may enter"]) from error
            report = self.context.output.warn
            stack.enter_context(
                served(view, line, str(self.where.folder), listening, lambda name, error: report(f"{name}: {error}"))
            )
            yield

    def _follow(self, steps: Production, line: Line, woken: socket.socket) -> None:
        """Until all of it has moved. Raises Failure when that cannot be, or somebody wants it to end."""
        name, said = self.where.vm.name, ""
        with self.context.progress(f"move of {name}") as job:
            while not select.select([woken], [], [], _LOOK_S)[0]:
                if not line.writes:
                    steps.suspend()
                    raise NoSpace(
                        f"{self.where.folder} has no room for what {name} writes.",
                        on=str(self.where.folder),
                        safe=f"{name} stands still. All that it was told is written is there.",
                        do=["Make room, or have the repository take what waits; then the same command again"],
                    )
                try:
                    line.tend()
                    if steps.look():
                        return
                    job.report(*steps.progress())
                except (*REPOSITORY_FAILS, Displaced, SpoolDamaged, MonitorError) as error:
                    if str(error) != said:
                        said = str(error)
                        self.context.output.warn(f"{name}: {error}; it runs on, and this is tried again")
        steps.suspend()
        raise Interrupted(
            f"{name} stands still until its disks are served again.",
            safe="All that it wrote is in its timeline, or in its spool.",
            do=["The same command again: it goes on", "With --back: it is stopped, and taken back"],
        )


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Signals that would end the program make this readable instead."""
    waker, woken = socket.socketpair()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with waker, woken:
        before = {number: signal.signal(number, lambda _number, _frame: waker.send(b"o")) for number in numbers}
        try:
            yield woken
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
