# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen restore group:NAME@WHEN --define URI`: every VM of a group as of one instant, on this host's libvirt again.

All are looked at before the first byte of any, and started when all are defined, one after the other.
"""

from __future__ import annotations

import time

from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.define import Definition, Work, check_format, reached
from everywhen.interfaces.cli.defined_words import Answer, tell_defined, tell_plan
from everywhen.interfaces.cli.group_instant import instant_of
from everywhen.services.failures import Exit, WrongUsage
from everywhen.services.opening import open_at
from everywhen.services.returning.room import room, twice
from everywhen.services.returning.wishes import demand
from everywhen.services.times import rfc3339


def define_group(context: Context, group: str, written: str, asked: Definition) -> Exit:
    """`written`: WHEN. Raises Failure."""
    check_format(asked)
    if asked.wishes.name:
        raise WrongUsage("A group's VMs have a name each: leave --name out.", on=asked.wishes.name)
    with context.repository() as repository, reached(asked.uri) as host:
        catalog, found = instant_of(context, repository, group, written, exact=asked.exact)
        context.output.line(found.words(context.zone))
        work = Work(context, repository, host, asked)
        # One after the other: up to 256 MiB of journal lie over a point.
        looked = []
        for vm in found.vms:
            opened = open_at(repository, catalog, vm, found.time_ns, zone=context.zone)
            looked.append(work.look(vm, opened))
            tell_plan(context, looked[-1])
        places = [place for answer in looked for place in answer.plan.places]
        together = [*room(places, host.pools()), *twice(places)]
        demand([check for answer in looked for check in answer.checks] + together, f"group:{group}", "Nothing was written.")
        answers = looked if asked.dry_run else []
        with work.leased(f"group:{group}", [answer.opened.point for answer in looked]):
            for vm in () if asked.dry_run else found.vms:
                opened = open_at(repository, catalog, vm, found.time_ns, zone=context.zone)
                answers.append(work.define(vm, opened, lambda _context, _answer: None))
            for answer in answers if asked.wishes.start and not asked.dry_run else ():
                work.start(answer)
    _tell(context, answers, asked)
    how = {"write_order": found.in_order, "held_back": found.held_back}
    vms = {answer.returning.vm: answer.document() for answer in answers}
    context.output.document({"group": group, "time": rfc3339(found.time_ns), **how, "vms": vms})
    return max((answer.exit for answer in answers), default=Exit.DONE)


def _tell(context: Context, answers: list[Answer], asked: Definition) -> None:
    for answer in answers:
        answer.seconds = time.monotonic() - asked.began
        tell_defined(context, answer)
