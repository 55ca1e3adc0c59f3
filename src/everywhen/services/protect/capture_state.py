# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a capture says of itself while it runs: the state of docs/capture.md, since when, and what stands in the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict

from everywhen.formats.fields import Json
from everywhen.formats.point import RecoveryPoint
from everywhen.services.protect.capture_order import Figures, Told
from everywhen.services.protect.capture_states import COPYING, DETACHED, DISPLACED, FOLLOWING, OFF, PAUSED, STARTING

_RATE_OVER = 30
"""Rates are of so many measurements, which are a second apart."""

_RATES = {
    "taken": "writes_per_s",
    "data_bytes": "bytes_per_s",
    "spool_bytes": "spool_bytes_per_s",
    "sink_ns": "sink_ns_per_s",
    "watchdog_ns": "watchdog_ns_per_s",
    "protect_ns": "protect_ns_per_s",
}
"""What is counted, and what of it is said by the second."""


class CaptureState:
    """Hears what a capture tells, keeps what of it is true now, and passes it on to `told`."""

    def __init__(self, told: Told, clock: Callable[[], int], identity: Json) -> None:
        """`clock`: nanoseconds since 1970; `identity`: fields that say what is captured, and into what."""
        self._told = told
        self._clock = clock
        unknown = dict.fromkeys(("point", "point_time_ns", "shipped_ns", "shipped", "waiting", "left_behind"))
        self._value: Json = {**identity, "disks": [], "left_out": {}, **unknown}
        self._measured: deque[tuple[int, Figures]] = deque(maxlen=_RATE_OVER)
        self._become(STARTING, None)

    def document(self) -> Json:
        """The state as it is now. May be called from another thread."""
        return dict(self._value)

    def attached(self, disks: list[str], left_out: Mapping[str, str]) -> None:
        self._become(COPYING, None)
        self._measured.clear()
        self._value |= {"disks": disks, "left_out": dict(left_out), "shipped": 0}  # its records are counted from 0
        self._told.attached(disks, left_out)

    def measured(self, figures: Figures) -> None:
        self._measured.append((self._clock(), figures))
        (began, first), (now, _) = self._measured[0], self._measured[-1]
        seconds = max(now - began, 1) / 1e9
        rates = {
            rate: max(0, round((getattr(figures, name) - getattr(first, name)) / seconds)) for name, rate in _RATES.items()
        }
        self._value |= {**asdict(figures), **rates}
        self._told.measured(figures)

    def copying(self, done: int, total: int) -> None:
        self._value["copied"], self._value["to_copy"] = done, total
        self._told.copying(done, total)

    def interrupted(self, kept: int, total: int) -> None:
        self._told.interrupted(kept, total)

    def sealed(self, point: RecoveryPoint, writes: int) -> None:
        if self._value["state"] == COPYING:
            self._become(FOLLOWING, None)
        self._value |= {"point": point.point, "point_time_ns": point.time_ns, "waiting": None}
        self._told.sealed(point, writes)

    def shipped(self) -> None:
        # What was measured last is in it: `follow` measures before it ships.
        self._value |= {"shipped_ns": self._clock(), "shipped": self._value.get("taken"), "waiting": None}
        self._told.shipped()

    def waiting(self, why: str) -> None:
        self._value["waiting"] = why
        self._told.waiting(why)

    def left_behind(self, what: str) -> None:
        self._value["left_behind"] = what
        self._told.left_behind(what)

    def lost(self, why: str) -> None:
        self._become(DETACHED, why)
        self._told.lost(why)

    def displaced(self, why: str) -> None:
        self._become(DISPLACED, why)
        self._value |= {"covered_ns": 0, "taken": 0, "shipped": 0, "waiting": None}  # of a line that is not the VM's any more
        self._told.displaced(why)

    def paused(self, seconds: float) -> None:
        self._become(PAUSED, None)
        self._value["until_ns"] = self._value["since_ns"] + int(seconds * 1e9)
        self._told.paused(seconds)

    def off(self, why: str, complete: RecoveryPoint | None) -> None:
        self._become(OFF, why)
        self._value["in_sync"] = complete is not None
        self._told.off(why, complete)

    def alive(self) -> None:
        self._told.alive()

    def _become(self, state: str, why: str | None) -> None:
        self._value |= {"state": state, "why": why, "since_ns": self._clock(), "until_ns": None}
