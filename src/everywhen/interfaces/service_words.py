# SPDX-License-Identifier: AGPL-3.0-or-later
"""How a capture stands, for systemd: ready when its first point is there, alive while it makes progress, and one line for
`systemctl status`. Passes on to another what it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from everywhen.formats.point import RecoveryPoint
from everywhen.interfaces.service_manager import ServiceManager
from everywhen.services.protect.capture_order import Figures, Told

_EVERY_S = 1.0
"""Not more often: a copy tells of each 4 MiB."""


class ServiceWords:
    """Is `services.capture_order.Told`."""

    def __init__(self, told: Told, manager: ServiceManager, monotonic: Callable[[], float], apart: str = "") -> None:
        """`apart`: how far apart points are made, where these alone are captured."""
        self._told = told
        self._apart = apart
        self._well = f"A point is made every {apart}" if apart else "Every write is captured"
        self._manager = manager
        self._monotonic = monotonic
        self._next = 0.0
        self._attached = False
        self._following = False

    def attached(self, disks: list[str], left_out: Mapping[str, str]) -> None:
        self._attached, self._following = True, False
        besides = f"; not captured: {', '.join(left_out)}" if left_out else ""
        self._say(f"Reading what was not captured of {', '.join(disks)}{besides}")
        self._told.attached(disks, left_out)

    def copying(self, done: int, total: int) -> None:
        self._seldom(f"Reading what was not captured: {100 * done // max(total, 1)} %")
        self._told.copying(done, total)

    def interrupted(self, kept: int, total: int) -> None:
        self._told.interrupted(kept, total)

    def sealed(self, point: RecoveryPoint, writes: int) -> None:
        if self._attached:  # otherwise it is what another run had left
            self._following = True
            self._say(f"{self._well}; recovery point {point.point}", READY="1")
        self._told.sealed(point, writes)

    def measured(self, figures: Figures) -> None:
        # While disks are copied, how far that has come says more; and of points alone `sealed` has said all.
        if self._following and not figures.tapped_s:
            waiting = figures.taken - figures.sealed
            self._seldom(f"{self._well}; {waiting:,} of them since the newest recovery point")
        self._told.measured(figures)

    def shipped(self) -> None:
        self._told.shipped()

    def waiting(self, why: str) -> None:
        self._say(f"{'Points cannot be made' if self._apart else self._well + '; no recovery point can be made'}: {why}")
        self._told.waiting(why)

    def left_behind(self, what: str) -> None:
        self._told.left_behind(what)

    def lost(self, why: str) -> None:
        self._attached = False
        self._say(f"Capture was lost ({why}); it begins again by itself")
        self._told.lost(why)

    def displaced(self, why: str) -> None:
        self._attached = False
        self._say(f"Stands aside: {why}")
        self._told.displaced(why)

    def paused(self, seconds: float) -> None:
        self._attached = False
        self._say(f"Paused for {seconds:.0f} s")
        self._told.paused(seconds)

    def off(self, why: str, complete: RecoveryPoint | None) -> None:
        self._attached = False
        if complete is None:
            self._say(f"Waiting for the VM ({why})")
        else:  # nobody writes, and all that was written is in a point
            self._say(f"Waiting for the VM ({why}); in sync since recovery point {complete.point}", READY="1")
        self._told.off(why, complete)

    def alive(self) -> None:
        self._manager.tell(WATCHDOG="1")
        self._told.alive()

    def _say(self, status: str, **more: str) -> None:
        self._manager.tell(STATUS=status, WATCHDOG="1", **more)

    def _seldom(self, status: str) -> None:
        now = self._monotonic()
        if now >= self._next:
            self._next = now + _EVERY_S
            self._say(status)
