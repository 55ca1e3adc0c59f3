# SPDX-License-Identifier: AGPL-3.0-or-later
"""When a capture that stands ships its journal and makes points: by time, by amount, and when somebody wishes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from everywhen.capture.qmp import MonitorBusy
from everywhen.formats.point import RecoveryPoint
from everywhen.services.protect.capture_order import (
    ENDS,
    REPOSITORY_FAILS,
    CaptureOrder,
    Figures,
    MissedInstant,
    Paused,
    Time,
    Told,
)
from everywhen.services.protect.instants import ByTime
from everywhen.services.protect.wishes import ANSWER_S, Mark, Pause, Resume, Ship, Wish, Wishes, marked, refuse

_LOOK_S, _MEASURE_S, _AGAIN_S = 0.25, 1.0, 10.0
_SHIP_S, _SHIP_BYTES = 60.0, 16 << 20
_MOST_RECORDS, _MOST_BYTES = 100_000, 256 << 20
"""At most about so much lies between two points: opening a moment reads it (indexing 0.1 M records took 11 ms, design 4.4)."""


class Standing(Protocol):
    """A capture whose taps are attached and whose gap is closed; `parent`: the VM's newest point."""

    @property
    def figures(self) -> Figures: ...

    @property
    def parent(self) -> RecoveryPoint | None: ...

    def look(self) -> None: ...

    def ship(self) -> None: ...

    def make_point(self, mark: str | None, *, quiet: bool, at_ns: int | None = None) -> None: ...

    @property
    def common_clock(self) -> Callable[[], int] | None:
        """Where the VM's points by time are to show instants that others have, too: what tells the time; else None."""

    def witness(self) -> None: ...


def follow(standing: Standing, order: CaptureOrder, told: Told, time: Time, wishes: Wishes) -> None:
    """Until the end is wanted. Raises CaptureLost, Paused; StorageError when the last point cannot be made."""
    shipped = measured = again = time.monotonic()
    by_time = ByTime(order.seal_s, shipped, standing.common_clock)
    at_ship = at_seal = standing.figures
    told.measured(at_ship)
    while True:
        wish, ending = wishes.wait(_LOOK_S), wishes.ending
        why = None
        try:
            standing.look()
            now, figures = time.monotonic(), standing.figures
            new = figures.spool_bytes - at_ship.spool_bytes
            ships = new > _SHIP_BYTES or (new and now - shipped > _SHIP_S) or ending or isinstance(wish, Ship | Pause)
            if ships or now - measured > _MEASURE_S:
                measured = now
                told.measured(figures)
            if ships:
                shipped, at_ship = now, figures
                if isinstance(wish, Ship) and standing.common_clock is not None:
                    # Who opens a moment of the group must see that nothing is missing up to now.
                    why = _tried(standing.witness, told)
                why = _tried(standing.ship, told) or why
            much = figures.taken - figures.sealed > _MOST_RECORDS or figures.work_bytes - at_seal.work_bytes > _MOST_BYTES
            # What is made by amount alone, or in a hurry, is no reason to freeze a guest.
            if isinstance(wish, Mark):
                mark, quiet, at_ns = wish.text, True, wish.at_ns
                by_time.made(now)
            else:
                mark, (quiet, at_ns) = None, by_time.due(now)
            if quiet or (much and now >= again) or isinstance(wish, Pause):
                at_seal = figures
                failed = _tried(partial(standing.make_point, mark, quiet=quiet, at_ns=at_ns), told)
                # What could not be sealed by its amount is not tried anew at each look: it is read from the spool each time.
                again = now + _AGAIN_S if failed else now
                why = failed or why
            if ending:
                standing.make_point(None, quiet=False)
                return
        except ENDS as error:
            if wish is not None:
                refuse(wish, f"capture was lost just now ({error})")
            raise
        if isinstance(wish, Pause) and time.monotonic() - wish.asked > ANSWER_S:
            refuse(wish, "what came first took too long")  # who asked has gone, and was told so
        elif wish is not None:
            _answer(standing, wish, why)


def _tried(work: Callable[[], None], told: Told) -> str | None:
    """Do what needs the repository, the monitor or an instant; why it failed. Capture goes on: the spool has what is left."""
    try:
        work()
    except (*REPOSITORY_FAILS, MonitorBusy, MissedInstant) as error:
        told.waiting(str(error))
        return str(error)
    return None


def _answer(standing: Standing, wish: Wish, why: str | None) -> None:
    match wish:
        case Pause():
            raise Paused(wish)  # also without the repository: the spool and the bitmaps have what it did not take
        case Resume():
            wish.reply({"resumed": False})
        case Mark() if why is None and standing.parent is not None:
            marked(wish, standing.parent)
        case _:
            wish.reply({"error": why} if why else {})
