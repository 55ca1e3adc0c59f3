# SPDX-License-Identifier: AGPL-3.0-or-later
"""WHEN: which moment of a VM somebody means, and which one that is (design section 2, ux 4.4).

    latest | p-7fx9c2... (or a beginning of it) | "before update" | a time (see times.py) | -10m, -2h30m   each with ~N

Decided here, where the texts leave it open:

- Quotes rarely survive a shell, so what begins with a letter and is nothing else is a mark too: `web1@before update`.
  A mark that begins otherwise, or that looks like another WHEN (`latest`, `p-...`, `yesterday`), needs its quotes.
- A mark or a beginning of an id that fits several moments is refused with the choices; it never silently means the newest.
- Ages count back from the reader's clock. `~N` counts single writes: where no journal is kept there are none, and the
  answer says so.
- The list given to `resolve` is one branch's: the one that was live then is chosen before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import TypeAlias

from everywhen.services.addresses import decode
from everywhen.services.ages import parse_span
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.moments import Moment
from everywhen.services.spelling import nearest
from everywhen.services.times import Stretch, local_time, parse_time, zone_label

_WRITES = re.compile(r"(.*)~([0-9]{1,9})", re.ASCII | re.DOTALL)
_POINT = re.compile(r"p-[0-9a-z]{1,12}", re.ASCII | re.IGNORECASE)
_HINT = 'A moment is latest, a point (p-...), a mark ("before update"), a time (2026-11-21 10:32:05, 10:32) or an age (-10m).'


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest moment."""


@dataclass(frozen=True, slots=True)
class PointNamed:
    """A recovery point by its id, or by the beginning of it; lower case."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Marked:
    """The moment that somebody gave this name."""

    mark: str


Target: TypeAlias = Latest | PointNamed | Marked | Stretch


@dataclass(frozen=True, slots=True)
class When:
    """What was meant: `target`, `writes_back` single writes before it, and how it was `written` (for messages)."""

    target: Target
    written: str
    writes_back: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """Which moment it was. `exact`: it is what was named, not merely the latest one before.

    Between two points `moment` has the id of the point before, and `writes_after` says how many writes later it is;
    `sequence` is the number of the journal's record after it.
    """

    moment: Moment
    exact: bool
    writes_after: int = 0
    sequence: int | None = None

    def words(self, vm: str, zone: tzinfo) -> str:
        """The line that every answer begins with: which moment, and how it was made."""
        moment = self.moment
        label = zone_label(moment.time_ns, zone)
        mark = "" if moment.mark is None else f', "{moment.mark}"'
        later = f"{self.writes_after:,} writes after " if self.writes_after else ""
        how = f"{later}recovery point {moment.id}{mark}; {_MADE[moment.consistency]}"
        return f"{vm} at {local_time(moment.time_ns, zone)} {label} ({how})"


_MADE = {
    "application": "application-consistent",
    "filesystem": "filesystem-consistent",
    "crash": "crash-consistent",
    "none": "not consistent: it changed while it was read",
}


def parse_when(text: str, *, now_ns: int, zone: tzinfo) -> When:
    """What `text` means to a reader in `zone` whose clock says `now_ns` (ns since 1970 UTC). Raises WrongUsage."""
    plain = text.strip()
    writes_back = 0
    if match := _WRITES.fullmatch(plain):
        plain, writes_back = match[1].rstrip(), int(match[2])
    return When(_target(plain, text, now_ns, zone), text.strip(), writes_back)


def _target(plain: str, text: str, now_ns: int, zone: tzinfo) -> Target:
    if plain.lower() == "latest":
        return Latest()
    if _POINT.fullmatch(plain):
        return PointNamed(plain.lower())
    if plain.startswith('"'):
        mark = decode(plain[1:-1]) if len(plain) > 2 and plain.endswith('"') else ""
        if not mark:
            raise WrongUsage(f"{text}: the mark has no end, or nothing in it.", on=text, do=[_HINT])
        return Marked(mark)
    if plain.startswith("-"):
        then = now_ns - parse_span(plain[1:])
        return Stretch(then, then)
    if plain[:1].isalpha() and not re.match(r"yesterday\b|p-", plain, re.IGNORECASE):
        return Marked(decode(plain))
    try:
        return parse_time(plain, now_ns=now_ns, zone=zone)
    except WrongUsage as error:
        error.do.append(_HINT)
        raise


def resolve(vm: str, when: When, moments: Sequence[Moment], *, zone: tzinfo, exact: bool = False) -> Found:
    """The moment of `vm` that `when` means, among all `moments` of one branch; `zone` is the reader's, for messages.

    Raises NotFound (none, none before, none exactly there) and WrongUsage (several).
    """
    found = choose(vm, when, moments, zone=zone)
    if when.writes_back:
        raise no_single_writes(vm, when, found, zone=zone)
    if exact and not found.exact:
        raise refuse_other(vm, when, found, moments, zone=zone)
    return found


def choose(vm: str, when: When, moments: Sequence[Moment], *, zone: tzinfo) -> Found:
    """The latest of `moments` that `when` allows, single writes before it not counted. Raises NotFound, WrongUsage."""
    if not moments:
        raise NotFound(f"{vm} has no moments yet.", on=vm, do=[f"everywhen backup {vm} DISK=IMAGE"])
    ordered = sorted(moments, key=lambda moment: moment.order)
    match when.target:
        case Latest():
            return Found(ordered[-1], exact=True)
        case PointNamed(prefix):
            fitting = [m for m in ordered if m.id.startswith(prefix)]
            return Found(_only(vm, when, fitting, "point", ordered, zone), exact=True)
        case Marked(mark):
            return Found(_only(vm, when, [m for m in ordered if m.mark == mark], "mark", ordered, zone), exact=True)
        case Stretch() as stretch:
            return _at(vm, when, stretch, ordered, zone)


def no_single_writes(vm: str, when: When, found: Found, *, zone: tzinfo) -> NotFound:
    """That `~N` leads to where no journal is kept."""
    return NotFound(
        f"{when.written}: no single writes of {vm} are kept there, only recovery points.",
        on=vm,
        do=[f"The nearest: {vm}@{found.moment.id} ({_shown(found.moment, zone)})."],
    )


def refuse_other(vm: str, when: When, found: Found, moments: Sequence[Moment], *, zone: tzinfo) -> NotFound:
    """That there is no moment at exactly the time named."""
    later = min((moment for moment in moments if moment.order > found.moment.order), key=lambda m: m.order, default=None)
    neighbours = [moment for moment in (found.moment, later) if moment]
    return NotFound(
        f"{vm} has no moment at exactly {when.written}.",
        on=vm,
        do=[f"Nearest: {vm}@{moment.id} ({_shown(moment, zone)})." for moment in neighbours],
    )


def _at(vm: str, when: When, stretch: Stretch, ordered: list[Moment], zone: tzinfo) -> Found:
    before = [moment for moment in ordered if moment.time_ns <= stretch.latest_ns]
    if before:
        return Found(before[-1], exact=before[-1].time_ns >= stretch.earliest_ns)
    oldest = ordered[0]
    raise NotFound(
        f"{vm} has no moment before {local_time(oldest.time_ns, zone)}. You asked for {when.written}. "
        f"The oldest is {oldest.id}.",
        on=vm,
        do=[f"everywhen points {vm}"],
    )


def _only(vm: str, when: When, fitting: list[Moment], kind: str, ordered: list[Moment], zone: tzinfo) -> Moment:
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise WrongUsage(
            f"{when.written} fits {len(fitting)} moments of {vm}.",
            on=vm,
            do=[f"Say {vm}@{moment.id} ({_shown(moment, zone)})." for moment in fitting[:-6:-1]],
        )
    known = [m.id for m in ordered] if kind == "point" else [m.mark for m in ordered if m.mark is not None]
    close = nearest(when.written.strip('"'), reversed(known))
    hint = f" Close: {close[0]}." if close else ""
    raise NotFound(f"{vm} has no {kind} {when.written}.{hint}", on=vm, do=[f"everywhen points {vm}", _HINT])


def _shown(moment: Moment, zone: tzinfo) -> str:
    return f"{local_time(moment.time_ns, zone)} {zone_label(moment.time_ns, zone)}"
