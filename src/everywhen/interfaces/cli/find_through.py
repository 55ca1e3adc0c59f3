# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen find --deleted` and `--all-moments`: names in all moments of a VM.

What is deleted is told as soon as it is found, the last gone first (ux J2). Since when it was there is known at the end alone,
and is in the document of `--json`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from everywhen.guest.tree import Kind
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.opened_files import IN_MEMORY, entry_document
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.services.addresses import Address, parse_address
from everywhen.services.ages import span
from everywhen.services.failures import Exit
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
    last: At
    gone: At | None
    to_the_write: bool
    address: str


def find_through(context: Context, moment: str, pattern: str, *, deleted: bool) -> int:
    """In all moments up to the one that is named; `deleted`: only what is not there in that one."""
    address = parse_address(moment)
    began = time.monotonic()
    ship_newest(context, address.vm)
    with context.repository() as repository, context.progress("find") as job:
        told = opened_history(
            repository, address, zone=context.zone, progress=lambda done, count: job.step("points", done, count)
        )
        with told as opened:
            seeking = Presences(opened, (address.disk, address.path or "/"), pattern)
            telling = _Telling(context, address, opened, seeking, deleted=deleted)
            count = opened.newest.index + 1
            for _ in seeking.all(lambda at: job.step("points", count - at, count), telling.tell):
                pass
            _show(context, (address, pattern), opened, seeking, telling)
            context.output.note(f"{span(round((time.monotonic() - began) * 1e9))}.")
    return Exit.LESS_THAN_ASKED if seeking.unreadable else Exit.DONE


class _Telling:
    """What was found, the last gone first; what was deleted is printed at once."""

    def __init__(self, context: Context, address: Address, opened: OpenedHistory, seeking: Presences, *, deleted: bool) -> None:
        self._output = context.output
        self._zone = context.zone
        self._address = address
        self._opened = opened
        self._seeking = seeking
        self._there: set[str] = set()
        self.deleted = deleted
        self.hits: list[_Hit] = []

    def tell(self, found: list[Presence]) -> None:
        """Those that were found in one moment. Raises Damaged, StorageError, GuestError."""
        for one in found:
            if one.last == self._seeking.last:
                self._there.add(one.path)
            if self.deleted and one.path in self._there:
                continue
            hit = self._hit(one)
            if self.deleted:
                self._print(hit)
            self.hits.append(hit)

    def _hit(self, one: Presence) -> _Hit:
        """Of some of these the very write is looked for that made them go."""
        opened, seeking = self._opened, self._seeking
        last, gone = seeking.moment(one.last), None if one.last == seeking.last else seeking.moment(one.last + 1)
        exactly = False
        if gone is not None and len(self.hits) < _TO_THE_WRITE and opened.line.records(one.last) is not None:
            history = History(opened.line, opened.traces, opened.files, self._address.disk, one.path)
            if (found_write := last_write(history, last, gone)) is not None:
                last, gone, exactly = *found_write, True
        place = replace(self._address, vm=opened.vm.name, when=_when(opened, last), path=one.path)
        return _Hit(one, last, gone, exactly, str(place))

    def _print(self, hit: _Hit) -> None:
        line = self._opened.line
        last = line.time_ns(hit.last)
        if not self.hits:
            column = f"LAST SEEN ({zone_label(last, self._zone)})"
            self._output.line(f"{column:<24}  {'GONE':<19}  {'SIZE':>15}  ADDRESS")
        gone = "" if hit.gone is None else local_time(line.time_ns(hit.gone), self._zone)
        size = _size(hit.presence)
        self._output.line(f"{local_time(last, self._zone):<24}  {gone:<19}  {size:>15}  {hit.address}")


def _show(context: Context, asked: tuple[Address, str], opened: OpenedHistory, seeking: Presences, telling: _Telling) -> None:
    output, zone, line, hits = context.output, context.zone, opened.line, telling.hits
    address, pattern = asked
    oldest, newest = line.time_ns(line.at_point(0)), line.time_ns(opened.newest)
    rows, documents = [], []
    for hit in hits:
        first, last = line.time_ns(seeking.moment(hit.presence.first)), line.time_ns(hit.last)
        gone = None if hit.gone is None else line.time_ns(hit.gone)
        gone_text = "still there" if gone is None else local_time(gone, zone)
        times = local_time(first, zone), local_time(last, zone), gone_text
        rows.append((hit.presence.path, *times, _size(hit.presence), hit.address))
        documents.append(
            {
                **entry_document(hit.presence.entry),
                "path": hit.presence.path,
                "first_seen": rfc3339(first),
                "last_seen": rfc3339(last),
                "gone": None if gone is None else rfc3339(gone),
                "to_the_write": hit.to_the_write,
                "address": hit.address,
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
    if rows and not telling.deleted:
        output.table(
            [f"PATH ({zone_label(newest, zone)})", "FIRST SEEN", "LAST SEEN", "GONE", "SIZE", "ADDRESS"], rows, right=["SIZE"]
        )
    output.line(
        f"{len(rows):,} found in {opened.newest.index + 1:,} recovery points and the newest moment, {local_time(oldest, zone)} "
        f"to {local_time(newest, zone)}; {seeking.opened:,} were opened. What came and went between two of them is not seen."
    )
    if rows:
        output.line("Get one: everywhen cp ADDRESS .")
    output.note(IN_MEMORY)
    for note in seeking.notes:
        output.warn(note)
    for path, why in list(seeking.unreadable.items())[:_SHOWN]:
        output.warn(f"{path}: {why}")
    if len(seeking.unreadable) > _SHOWN:
        output.warn(f"and {len(seeking.unreadable) - _SHOWN:,} more that could not be looked into; --json lists them all")


def _size(presence: Presence) -> str:
    return f"{presence.entry.size:,}" if presence.entry.kind is Kind.FILE else presence.entry.kind.value


def _when(opened: OpenedHistory, at: At) -> str:
    line = opened.line
    return line.points[at.index].point if at == line.at_point(at.index) else rfc3339(line.time_ns(at))
