# SPDX-License-Identifier: AGPL-3.0-or-later
"""Deletion is slow and visible (I-11): what makes a run stop and ask, and how long dropped moments come back.

Brakes look at one VM's plan and matter only when something would go: a VM that has been off for a year loses nothing by
rule, so its old newest moment stops nobody. The clock is compared in both directions; exactly a day, or exactly a
third, passes.

The delay: a lowered delay takes effect when the old one has run since the change; a raised one at once. A drop ends
after the longest delay that was in force when it was made or is in force now, so that raising the delay (somebody
found a thief) also protects what was dropped before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from everywhen.services.ages import DAY, HOUR, span
from everywhen.services.moments import Moment
from everywhen.services.times import rfc3339

DEFAULT_DELAY = 72 * HOUR
CLOCK_TOLERANCE = DAY
_EVER = -(1 << 200)


@dataclass(frozen=True, slots=True)
class Brake:
    """A reason to stop and ask; `code` is `third`, `last` or `clock`, `words` one sentence for the user."""

    code: str
    words: str


@dataclass(frozen=True, slots=True)
class DelaySetting:
    """From `since_ns` on (ns since 1970 UTC) somebody wants dropped moments to come back for `delay_ns`."""

    since_ns: int
    delay_ns: int


def brakes(vm: str, moments: Sequence[Moment], dropped: Sequence[Moment], *, now_ns: int) -> list[Brake]:
    """Why a run that drops `dropped` out of all `moments` of the VM has to ask first; empty: it need not.

    `dropped` may come from a plan or from a user's own choice (retiring a VM, deleting a moment).
    """
    if not dropped:
        return []
    reasons = []
    newest = max(moment.time_ns for moment in moments)
    first, last = min(moment.time_ns for moment in dropped), max(moment.time_ns for moment in dropped)
    if len(dropped) * 3 > len(moments):
        which = f"from {rfc3339(first)} to {rfc3339(last)}"
        words = f"{len(dropped)} of {len(moments)} moments of {vm} would go, more than a third ({which})."
        reasons.append(Brake("third", words))
    if len({moment.id for moment in dropped}) == len({moment.id for moment in moments}):
        words = f"The last moment of {vm} would go ({rfc3339(newest)}); nothing of it would be left."
        reasons.append(Brake("last", words))
    if abs(now_ns - newest) > CLOCK_TOLERANCE:
        side = "after" if now_ns > newest else "before"
        apart = span(abs(now_ns - newest))
        words = f"The clock says {rfc3339(now_ns)}, {apart} {side} the newest moment of {vm}. Is the clock right?"
        reasons.append(Brake("clock", words))
    return reasons


def delay_in_force(settings: Sequence[DelaySetting], at_ns: int) -> int:
    """The delay in force at `at_ns`, in ns. `settings` in the order they were made; before the first: DEFAULT_DELAY."""
    timeline = [DelaySetting(_EVER, DEFAULT_DELAY), *(setting for setting in settings if setting.since_ns <= at_ns)]
    in_force = timeline[-1].delay_ns
    for old, new in pairwise(timeline):
        if new.since_ns + old.delay_ns > at_ns:
            in_force = max(in_force, old.delay_ns)
    return in_force


def gone_at(dropped_ns: int, settings: Sequence[DelaySetting], *, now_ns: int) -> int:
    """When a moment dropped at `dropped_ns` stops coming back, in ns since 1970, as things stand at `now_ns`."""
    return dropped_ns + max(delay_in_force(settings, dropped_ns), delay_in_force(settings, now_ns))
