# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen find --deleted` and `--all-moments`: names in all moments of a VM."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from everywhen.guest.tree import Kind
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.opened_files import entry_document
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.services.addresses import Address, parse_address
from everywhen.services.ages import span
from everywhen.services.failures import Exit, WrongUsage
from everywhen.services.history.line import At
from everywhen.services.history.opening import OpenedHistory, opened_history
from everywhen.services.history.presences import Presence, Presences
from everywhen.services.history.versions import History, last_write
from everywhen.services.times import local_time, rfc3339, zone_label

_SHOWN = 20
_TO_THE_WRITE = 20
"""Files of which the journal is asked for the very write: each takes some moments to be opened."""


@dataclass(frozen=True, slots=True)
class _Hit:
    """`gone`: the first moment without it, None where it is there now; `to_the_write`: no moment is between it and `last`."""

    presence: Presence
    first: At
    last: At
    gone: At | None
    to_the_write: bool


def find_through(context: Context, moment: str, pattern: str, *, deleted: bool) -> int:
    """In all moments up to the one that is named; `deleted`: only what is not there in that one."""
    address = parse_address(moment)
    if address.disk is not None and address.path is None:
        raise WrongUsage(f"{moment}: which volume? Say {moment}:/p1.", on=moment, do=[f"everywhen ls {moment}"])
    began = time.monotonic()
    ship_newest(context, address.vm)
    with context.repository() as repository, context.progress("find") as job:
        told = opened_history(
            repository, address, zone=context.zone, progress=lambda done, count: job.step("points", done, count)
        )
        with told as opened:
            seeking = Presences(opened, (address.disk, address.path or "/"), pattern)
            count = opened.newest.index + 1
            found = list(seeking.all(lambda at: job.step("points", count - at, count)))
            there = {one.path for one in found if one.last == seeking.last}
            found = [one for one in found if not deleted or one.path not in there]
            hits = _hits(opened, seeking, address, found)
            _show(context, (address, pattern), opened, seeking, hits)
            context.output.note(f"{span(round((time.monotonic() - began) * 1e9))}.")
    return Exit.LESS_THAN_ASKED if seeking.unreadable else Exit.DONE


def _hits(opened: OpenedHistory, seeking: Presences, address: Address, found: list[Presence]) -> list[_Hit]:
    """The ones last gone first; of some of these the very write is looked for that made them go."""
    hits: list[_Hit] = []
    for one in sorted(found, key=lambda one: (-one.last, one.path)):
        last, gone = seeking.moment(one.last), None if one.last == seeking.last else seeking.moment(one.last + 1)
        exactly = False
        if gone is not None and len(hits) < _TO_THE_WRITE and opened.line.records(one.last) is not None:
            history = History(opened.line, opened.traces, opened.files, address.disk, one.path)
            if (found_write := last_write(history, last, gone)) is not None:
                last, gone, exactly = *found_write, True
        hits.append(_Hit(one, seeking.moment(one.first), last, gone, exactly))
    return hits


def _show(context: Context, asked: tuple[Address, str], opened: OpenedHistory, seeking: Presences, hits: list[_Hit]) -> None:
    output, zone, line = context.output, context.zone, opened.line
    address, pattern = asked
    oldest, newest = line.time_ns(line.at_point(0)), line.time_ns(opened.newest)
    rows, documents = [], []
    for hit in hits:
        entry = hit.presence.entry
        place = str(replace(address, vm=opened.vm.name, when=_when(opened, hit.last), path=hit.presence.path))
        size = f"{entry.size:,}" if entry.kind is Kind.FILE else entry.kind.value
        first, last = line.time_ns(hit.first), line.time_ns(hit.last)
        gone = None if hit.gone is None else line.time_ns(hit.gone)
        gone_text = "still there" if gone is None else local_time(gone, zone)
        rows.append((hit.presence.path, local_time(first, zone), local_time(last, zone), gone_text, size, place))
        documents.append(
            {
                **entry_document(entry),
                "path": hit.presence.path,
                "first_seen": rfc3339(first),
                "last_seen": rfc3339(last),
                "gone": None if gone is None else rfc3339(gone),
                "to_the_write": hit.to_the_write,
                "address": place,
            }
        )
    output.document(
        {
            "vm": opened.vm.name,
            "path": address.path or "/",
            "pattern": pattern,
            "points": opened.newest.index + 1,
            "opened": seeking.opened,
            "oldest": rfc3339(oldest),
            "newest": rfc3339(newest),
            "found": documents,
            "notes": list(seeking.notes),
            "unreadable": [{"path": path, "why": why} for path, why in seeking.unreadable.items()],
        }
    )
    if rows:
        output.table(
            [f"PATH ({zone_label(newest, zone)})", "FIRST SEEN", "LAST SEEN", "GONE", "SIZE", "ADDRESS"], rows, right=["SIZE"]
        )
    output.line(
        f"{len(rows):,} found in {opened.newest.index + 1:,} recovery points and the newest moment, {local_time(oldest, zone)} "
        f"to {local_time(newest, zone)}; {seeking.opened:,} were opened. What came and went between two of them is not seen."
    )
    if rows:
        output.line("Get one: everywhen cp ADDRESS .")
    for path, why in list(seeking.unreadable.items())[:_SHOWN]:
        output.warn(f"{path}: {why}")
    if len(seeking.unreadable) > _SHOWN:
        output.warn(f"and {len(seeking.unreadable) - _SHOWN:,} more that could not be looked into; --json lists them all")


def _when(opened: OpenedHistory, at: At) -> str:
    line = opened.line
    return line.points[at.index].point if at == line.at_point(at.index) else rfc3339(line.time_ns(at))
