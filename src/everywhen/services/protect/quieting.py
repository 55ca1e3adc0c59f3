# SPDX-License-Identifier: AGPL-3.0-or-later
"""More than crash consistency: an instant at which the guest is frozen is marked in the journal, and the point made of it.

Frozen are the file systems for as long as the mark takes, and not for anything that is done with it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from everywhen.capture.agent_address import AgentAddress
from everywhen.capture.freeze_process import FreezeOrder
from everywhen.capture.freezer import Freezer, Thawed
from everywhen.capture.freezing import NotFrozen, Quiet
from everywhen.formats.errors import FormatError
from everywhen.formats.point import GuestClock

Marking = Callable[[], AbstractContextManager[Callable[[], int]]]
"""Begins to mark an instant in the journal, which fails at once where its sink does not answer; then makes the mark, and
gives the number after it."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """Asked for, reached, and why not more; who said that applications were quiet, where they did; the guest's clock."""

    asked: str = "crash"
    reached: str = "crash"
    why: str = ""
    clock: GuestClock | None = None


CRASH = Consistency()


@dataclass(frozen=True, slots=True)
class QuietOrder:
    """What is asked for (filesystem or application), whose agent it is asked of, and the host's hook ('': none)."""

    asked: str
    agent: AgentAddress
    host_hook: str = ""


class Quieting:
    """Freezes a guest, again and again. `record`: the file that stands while it may be frozen."""

    def __init__(self, order: QuietOrder, record: Path, warn: Callable[[str], None]) -> None:
        """`warn` is told why the guest may be frozen still."""
        self._asked = order.asked
        self._order = FreezeOrder(order.agent, str(record), order.asked == "application", order.host_hook)
        self._warn = warn
        self._before: Freezer | None = None

    def instant(self, marking: Marking) -> tuple[int | None, Consistency]:
        """The number after the mark at which the guest was frozen; None where it could not be. Raises what `marking` does."""
        try:
            if self._before is not None and self._before.working:
                raise NotFrozen("the freeze before this one has not ended yet")
            self._before = freezer = Freezer(self._order)
            try:
                freezer.prepare()
                with marking() as mark:
                    number, quiet, thawed = self._frozen(freezer, mark)
            finally:
                freezer.close()
        except (NotFrozen, OSError) as error:
            return None, Consistency(self._asked, "crash", str(error))
        return number, self._reached(quiet, thawed)

    def _frozen(self, freezer: Freezer, mark: Callable[[], int]) -> tuple[int, Quiet, Thawed]:
        thawed = None
        try:
            quiet = freezer.freeze()
            number = mark()
        finally:
            thawed = freezer.thaw()
            if thawed.stuck:
                self._warn(thawed.stuck)
        return number, quiet, thawed

    def _reached(self, quiet: Quiet, thawed: Thawed) -> Consistency:
        clock = GuestClock(**quiet.clock) if quiet.clock is not None else None
        if not thawed.stuck and thawed.file_systems < quiet.file_systems:
            why = f"of {quiet.file_systems} file systems {thawed.file_systems} were still frozen at the end"
            return Consistency(self._asked, "crash", why, clock)
        if quiet.said and not quiet.failed:
            return Consistency(self._asked, "application", ", ".join(quiet.said), clock)
        lacking = quiet.failed or quiet.absent
        return Consistency(self._asked, "filesystem", "; ".join(lacking) if self._asked == "application" else "", clock)


def thaw_left(record: Path) -> str:
    """Thaw a guest that a run before this one may have left frozen; why it may be frozen still."""
    try:
        order = FreezeOrder.decode(record.read_bytes())
    except FileNotFoundError:
        return ""
    except FormatError as error:
        record.unlink()
        return f"nobody knows which guest: {record} cannot be read ({error})"
    freezer = Freezer(order)
    try:
        return freezer.wait_thawed().stuck
    finally:
        freezer.close()
