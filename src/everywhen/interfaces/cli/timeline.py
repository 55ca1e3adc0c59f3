# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen timeline`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from everywhen.formats.point import ClockStep, RecoveryPoint
from everywhen.interfaces.cli.app import LOOK, AsJson, PassphraseFile, Quiet, RecoveryKeyFile, Repo, app, context_of
from everywhen.interfaces.cli.asking import captured_here, captures_noted
from everywhen.interfaces.cli.capture_words import capture_document, load_words
from everywhen.interfaces.cli.completion import write_names
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.rolled_back import rolled_back_document
from everywhen.interfaces.cli.timeline_picture import ASCII, BLOCKS, LABEL, legend, picture
from everywhen.repository.errors import Damaged
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.addresses import branch_name
from everywhen.services.ages import DAY, MINUTE, SECOND, age, span
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.journal_reach import reached_ns
from everywhen.services.protect.captured import Captured
from everywhen.services.sizes import size
from everywhen.services.timeline import Missing, Reach, Timeline, busiest, cells, newest_captured, timeline
from everywhen.services.times import Stretch, local_time, rfc3339, zone_label
from everywhen.services.whens import choose, parse_when

_SHOWN_NS = DAY


@app.command("timeline", rich_help_panel=LOOK)
def timeline_command(
    vm: Annotated[str, typer.Argument(metavar="VM")],
    since: Annotated[
        str | None, typer.Option("--from", metavar="WHEN", help="As -24h, yesterday or a mark; usual: the newest day.")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="WHEN", help="Usual: until now.")] = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Of when every write can be opened, recovery points, and gaps with their causes."""
    context = context_of(locals())
    with captures_noted(context), context.repository() as repository:
        catalog = read_catalog(repository)
        found = catalog.vm(vm)
        now = repository.surroundings.clock()
        captured = captured_here(context, repository, [found]).get(found.name)
        newest = newest_captured(catalog.history_of(found))
        line = timeline(catalog.points_of(found), _reach(context, repository, newest, captured))
    write_names(context.env, context.repository_name(), catalog)
    if line.newest_ns is None:
        raise NotFound(f"{found.name} has no moments yet.", on=vm, do=["everywhen status"])
    end = max(line.newest_ns, now if captured else 0)
    usual = (max(end - _SHOWN_NS, line.points[0].time_ns), end)
    begin, end = _range(context, catalog, found, (since, until), usual, now)
    part = line.within(begin, end)
    held = {hold.point for hold in catalog.active_holds(now)}
    names = {"vm": found.name, "group": found.group or None}
    context.output.document({**names, **_document(found.name, part, (begin, end), held, captured, now)})
    _show(context, found, part, (begin, end), lambda point: point.point in held)
    _show_lag(context, line, captured, now)
    if begin > line.points[0].time_ns:
        context.output.line(f"earlier, since {local_time(line.points[0].time_ns, context.zone)}: --from WHEN", style="faint")


def _reach(context: Context, repository: Repository, newest: RecoveryPoint | None, captured: Captured | None) -> Reach:
    """How far the journal of a capture's newest point reaches: as that one knows, or by what is in the repository."""
    reach = captured.reach if captured else Reach()
    if newest is None or reach.covered_ns is not None:
        return reach
    try:
        return Reach(reached_ns(repository, newest, exactly=True), reach.lost)
    except Damaged as error:
        context.output.warn(f"{error}: everywhen verify")
        return reach


def _range(
    context: Context, catalog: Catalog, vm: Vm, written: tuple[str | None, str | None], usual: tuple[int, int], now_ns: int
) -> tuple[int, int]:
    """What is to be shown. Raises WrongUsage, NotFound."""
    ends = []
    for at, text in enumerate(written):
        if text is None:
            ends.append(usual[at])
            continue
        when = parse_when(text, now_ns=now_ns, zone=context.zone)
        if when.writes_back:
            raise WrongUsage(f"{text}: a time, not a single write.", on=text)
        if isinstance(when.target, Stretch):
            ends.append(when.target.latest_ns if at else when.target.earliest_ns)
        else:
            ends.append(choose(vm.name, when, catalog.moments_for(vm, when), zone=context.zone).moment.time_ns)
    begin, end = (max(at, 0) for at in ends)
    if written[0] is None and begin >= end:
        begin = end - _SHOWN_NS
    if begin > end:
        raise WrongUsage("--from is later than --to.", on=vm.name)
    return begin, max(end, begin + SECOND)  # of one moment alone the second after it


def _show(context: Context, vm: Vm, line: Timeline, ends: tuple[int, int], held: Callable[[RecoveryPoint], bool]) -> None:
    output, zone = context.output, context.zone
    signs = BLOCKS if output.can_draw(BLOCKS.bars + BLOCKS.gap + BLOCKS.goes_on) else ASCII
    parts = cells(line, *ends, max(output.width - LABEL - 6, 20))
    name = f"{vm.name} (group {vm.group})" if vm.group else vm.name
    output.line(f"{name}   {local_time(ends[0], zone)} - {local_time(ends[1], zone)}   ({zone_label(ends[1], zone)})")
    for row in picture(parts, *ends, zone, signs, held):
        output.line(row)
    if explained := legend(parts, signs, held):
        output.line(" " * LABEL + explained, style="faint")
    if peak := busiest(line.changes):
        output.line(f"most was changed until {local_time(peak[0], zone)}: {size(round(peak[1] * MINUTE / SECOND))} a minute")
    for gap in line.gaps:
        output.line(f"{'GAP':{LABEL}}{_gap_words(context, gap, ends[1])}", style="warn")
    for step in line.clock_steps:
        output.line(f"{'CLOCK':{LABEL}}{_step_words(context, step)}", style="warn")
    for point in line.points:
        if (back := point.rolled_back) is not None:
            gone, to = branch_name(vm.name, back.branch), local_time(back.time_ns, zone)
            output.line(f"{'BACK':{LABEL}}{local_time(point.time_ns, zone)}   {point.point}   to {to}; before: {gone}")
        if point.mark or held(point):
            name = f'"{point.mark}"' if point.mark else "held"
            output.line(f"{'MARK' if point.mark else 'HELD':{LABEL}}{local_time(point.time_ns, zone)}   {point.point}   {name}")
    if line.beside:
        count = f"{len(line.beside)} recovery points" if len(line.beside) > 1 else "1 recovery point"
        last = local_time(line.beside[-1].time_ns, zone)
        output.line(f"{'BESIDE':{LABEL}}{count} of another capture of this VM, until {last}: everywhen points {vm.name}")
    if not line.points and not line.coverage:
        output.line("no moment in this time")


def _gap_words(context: Context, gap: Missing, end_ns: int) -> str:
    begin = local_time(gap.from_ns, context.zone)
    until = "now" if gap.to_ns is None else local_time(gap.to_ns, context.zone)
    if until[:10] == begin[:10]:
        until = until[11:]
    length = (end_ns if gap.to_ns is None else gap.to_ns) - gap.from_ns
    return f"{begin} - {until}   {span(max(length, 0))}   {gap.why}"


def _step_words(context: Context, step: ClockStep) -> str:
    at, before, after = (local_time(at, context.zone) for at in (step.at_ns, step.from_ns, step.to_ns))
    how = "back" if step.by_ns < 0 else "forward"
    clock = f"from {before} to {after[11:] if after[:10] == before[:10] else after}"
    return f"{at}   the host's clock was set {how} by {span(abs(step.by_ns))}, {clock}"


def _show_lag(context: Context, line: Timeline, captured: Captured | None, now_ns: int) -> None:
    newest = line.newest_ns or 0
    if captured is None or captured.raw is None:
        context.output.line(f"{'LAG':{LABEL}}newest moment {age(now_ns - newest)} old; no capture of it answers on this host")
        return
    lag = captured.lag_ns(now_ns)
    if lag is None:
        context.output.line(f"{'LAG':{LABEL}}{captured.words(context.zone)}; newest moment {age(now_ns - newest)} old")
        return
    unsealed = captured.number("taken") - captured.number("sealed")
    context.output.line(
        f"{'LAG':{LABEL}}captured at once   durable {span(lag)}   in the repository {_all_but(captured.unshipped)}   "
        f"sealed {span(captured.sealed_lag_ns(now_ns) or 0)}, {_all_but(unsealed)}"
    )
    context.output.line(f"{'LOAD':{LABEL}}{load_words(captured)}")


def _all_but(writes: int) -> str:
    return f"all but {writes:,} writes" if writes else "all"


def _document(
    vm: str, line: Timeline, ends: tuple[int, int], held: set[str], captured: Captured | None, now_ns: int
) -> dict[str, object]:
    return {
        "time": rfc3339(now_ns),
        "from": rfc3339(ends[0]),
        "to": rfc3339(ends[1]),
        "every_write": [{"from": rfc3339(one.from_ns), "to": rfc3339(one.to_ns)} for one in line.coverage],
        "gaps": [
            {"from": rfc3339(gap.from_ns), "to": None if gap.to_ns is None else rfc3339(gap.to_ns), "why": gap.why}
            for gap in line.gaps
        ],
        "points": [
            {
                "id": point.point,
                "time": rfc3339(point.time_ns),
                "consistency": point.reached,
                "mark": point.mark,
                "held": point.point in held,
                "rolled_back": rolled_back_document(vm, point.rolled_back),
                "changed_bytes": sum(disk.bytes_changed for disk in point.disks.values()),
                "stored_bytes": sum(disk.bytes_stored for disk in point.disks.values()),
            }
            for point in line.points
        ],
        "beside": [point.point for point in line.beside],
        "clock_steps": [
            {
                "at": rfc3339(step.at_ns),
                "from": rfc3339(step.from_ns),
                "to": rfc3339(step.to_ns),
                "seconds": step.by_ns / SECOND,
            }
            for step in line.clock_steps
        ],
        "capture": capture_document(captured, now_ns) if captured else None,
    }
