# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen history`: every version of a guest's file."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

import typer

from everywhen.guest.tree import Kind
from everywhen.interfaces.cli.app import (
    LOOK,
    AsJson,
    PassphraseFile,
    ProgressStyle,
    Quiet,
    RecoveryKeyFile,
    Repo,
    app,
    context_of,
)
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.opened_files import IN_MEMORY, guest_time, path_demanded, time_document
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.services.addresses import Address, parse_address
from everywhen.services.ages import age, span
from everywhen.services.failures import Exit, NotFound, WrongUsage
from everywhen.services.history.line import At, Line
from everywhen.services.history.opening import OpenedHistory, opened_history
from everywhen.services.history.versions import History, Version
from everywhen.services.times import local_time, rfc3339, zone_label


@app.command("history", rich_help_panel=LOOK)
def show_history(
    file: Annotated[
        str, typer.Argument(metavar="MOMENT", help="web1:/etc/hosts or web1/vda:/p1/etc/hosts; with @WHEN: up to then.")
    ],
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Every time the content of a guest's file changed, with what gets each version back."""
    context = context_of(locals())
    path_demanded(file)
    address = parse_address(file)
    began = time.monotonic()
    ship_newest(context, address.vm)
    with context.repository() as repository, context.progress("history") as job:
        told = opened_history(
            repository, address, zone=context.zone, progress=lambda done, count: job.step("points", done, count)
        )
        with told as opened:
            found = History(opened.line, opened.traces, opened.files, address.disk, address.path or "/")
            versions = list(found.versions(opened.newest))
            _demand_a_file(address, versions)
            _show(context, address, opened, versions, found.opened, time.monotonic() - began)
    return Exit.LESS_THAN_ASKED if any(one.sight.problem for one in versions) else Exit.DONE


def _demand_a_file(address: Address, versions: list[Version]) -> None:
    """Raises NotFound where there never was anything, WrongUsage for a folder."""
    if all(one.sight.entry is None and not one.sight.problem for one in versions):
        whole, asked = replace(address, path=None), (address.path or "").strip("/")
        where = whole if address.disk is None else replace(address, path=f"/{asked.partition('/')[0]}")
        name = asked.rpartition("/")[2]
        do = [f"everywhen ls {whole}:/", f"everywhen find {where} {name!r} --all-moments (where it or its folder was moved)"]
        raise NotFound(f"No {address.path} in any moment of {whole}.", on=str(address), do=do)
    if all(one.sight.entry is None or one.sight.entry.kind is Kind.FOLDER for one in versions):
        do = [f"everywhen diff MOMENT {address}"]
        raise WrongUsage(f"{address} is a folder: its files have histories.", on=str(address), do=do)


def _show(
    context: Context, address: Address, opened: OpenedHistory, versions: list[Version], looked: int, seconds: float
) -> None:
    output, line = context.output, opened.line
    addresses = [str(_address(address, opened, one)) for one in versions]
    points = opened.newest.index + 1
    newest_ns = line.time_ns(opened.newest)
    notes = sorted({note for one in versions for note in one.sight.notes})
    output.document(
        {
            "vm": opened.vm.name,
            "path": address.path,
            "newest_moment": rfc3339(newest_ns),
            "points": points,
            "opened": looked,
            "seconds": round(seconds, 3),
            "versions": [_document(line, one, place) for one, place in zip(versions, addresses, strict=True)],
            "notes": notes,
        }
    )
    until = "now" if opened.newest == line.newest() else local_time(newest_ns, context.zone)
    _show_table(context, line, versions, addresses, until)
    there = sum(one.sight.entry is not None for one in versions)
    output.line(
        f"{there:,} version{'s' * (there != 1)} in {points:,} recovery points and what the journal has between them; "
        f"{looked:,} moments opened, {span(round(seconds * 1e9))}."
    )
    output.line("Get one: everywhen cp ADDRESS .   Compare: everywhen diff ADDRESS ADDRESS")
    output.note(f"The newest moment is of {local_time(newest_ns, context.zone)}. FROM is when the disk had it. {IN_MEMORY}")
    for text in (*notes, *sorted({f"Cannot be read: {one.sight.problem}." for one in versions if one.sight.problem})):
        output.warn(text)


def _document(line: Line, version: Version, address: str) -> dict[str, object]:
    entry, (first, last, before) = version.sight.entry, _times(line, version)
    return {
        "from": rfc3339(first),
        "not_before": None if before is None else rfc3339(before),
        "last": rfc3339(last),
        "there": entry is not None,
        "kind": entry and entry.kind.value,
        "size": entry and entry.size,
        "changed_by_the_guest": entry and time_document(entry.times.modified),
        "point": line.points[version.first.index].point,
        "writes_after_point": version.first.sequence - line.at_point(version.first.index).sequence,
        "address": address,
        "problem": version.sight.problem,
    }


def _show_table(context: Context, line: Line, versions: list[Version], addresses: list[str], until: str) -> None:
    """`until`: when the newest moment is."""
    zone, now, rows = context.zone, time.time_ns(), []
    for number, (one, place) in enumerate(zip(versions, addresses, strict=True)):
        entry, (first, _, before) = one.sight.entry, _times(line, one)
        not_yet = "oldest moment" if before is None else local_time(before, zone)
        written = guest_time(entry.times.modified, zone) if entry else "-"
        since = local_time(first, zone)
        rows.append((str(len(versions) - number), since, not_yet, until, age(now - first), _what(one), written, place))
        until = since
    label = zone_label(now, zone)
    columns = ["#", f"FROM ({label})", "NOT YET AT", "TO", "AGE", "SIZE", "CHANGED BY THE GUEST", "ADDRESS"]
    context.output.table(columns, rows, right=["#", "AGE", "SIZE"])


def _times(line: Line, version: Version) -> tuple[int, int, int | None]:
    """Of its first moment, its last one, and the one before the first."""
    return (
        line.time_ns(version.first),
        line.time_ns(version.last),
        None if version.before is None else line.time_ns(version.before),
    )


def _what(version: Version) -> str:
    if version.sight.problem:
        return "cannot be read"
    entry = version.sight.entry
    if entry is None:
        return "not there"
    return f"{entry.size:,}" if entry.kind is Kind.FILE else entry.kind.value


def _address(address: Address, opened: OpenedHistory, version: Version) -> Address:
    """By a point where one shows it, else by the time of its last moment."""
    line = opened.line
    for index in range(version.last.index, version.first.index - 1, -1):
        if version.first <= line.at_point(index) <= version.last:
            return replace(address, vm=opened.vm.name, when=line.points[index].point)
    return replace(address, vm=opened.vm.name, when=_spelled(opened, version.last))


def _spelled(opened: OpenedHistory, at: At) -> str:
    return rfc3339(opened.line.time_ns(at))
