# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `restore --plan` says: the plan as a table that can be printed, each VM when it is up, and how far it came."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.defined_words import Answer
from everywhen.services.ages import span
from everywhen.services.failures import Failed
from everywhen.services.returning.plan_file import PlannedVm
from everywhen.services.returning.wishes import State
from everywhen.services.sizes import size
from everywhen.services.times import local_time, zone_label


@dataclass(slots=True)
class Line:
    """One VM of a plan: what its domain is called; `answer`: None where an earlier run has made it; by what it was `seen` to be
    up, and how many seconds after the command."""

    vm: PlannedVm
    name: str
    uuid: str
    answer: Answer | None
    seen: str = ""
    after_s: float = 0.0


def tell_plan_file(context: Context, uri: str, command: str, lines: Sequence[Line]) -> None:
    """All that will be done, in its order, and how it is begun."""
    say, now = context.output.line, context.surroundings().clock()
    count = f"{len(lines)} VM{'s' if len(lines) != 1 else ''}"
    say(f"Recovery plan: {count} onto {socket.gethostname()} ({uri}), from {context.repository_name()}")
    rows = [row for number, line in enumerate(lines, 1) for row in _rows(context, number, line)]
    context.output.table(
        ["#", "VM", f"AS IT WAS ({zone_label(now, context.zone)})", "BECOMES", "TO WRITE", "THEN"],
        rows,
        right=["#", "TO WRITE"],
    )
    for line in lines:
        for words in _remarks(line):
            say(f"note: {line.name}: {words}")
    say(f"All together: {size(sum(_bytes(line) for line in lines))} to write, one VM after the other.")
    say(f"To begin, and to go on where it was stopped: {command}")


def _rows(context: Context, number: int, line: Line) -> list[list[str]]:
    if line.answer is None:
        return [[str(number), line.vm.address.vm, "", line.name, "", f"it is there already; {_then(line.vm)}"]]
    found, plan = line.answer.opened.found, line.answer.plan
    when = local_time(found.moment.time_ns, context.zone)
    disks = [
        ["", "", "", f"  {place.disk.name}: {place.path}", "there" if place.there else size(place.disk.used), ""]
        for place in plan.places
    ]
    return [[str(number), line.answer.returning.vm, when, line.name, "", _then(line.vm)], *disks]


def _then(vm: PlannedVm) -> str:
    if not vm.start:
        return "not started"
    return "start" if vm.wait is None else f"start; wait for {vm.wait}, at most {span(vm.wait.within_ns)}"


def _remarks(line: Line) -> list[str]:
    if line.answer is None:
        return []
    return [check.what for check in line.answer.checks if check.state is State.warned] + list(line.answer.plan.remarks)


def _bytes(line: Line) -> int:
    return 0 if line.answer is None else sum(place.disk.used for place in line.answer.plan.places if not place.there)


def tell_line(context: Context, number: int, line: Line) -> None:
    """It is done with."""
    how = "defined" if not line.vm.start else f"started ({line.after_s:.1f} s after the command)"
    if line.seen:
        how = f"up {line.after_s:.1f} s after the command ({line.seen})"
    context.output.line(f"{number}. {line.name}: {how}")


def not_up(line: Line, before: Sequence[Line], after: Sequence[Line], command: str) -> Failed:
    """One did not show what is waited for: nothing of those after it is begun."""
    wait = line.vm.wait
    within = "" if wait is None else f" within {span(wait.within_ns)}"
    done = [f"{one.name} ({one.seen or ('started' if one.vm.start else 'defined')})" for one in before]
    safe = f"It is defined and was started. Before it: {', '.join(done) or 'none'}."
    later = f" Not begun: {', '.join(one.name for one in after if one.answer is not None)}." if after else ""
    do = [f"What does it show? virsh console {line.name}", f"When it is up, or the plan waits for something else: {command}"]
    return Failed(f"{line.name} is not up: nothing was seen of {wait}{within}.", on=line.name, safe=safe + later, do=do)


def document(file: str, uri: str, lines: Sequence[Line], seconds: float, *, dry_run: bool) -> dict[str, object]:
    """For programs."""
    return {
        "plan": file,
        "uri": uri,
        "vms": [
            {
                "vm": line.vm.address.vm,
                "name": line.name,
                "there_already": line.answer is None,
                "started": line.vm.start and not dry_run,
                "wait": None if line.vm.wait is None else str(line.vm.wait),
                "seen_by": line.seen or None,
                "seconds_up": round(line.after_s, 3) if line.seen else None,
                "restored": None if line.answer is None else line.answer.document(),
            }
            for line in lines
        ],
        "bytes_to_write": sum(_bytes(line) for line in lines),
        "seconds": round(seconds, 3),
        "dry_run": dry_run,
    }
