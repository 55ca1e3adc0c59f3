# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen restore --plan FILE`: VMs on this host's libvirt again, in the order of a recovery plan; and that plan, printed.

All are looked at before the first byte of any. Then one after the other: made, started, waited for. The first one that is not
up in time ends it; the same command goes on there.
"""

from __future__ import annotations

import shlex
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from everywhen.capture.qmp import MonitorError
from everywhen.hypervisor.host import VmHost
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.define import Definition, Work, reached
from everywhen.interfaces.cli.defined_words import Answer
from everywhen.interfaces.cli.plan_words import Line, document, not_up, tell_line, tell_plan_file
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.addresses import parse_address
from everywhen.services.ages import SECOND
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.failures import Exit, Failed
from everywhen.services.opening import OpenedMoment, open_moment
from everywhen.services.returning.answering import AGENT, PROMPT, agent_seen, port_seen, started_and_seen
from everywhen.services.returning.leftovers import ledger_of
from everywhen.services.returning.plan_file import PlannedVm, Sign, parse_plan
from everywhen.services.returning.plan_record import PlanRecord, plan_record
from everywhen.services.returning.room import room, twice
from everywhen.services.returning.wishes import Check, Wishes, demand, failed


@dataclass(frozen=True, slots=True)
class Carried:
    """A plan's file, the repository as it was named with it, and what is asked for."""

    file: Path
    repo: str | None
    exact: bool
    verify: bool
    dry_run: bool
    began: float

    @property
    def command(self) -> str:
        """The same again."""
        repo = f" --repo {shlex.quote(self.repo)}" if self.repo else ""
        return f"everywhen restore --plan {shlex.quote(str(self.file))}{repo}"


def carry_out(context: Context, asked: Carried) -> Exit:
    """Raises Failure, OSError."""
    plan = parse_plan(asked.file.read_bytes().decode(errors="replace"), str(asked.file))
    context.output.kept = "Nothing was written."
    state = context.state_folder()
    with (
        plan_record(state, asked.file, plan.uri) as record,
        context.repository() as repository,
        reached(plan.uri) as host,
    ):
        for vm in dict.fromkeys(vm.address.vm for vm in plan.vms):
            ship_newest(context, vm)
        run = _Run(context, repository, read_catalog(repository), host, asked, record, plan.uri)
        if run.goes_on():
            context.output.note(f"goes on with what was begun, with the moments of then; to begin anew: rm {record.path}")
        lines = [run.looked(vm) for vm in plan.vms]
        tell_plan_file(context, plan.uri, asked.command, lines)
        demand(run.checks(lines), str(asked.file), "Nothing was written." if not record.made else "What is there stays.")
        if not asked.dry_run:
            run.all_of(lines)
    seconds = time.monotonic() - asked.began
    context.output.document(document(str(asked.file), plan.uri, lines, seconds, dry_run=asked.dry_run))
    context.output.line("Nothing was done (--dry-run)." if asked.dry_run else f"{seconds:.1f} s")
    return Exit.DONE


@dataclass(frozen=True, slots=True)
class _Run:
    """All methods raise Failure, MonitorError, and the errors of the layers below."""

    context: Context
    repository: Repository
    catalog: Catalog
    host: VmHost
    asked: Carried
    record: PlanRecord
    uri: str

    def goes_on(self) -> bool:
        """Whether anything of an earlier run is there; else its moments are forgotten: those of a drill may be months old."""
        there = {domain.uuid for domain in self.host.domains()}
        if any(uuid in there or self._is_left(name) for name, uuid in self.record.made.values()):
            return True
        self.record.moments.clear()
        self.record.made.clear()
        return False

    def looked(self, vm: PlannedVm) -> Line:
        """What is to be done for this one; nothing is changed."""
        if (there := self._whole(vm)) is not None:
            return Line(vm, there[0], there[1], None)
        found, opened = self._opened(vm)
        answer = self._work(vm).look(found, opened)
        return Line(vm, answer.plan.name, str(answer.plan.made.uuid), _slim(answer))

    def checks(self, lines: list[Line]) -> list[Check]:
        """All, also those of all VMs together."""
        answers = [line.answer for line in lines if line.answer is not None]
        places = [place for answer in answers for place in answer.plan.places]
        names = [line.name for line in lines]
        same = [
            failed(f'Two domains would be called "{name}".', "Name one of them otherwise in the plan: name =")
            for name in dict.fromkeys(names)
            if names.count(name) > 1
        ]
        return [check for answer in answers for check in answer.checks] + [
            *room(places, self.host.pools()),
            *twice(places),
            *same,
        ]

    def all_of(self, lines: list[Line]) -> None:
        """In their order."""
        answers = {line.vm.key: line.answer for line in lines if line.answer is not None}
        self.record.moments.update({key: answer.returning.moment for key, answer in answers.items()})
        self.record.write()
        work = self._work(lines[0].vm)
        with work.leased(f"plan {self.asked.file.name}", [answer.opened.point for answer in answers.values()]):
            for number, line in enumerate(lines):
                if line.answer is not None:
                    self._make(line)
                if line.vm.start and not self._up(line):
                    raise not_up(line, lines[:number], lines[number + 1 :], self.asked.command)
                tell_line(self.context, number + 1, line)
        self.record.clear()

    def _make(self, line: Line) -> None:
        record, vm = self.record, line.vm
        self.context.output.kept = f"What was made of {line.name} is taken back; what was before it in the plan stays."

        def written_down(_context: Context, answer: Answer) -> None:
            demand(answer.checks, line.name, "Of it nothing was written.")
            record.made[vm.key] = [answer.plan.name, str(answer.plan.made.uuid)]
            record.write()

        found, opened = self._opened(vm)
        try:
            line.answer = _slim(self._work(vm).define(found, opened, written_down))
        except BaseException:
            record.made.pop(vm.key, None)
            if record.made:
                record.write()
            else:  # nothing is there: the next run chooses its moments anew
                record.clear()
            raise
        line.uuid = str(line.answer.plan.made.uuid)

    def _up(self, line: Line) -> bool:
        """Whether it is what its plan waits for."""
        wait, host, note = line.vm.wait, self.host, self.context.output.note
        self.context.output.kept = f'The domain "{line.name}" is defined, with its disks; so are those before it in the plan.'
        ran = host.runs(line.uuid)
        if ran:
            # Killed between its start and its first instruction, it stands still; one that goes refuses.
            with suppress(MonitorError):
                host.resume(line.uuid)
        within = wait.within_ns / SECOND if wait is not None else 0.0
        if wait is not None:
            note(f"{line.name}: waiting for {wait}, {within:g} s at most")
        try:
            if wait is None or wait.sign is Sign.tcp:
                if not ran:
                    host.start(line.uuid, paused=False)
                line.seen = port_seen(host, line.uuid, (wait.host, wait.port), within, time.monotonic) if wait else ""
            elif not ran:
                sign = AGENT if wait.sign is Sign.agent else PROMPT
                line.seen = started_and_seen(host, line.uuid, within, time.monotonic, note, (sign,))
            elif wait.sign is Sign.agent:
                line.seen = agent_seen(host, line.uuid, within, time.monotonic)
            else:
                line.seen = "it ran already: what its console has shown is gone"
            line.after_s = time.monotonic() - self.asked.began
        except MonitorError as error:
            do = [f"Change it: virsh edit {line.name}", f"Then go on: {self.asked.command}"]
            safe = "It is defined, with its disks complete; those before it in the plan stay."
            raise Failed(f"{line.name} does not start: {error}.", on=line.name, safe=safe, do=do) from error
        return wait is None or bool(line.seen)

    def _opened(self, vm: PlannedVm) -> tuple[Vm, OpenedMoment]:
        """The moment that was chosen at the start, where an earlier run did."""
        chosen = self.record.moments.get(vm.key)
        address = vm.address if chosen is None else parse_address(chosen)
        now, exact = self.repository.surroundings.clock(), self.asked.exact and chosen is None
        return open_moment(self.repository, self.catalog, address, now_ns=now, zone=self.context.zone, exact=exact)

    def _work(self, vm: PlannedVm) -> Work:
        asked = self.asked
        wishes = Wishes(vm.kind, vm.name, {}, vm.network, None, vm.machine, vm.start)
        definition = Definition(self.uri, wishes, vm.storage, asked.began, asked.exact, asked.verify, asked.dry_run)
        return Work(self.context, self.repository, self.host, definition)

    def _whole(self, vm: PlannedVm) -> tuple[str, str] | None:
        """Name and UUID, where an earlier run of this plan has made all of it, and it is still there."""
        made = self.record.made.get(vm.key)
        if made is None or [made] != [[one.name, one.uuid] for one in self.host.domains() if one.uuid == made[1]]:
            return None
        return None if self._is_left(made[0]) else (made[0], made[1])

    def _is_left(self, name: str) -> bool:
        """Whether a return of it was killed in its middle."""
        with ledger_of(self.context.state_folder(), self.uri, name) as ledger:
            return ledger.read() is not None


def _slim(answer: Answer) -> Answer:
    """Without what lies over its point: up to 256 MiB for each VM, which are read again when its turn comes."""
    answer.opened = replace(answer.opened, patches={})
    return answer
