# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen status`."""

from __future__ import annotations

from typing import Annotated

import typer

from everywhen.formats.point import RecoveryPoint
from everywhen.interfaces.cli.app import LOOK, AsJson, PassphraseFile, Quiet, RecoveryKeyFile, Repo, app, context_of
from everywhen.interfaces.cli.asking import captured_here, captures_noted
from everywhen.interfaces.cli.capture_words import capture_document, capture_words
from everywhen.interfaces.cli.completion import write_names
from everywhen.interfaces.cli.context import Context
from everywhen.services.ages import SECOND, age, parse_span, span
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.groups import members, points_at
from everywhen.services.instant.record import left_alone
from everywhen.services.keep.policies import read_policies
from everywhen.services.rollback.record import broken_off
from everywhen.services.sizes import size
from everywhen.services.standing import MAX_AGE, State, VmStanding, Work, state
from everywhen.services.times import local_time, rfc3339, zone_label
from everywhen.services.unfinished import unfinished_on_devices

_FOR_SENTENCES = 100
"""On a terminal with fewer columns the sentences of the last one would leave no room for the others."""


@app.command("status", rich_help_panel=LOOK)
def status(
    names: Annotated[list[str] | None, typer.Argument(metavar="VM", help="All when none is named.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Answer by exit code: 0 all right, 1 a VM is not protected, 5 something needs you.")
    ] = False,
    max_age: Annotated[
        str | None,
        typer.Option("--max-age", metavar="SPAN", help="How old the newest moment of a protected VM may be (26h)."),
    ] = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int | None:
    """What is protected, how old it is, who is at work, and what needs you."""
    context = context_of(locals())
    limit = MAX_AGE if max_age is None else parse_span(max_age)
    with captures_noted(context), context.repository() as repository:
        catalog = read_catalog(repository)
        policies = read_policies(repository.documents, catalog.vms)
        vms = [catalog.vm(name) for name in names or []] or catalog.vms
        captures = captured_here(context, repository, vms)
        found = state(repository, catalog, policies, vms, captures, max_age_ns=limit)
        found.needs.extend(unfinished_on_devices(context.state_folder()))
        found.needs.extend(broken_off(context.state_folder()))
        found.needs.extend(left_alone(context.state_folder()))
        identity, url = repository.id.hex(), repository.store.url
        write_names(context.env, context.repository_name(), catalog)
    context.output.document({"repository": identity, "url": url, **_document(found), "check": int(found.check)})
    groups = [_group_words(context, catalog, name) for name in sorted({vm.group for vm in vms if vm.group})]
    _show(context, found, f"Repository {url} ({identity[:4]}…)", groups)
    return found.check if check else None


def _group_words(context: Context, catalog: Catalog, name: str) -> str:
    """Who is in a group, and the newest instant of which all have a recovery point."""
    vms = members(catalog, name)
    of_all = [time_ns for time_ns, points in points_at(catalog, vms).items() if len(points) == len(vms)]
    newest = f"; all have a point of {local_time(max(of_all), context.zone)}" if of_all else ""
    return f"group {name}: {', '.join(vm.name for vm in vms)}{newest}"


def _show(context: Context, found: State, title: str, groups: list[str]) -> None:
    output, now = context.output, found.now_ns
    room = "an object store" if found.space is None else f"{size(found.space.free)} of {size(found.space.total)} free"
    reserve = (
        f", {size(found.reserve_bytes)} in reserve" if found.reserve_bytes else "" if found.space is None else ", no reserve"
    )
    output.line(f"{title}   {room}{reserve}      times: {zone_label(now, context.zone)}")
    output.line()
    columns = ["VM", "STATE", "NEWEST", "AGE", "OLDEST", "MOMENTS", "HELD", "DROPPED", "POLICY", "NEEDS"]
    shown = columns if output.width >= _FOR_SENTENCES else columns[:-1]
    output.table(shown, [_row(context, vm, now)[: len(shown)] for vm in found.vms], right=["MOMENTS", "HELD", "DROPPED"])
    if shown != columns:
        for vm in found.vms:
            for need in vm.needs:
                output.line(f"NEEDS YOU  {vm.vm.name}: {need}", style="warn")
    for vm in found.vms:
        if vm.captured is not None and vm.captured.attached:
            output.line(f"{vm.vm.name}: {capture_words(vm.captured)}")
    for words in groups:
        output.line(words)
    for work in (*found.sessions, *found.leases):
        output.line(_work_words(work, now))
    for vm in found.vms:
        if vm.back_until_ns is not None:
            until = local_time(vm.back_until_ns, context.zone)
            output.line(
                f"{vm.vm.name}: {vm.dropped} dropped moments come back until {until}: everywhen prune --undo {vm.vm.name}"
            )
    for text in found.unreadable:
        output.line(f"UNREADABLE  {text}", style="bad")
    for need in found.needs:
        output.line(f"NEEDS YOU  {need}", style="warn")
    output.line()
    protected = sum(vm.protected for vm in found.vms)
    needing = sum(bool(vm.needs) for vm in found.vms) + len(found.needs)
    oldest = max((now - vm.newest_ns for vm in found.vms if vm.newest_ns is not None), default=0)
    words = f"{protected} of {len(found.vms)} VMs protected."
    if found.vms:
        words += f" If the disks died now: at most {age(max(oldest, SECOND))} lost."
    output.line(f"{words} {needing} need{'s' if needing == 1 else ''} you." if needing else f"{words} Nothing needs you.")


def _row(context: Context, vm: VmStanding, now_ns: int) -> tuple[str, ...]:
    word = "protected" if vm.protected else "NOT PROTECTED"
    if vm.captured is not None and (vm.protected or vm.newest is None):
        word = vm.captured.words(context.zone)
    newest = local_time(vm.newest_ns, context.zone) if vm.newest_ns is not None else "-"
    lag = vm.captured.lag_ns(now_ns) if vm.captured else None
    since = span(lag) if lag is not None else age(now_ns - vm.newest_ns) if vm.newest_ns is not None else "-"
    oldest = local_time(vm.oldest.time_ns, context.zone)[:10] if vm.oldest else "-"
    policy = "?" if vm.policy is None else str(vm.policy.policy) if vm.policy.origin == "own" else "default"
    figures = (f"{vm.points:,}", str(len(vm.held) or "-"), str(vm.dropped or "-"))
    return (vm.vm.name, word, newest, since, oldest, *figures, policy, "; ".join(vm.needs) or "-")


def _work_words(work: Work, now_ns: int) -> str:
    one = work.presence
    who = f"{one.holder.user or '?'}@{one.holder.host or '?'} pid {one.holder.pid}"
    kind = "at work" if one.name.startswith("sessions/") else "open"
    if not one.began_ns:
        return f"{kind}: {one.name} (not readable)"
    since = age(now_ns - one.began_ns)
    ending = "" if work.alive else f"; no sign of life for {age(work.silent_ns)}"
    return f"{kind}: {one.what}, for {since}, {who}{ending}"


def _document(found: State) -> dict[str, object]:
    return {
        "time": rfc3339(found.now_ns),
        "space": {"total": found.space.total, "free": found.space.free} if found.space else None,
        "reserve_bytes": found.reserve_bytes,
        "vms": [_vm_document(vm, found.now_ns) for vm in found.vms],
        "sessions": [_work_document(work, found.now_ns) for work in found.sessions],
        "leases": [_work_document(work, found.now_ns) for work in found.leases],
        "unreadable": found.unreadable,
        "needs": found.needs,
    }


def _vm_document(vm: VmStanding, now_ns: int) -> dict[str, object]:
    return {
        "vm": vm.vm.name,
        "source": vm.vm.source,
        "group": vm.vm.group or None,
        "protected": vm.protected,
        "newest": _moment(vm.newest),
        "newest_moment": rfc3339(vm.newest_ns) if vm.newest_ns is not None else None,
        "age_seconds": round((now_ns - vm.newest_ns) / SECOND, 3) if vm.newest_ns is not None else None,
        "capture": capture_document(vm.captured, now_ns) if vm.captured else None,
        "oldest": _moment(vm.oldest),
        "points": vm.points,
        "policy": str(vm.policy.policy) if vm.policy else None,
        "policy_from": vm.policy.origin if vm.policy else None,
        "held": [{"point": hold.point, "reason": hold.reason} for hold in vm.held],
        "dropped": vm.dropped,
        "back_until": rfc3339(vm.back_until_ns) if vm.back_until_ns is not None else None,
        "needs": vm.needs,
    }


def _moment(point: RecoveryPoint | None) -> dict[str, str] | None:
    return {"point": point.point, "time": rfc3339(point.time_ns), "consistency": point.reached} if point else None


def _work_document(work: Work, now_ns: int) -> dict[str, object]:
    one = work.presence
    return {
        "what": one.what,
        "points": one.points,
        "user": one.holder.user,
        "host": one.holder.host,
        "pid": one.holder.pid,
        "age_seconds": round((now_ns - one.began_ns) / SECOND, 3) if one.began_ns else None,
        "silent_seconds": round(work.silent_ns / SECOND, 3),
        "alive": work.alive,
    }
