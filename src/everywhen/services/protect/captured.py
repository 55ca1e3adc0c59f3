# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a capture on this host says of itself (`capture_state.py`), as `status` and `timeline` understand it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo

from everywhen.formats.fields import Json, optional_text, text, whole
from everywhen.services.ages import SECOND, age, span
from everywhen.services.protect.capture_states import (
    COPYING,
    DETACHED,
    DISPLACED,
    FOLLOWING,
    NOT_RUNNING,
    OFF,
    PAUSED,
    STARTING,
)
from everywhen.services.timeline import Reach
from everywhen.services.times import local_time

SILENT = "silent"
"""The state of one that is there and does not answer."""
KILLED = "killed"
"""The state of one that did not end in order, and that nobody has begun again."""
FAILED = "failed"
"""The state of one that ended with an error, and that nobody has begun again."""
ENDED = (KILLED, FAILED)
ALARM_NS = 20_000_000
"""A sink that is well answers far sooner (design 4.10.2); after ten times as long it is taken away."""
_ENOUGH = 1000
"""Of fewer writes one in a hundred says nothing."""
_MISSED = 3
"""So many intervals without a point need a person: one that comes late does not."""


@dataclass(frozen=True, slots=True)
class Captured:
    """One capture, as it was when it was asked; `raw` is its whole answer. `why`: it is not following; `waiting`: what the
    repository does not take; `covered_ns`: every write until then is durable on this host."""

    state: str
    since_ns: int
    why: str | None = None
    until_ns: int | None = None
    waiting: str | None = None
    covered_ns: int | None = None
    raw: Json | None = None

    @classmethod
    def from_json(cls, value: Json) -> Captured:
        """Raises Corrupt."""
        return cls(
            state=text(value, "state"),
            since_ns=whole(value, "since_ns"),
            why=optional_text(value, "why"),
            until_ns=None if value.get("until_ns") is None else whole(value, "until_ns"),
            waiting=optional_text(value, "waiting"),
            covered_ns=whole(value, "covered_ns", 0) or None,
            raw=value,
        )

    @property
    def following(self) -> bool:
        """Whether it goes as it should: every write is captured, or points are made at intervals."""
        return self.state == FOLLOWING

    @property
    def attached(self) -> bool:
        """Whether writes are received, be it that there is no moment yet."""
        return self.state in (FOLLOWING, COPYING)

    @property
    def nothing_to_capture(self) -> bool:
        """Whether the VM is off, and its newest point shows all that was written before."""
        return self.state == OFF and bool((self.raw or {}).get("in_sync"))

    @property
    def left_out(self) -> dict[str, str]:
        """What the guest writes to and no point has: why."""
        found = (self.raw or {}).get("left_out")
        return {str(name): str(why) for name, why in found.items()} if isinstance(found, dict) else {}

    def number(self, name: str) -> int:
        """A figure of its answer; 0 where there is none."""
        found = (self.raw or {}).get(name)
        return found if isinstance(found, int) else 0

    @property
    def interval_ns(self) -> int:
        """How far apart points are made, where these alone are captured; 0 where every write is."""
        return self.number("interval_ns")

    @property
    def unshipped(self) -> int:
        """How many records are not in the repository yet."""
        return max(0, self.number("taken") - self.number("shipped")) if self.following else 0

    def words(self, zone: tzinfo) -> str:
        """The state in a few words."""
        if self.state == COPYING:
            share = 100 * self.number("copied") // max(self.number("to_copy"), 1)
            return f"copying {share} %"
        if self.state == PAUSED and self.until_ns is not None:
            return f"paused until {local_time(self.until_ns, zone)[11:]}"
        if self.following:
            return f"every {span(self.interval_ns)}" if self.interval_ns else "every write"
        return self.state.upper() if self.state in (DETACHED, DISPLACED, SILENT, *ENDED) else self.state

    def needs(self, now_ns: int) -> list[str]:
        """Sentences about what needs a person."""
        if self.state == SILENT:
            return [f"its capture does not answer ({self.why})"]
        if self.state == KILLED:
            return ["not captured: its capture on this host was killed; begin it again: everywhen protect, or its service"]
        if self.state == FAILED:
            ago = f" {age(max(now_ns - self.since_ns, SECOND))} ago" if self.since_ns else ""
            return [f"not captured: its capture on this host ended{ago} ({self.why}); begin it again: everywhen protect"]
        left = (self.raw or {}).get("left_behind")
        needs = [left] if isinstance(left, str) else []
        if self.attached and self.number("taken") >= _ENOUGH and self.number("p99_ns") > ALARM_NS:
            slow = f"one of 100 writes waits for more than {ALARM_NS // 1_000_000} ms for its capture"
            needs.append(f"{slow}: are this host's processors busy, or is the spool's disk slow?")
        if self.state == DETACHED:
            since = age(max(now_ns - self.since_ns, SECOND))
            return [f"not captured for {since} ({self.why}); it begins again by itself", *needs]
        if self.state == DISPLACED:
            return [f"not captured by this host's run, which stands aside: {self.why}", *needs]
        old = now_ns - self.number("point_time_ns")
        if self.following and self.interval_ns and old > _MISSED * self.interval_ns:
            return [f"its newest point is {age(old)} old, and one was to be made every {span(self.interval_ns)}", *needs]
        return [f"no recovery point could be made: {self.waiting}", *needs] if self.waiting else needs

    @property
    def reach(self) -> Reach:
        """How far the newest point's journal reaches, and why nothing is captured now."""
        why = {
            PAUSED: "paused",
            COPYING: "what was not captured is being read",
            DETACHED: self.why,
            STARTING: NOT_RUNNING,
            KILLED: "capture was killed",
            FAILED: f"capture ended: {self.why}",
            OFF: None if self.nothing_to_capture else self.why,
        }
        return Reach(self.covered_ns, why.get(self.state))

    def lag_ns(self, now_ns: int) -> int | None:
        """How long ago the newest write was that is for sure durable on this host; None where nothing is captured."""
        return max(0, now_ns - self.covered_ns) if self.following and self.covered_ns else None

    def sealed_lag_ns(self, now_ns: int) -> int | None:
        """How long ago the instant was that its newest point shows; None where it has made none."""
        shown_ns = self.number("point_time_ns")
        return max(0, now_ns - shown_ns) if shown_ns else None
