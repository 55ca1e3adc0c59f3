# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which of a VM's moments a retention policy keeps, by which terms, and which go. Pure; it deletes nothing (ux R22, I-11).

Decided here, where the texts leave it open:

- A moment's age is `newest - time`; exactly as old as the term's age is still within it. Months and years are counted on
  the policy zone's calendar: 1 month before 31 March 10:00 is 28 (29) February 10:00.
- A moment belongs to the period that its local date and hour name. The hour that occurs twice in autumn is two hours.
- Of a period that reaches back beyond the age, only the moments within the age are looked at. The running period counts.
- Best consistency first, then instants that a group has in common, then the newest, then (the same nanosecond) the greater
  id; `last` goes by time alone.
- A hold keeps its moment until its end by the clock; so does a hold without an end, for ever. A mark alone keeps nothing.
- The newest moment stays, whatever the policy says.
- A moment with which a VM began again after it was rolled back stays as long as any moment does that was left then: it has its
  name (`VM~1`).

Since a term keeps the best of each period, and that one is still the best among fewer, thinning twice is thinning once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from everywhen.services.ages import DAY, HOUR, SECOND, WEEK
from everywhen.services.keep.retention import Policy, Term
from everywhen.services.moments import Moment

NEWEST = "newest"
HELD = "held"
BRANCH = "branch"

_ELAPSED = {"h": HOUR, "d": DAY, "w": WEEK}
_MONTHS = {"mo": 1, "y": 12}
_EVER = -(1 << 200)

_PERIOD_OF: dict[str, Callable[[datetime], int]] = {
    "hourly": lambda local: (local.toordinal() * 24 + local.hour) * 2 + local.fold,
    "daily": lambda local: local.toordinal(),
    "weekly": lambda local: (local.toordinal() - 1) // 7,  # day 1 (1 January of the year 1) was a Monday
    "monthly": lambda local: local.year * 12 + local.month,
    "yearly": lambda local: local.year,
}
"""A number for each period, different for different ones; `local` is in the policy's zone."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What retention may not drop: why, and until when (ns since 1970 UTC; None: until it is released)."""

    moment: str
    reason: str
    until_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One moment, and what keeps it: terms' kinds in canonical order, `held`, `newest` (where nothing else does), `branch`.

    Nothing keeps it: it goes.
    """

    moment: Moment
    kept_as: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a policy means for one VM; `decisions` from the newest moment to the oldest."""

    decisions: tuple[Decision, ...]

    @property
    def kept(self) -> list[Moment]:
        """The moments that stay, newest first."""
        return [decision.moment for decision in self.decisions if decision.kept_as]

    @property
    def dropped(self) -> list[Moment]:
        """The moments that go, newest first."""
        return [decision.moment for decision in self.decisions if not decision.kept_as]


def plan(policy: Policy, moments: Iterable[Moment], *, holds: Iterable[Hold] = (), now_ns: int) -> Plan:
    """Decide over all moments of one VM (those already dropped left out).

    The clock, `now_ns`, ends holds; ages count from it only where the policy is `by_calendar`.
    """
    ordered = sorted(moments, key=lambda moment: moment.order, reverse=True)
    if not ordered:
        return Plan(())
    reasons: dict[str, list[str]] = {moment.id: [] for moment in ordered}
    local = _local_times(policy, ordered)
    start = now_ns if policy.by_calendar else ordered[0].time_ns
    for term in policy.terms:
        for moment in _kept_by(term, ordered, local, _oldest(term, start, policy.zone)):
            reasons[moment.id].append(term.kind)
    for moment_id in {hold.moment for hold in holds if hold.until_ns is None or hold.until_ns > now_ns}:
        if moment_id in reasons:
            reasons[moment_id].append(HELD)
    if not reasons[ordered[0].id]:
        reasons[ordered[0].id].append(NEWEST)
    # From the oldest on: what one of them keeps, a later one may have left.
    for turn in reversed([moment for moment in ordered if moment.left_ns is not None]):
        if any(reasons[one.id] for one in ordered if _left_by(turn, one)):
            reasons[turn.id].append(BRANCH)
    return Plan(tuple(Decision(moment, tuple(reasons[moment.id])) for moment in ordered))


def _left_by(turn: Moment, moment: Moment) -> bool:
    return turn.left_ns is not None and turn.left_ns < moment.time_ns and moment.order < turn.order


def _local_times(policy: Policy, ordered: list[Moment]) -> list[datetime]:
    if not any(term.kind in _PERIOD_OF for term in policy.terms):
        return []
    zone = policy.zone
    return [datetime.fromtimestamp(moment.time_ns // SECOND, zone) for moment in ordered]


def _kept_by(term: Term, ordered: list[Moment], local: list[datetime], oldest: int) -> Iterable[Moment]:
    if term.kind == "last":
        return ordered[: term.amount]
    within = len(ordered)
    for index, moment in enumerate(ordered):
        if moment.time_ns < oldest:
            within = index
            break
    period_of = _PERIOD_OF.get(term.kind)
    if period_of is None:
        return ordered[:within]
    best: dict[int, Moment] = {}
    for moment, when in zip(ordered[:within], local[:within], strict=True):
        period = period_of(when)
        champion = best.get(period)
        if champion is None or moment.quality > champion.quality:
            best[period] = moment
    return best.values()


def _oldest(term: Term, start_ns: int, zone: ZoneInfo) -> int:
    """The instant, in ns, before which `term` keeps nothing."""
    if term.unit in _ELAPSED:
        return start_ns - term.amount * _ELAPSED[term.unit]
    if term.unit not in _MONTHS:
        return _EVER
    local = datetime.fromtimestamp(start_ns // SECOND, zone)
    year, month = divmod(local.year * 12 + local.month - 1 - term.amount * _MONTHS[term.unit], 12)
    if year < 2:  # before the calendar of `datetime` begins, with room for every zone's offset
        return _EVER
    return int(_same_day(local, year, month + 1).timestamp()) * SECOND + start_ns % SECOND


def _same_day(local: datetime, year: int, month: int) -> datetime:
    """`local` in another month, on its last day where the day does not exist there."""
    following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    days = following.toordinal() - datetime(year, month, 1, tzinfo=UTC).toordinal()
    return local.replace(year=year, month=month, day=min(local.day, days), fold=0)
