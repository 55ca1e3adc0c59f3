# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen mark group:NAME TEXT`: a recovery point of one instant in each VM of a group."""

from __future__ import annotations

import shlex
from concurrent.futures import ThreadPoolExecutor

from everywhen.formats.fields import Json
from everywhen.formats.point import CONSISTENCIES
from everywhen.interfaces.cli.asking import ask_capture, captured_here
from everywhen.interfaces.cli.context import Context
from everywhen.services.ages import SECOND
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import Exit, Failed, Failure
from everywhen.services.groups import PREFIX, members
from everywhen.services.protect.captured import ENDED, SILENT
from everywhen.services.times import local_time, rfc3339, zone_label

_AHEAD = 5 * SECOND
"""Time for each capture to hear of it, to end what it is at (a point by time waits for 2 s), and to begin what comes before."""
_ABSENT = "no capture of it into this repository runs on this host"
_SILENT = "its capture does not answer"


def mark_group(context: Context, group: str, text: str) -> int | None:
    """Raises Failure where no VM of the group has that point."""
    with context.repository() as repository:
        vms = members(read_catalog(repository), group)
        names = [vm.name for vm in vms]
        captures = {name: one for name, one in captured_here(context, repository, vms).items() if one.state not in ENDED}
        clock = repository.surroundings.clock
    time_ns = clock() + _AHEAD
    request = {"wish": "mark", "text": text, "at_ns": time_ns}
    here = [name for name, found in captures.items() if found.state != SILENT]
    with ThreadPoolExecutor(len(names)) as pool:
        answers = dict(zip(here, pool.map(lambda name: _asked(context, name, request), here), strict=True))
    made = {name: one for name, one in answers.items() if not isinstance(one, str)}
    missed = {name: one for name, one in answers.items() if isinstance(one, str)}
    missed |= {name: _SILENT if name in captures else _ABSENT for name in names if name not in here}
    if not made:
        whys = "; ".join(f"{name}: {why.rstrip('.')}" for name, why in sorted(missed.items()))
        raise Failed(f"No VM of group {group} has a point of that instant ({whys}).", on=group, do=["everywhen status"])
    points = {
        name: {"point": one["point"], "consistency": one["reached"], "why": one["why"]} for name, one in sorted(made.items())
    }
    context.output.document({"group": group, "mark": text, "time": rfc3339(time_ns), "vms": points, "missed": missed})
    when = f"{local_time(time_ns, context.zone)} {zone_label(time_ns, context.zone)}"
    listed = ", ".join(f"{name} {one['point']} ({one['consistency']})" for name, one in points.items())
    address = shlex.quote(f'{PREFIX}{group}@"{text}"')
    context.output.line(f'group {group} at {when} is "{text}": {listed}.')
    context.output.line(f"  back to it:  everywhen restore {address} --to DIR")
    for name, why in sorted(missed.items()):
        context.output.warn(f"{name} has no recovery point of that instant: {why}")
    less = [name for name, one in made.items() if _rank(one["reached"]) < _rank(one["asked"])]
    for name in less:
        one = made[name]
        context.output.warn(f"{name}: {one['asked']} was asked for, {one['reached']} was reached: {one['why']}")
    return Exit.LESS_THAN_ASKED if missed or less else None


def _asked(context: Context, name: str, request: Json) -> Json | str:
    """What the capture answers, or why there is no point."""
    try:
        return ask_capture(context, name, request)
    except Failure as failure:
        return failure.what


def _rank(consistency: str) -> int:
    return CONSISTENCIES.index(consistency)
