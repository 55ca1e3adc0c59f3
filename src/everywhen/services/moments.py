# SPDX-License-Identifier: AGPL-3.0-or-later
"""Moments that can be opened, as retention, addresses and listings see them.

These are the recovery points. Between two of them the journal has more: `opening.py` finds them from the point before.
"""

from __future__ import annotations

from dataclasses import dataclass

from everywhen.formats.point import CONSISTENCIES


@dataclass(frozen=True, slots=True)
class Moment:
    """One recovery point: its id, the instant it shows, the consistency reached, and its name if a person gave it one.

    `time_ns` is in nanoseconds since 1970 UTC, between the years 1 and 9999; `common`: other VMs of its group have one of the
    same instant; `left_ns`: of one with which a VM began again after it was rolled back, the instant gone back to: what lies
    between is what was left then.
    """

    id: str
    time_ns: int
    consistency: str = "crash"
    mark: str | None = None
    common: bool = False
    left_ns: int | None = None

    @property
    def order(self) -> tuple[int, str]:
        """Sorts by time; moments of the same nanosecond by id, so that every run decides the same."""
        return self.time_ns, self.id

    @property
    def quality(self) -> tuple[int, bool]:
        """How consistent, from 0 (`none`) to 3 (`application`); and whether others can be opened at the same instant."""
        return CONSISTENCIES.index(self.consistency), self.common
