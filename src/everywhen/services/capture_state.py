# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a capture says of itself while it runs: the state of docs/capture.md, since when, and what stands in the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from everywhen.formats.fields import Json
from everywhen.formats.point import RecoveryPoint
from everywhen.services.capture_order import Figures, Told

STARTING, COPYING, FOLLOWING, DETACHED, PAUSED = "starting", "copying", "following", "detached", "paused"


class CaptureState:
    """Hears what a capture tells, keeps what of it is true now, and passes it on to `told`."""

    def __init__(self, told: Told, clock: Callable[[], int]) -> None:
        """`clock`: nanoseconds since 1970."""
        self._told = told
        self._clock = clock
        self._value: Json = {"disks": [], "point": None, "point_time_ns": None, "shipped_ns": None, "waiting": None}
        self._become(STARTING, None)

    def document(self) -> Json:
        """The state as it is now. May be called from another thread."""
        return dict(self._value)

    def attached(self, disks: list[str]) -> None:
        self._become(COPYING, None)
        self._value["disks"] = disks
        self._told.attached(disks)

    def measured(self, figures: Figures) -> None:
        self._value |= asdict(figures)
        self._told.measured(figures)

    def copying(self, done: int, total: int) -> None:
        self._value["copied"], self._value["to_copy"] = done, total
        self._told.copying(done, total)

    def sealed(self, point: RecoveryPoint, writes: int) -> None:
        if self._value["state"] == COPYING:
            self._become(FOLLOWING, None)
        self._value |= {"point": point.point, "point_time_ns": point.time_ns, "waiting": None}
        self._told.sealed(point, writes)

    def shipped(self) -> None:
        self._value |= {"shipped_ns": self._clock(), "waiting": None}
        self._told.shipped()

    def waiting(self, why: str) -> None:
        self._value["waiting"] = why
        self._told.waiting(why)

    def lost(self, why: str) -> None:
        self._become(DETACHED, why)
        self._told.lost(why)

    def paused(self, seconds: float) -> None:
        self._become(PAUSED, f"for {seconds:g} s")
        self._told.paused(seconds)

    def _become(self, state: str, why: str | None) -> None:
        self._value |= {"state": state, "why": why, "since_ns": self._clock()}
