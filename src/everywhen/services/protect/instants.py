# SPDX-License-Identifier: AGPL-3.0-or-later
"""At which number of the sequence a point is made: now, when the guest stands still, or at a time that a group has in common.

Why a time will do for several VMs, and how it is known that no record of it is missing: docs/decisions/0005-groups.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from everywhen.capture.freezing import NotFrozen
from everywhen.capture.reception import Reception
from everywhen.formats.fields import canonical_json
from everywhen.nbd.connection import NbdConnection, NbdError
from everywhen.services.ages import SECOND
from everywhen.services.protect.capture_order import CaptureLost, MissedInstant, Time
from everywhen.services.protect.quieting import CRASH, Consistency, Quieting
from everywhen.services.protect.recipient import Laid

_FRESH_S = 1.0
"""So soon the sink must answer before the guest is frozen, and while it is."""
_BEFORE_NS = 2 * SECOND
"""So long before a common instant the work on its point begins: looked at is every 0.25 s, new bitmaps took up to 0.24 s, and
to start what freezes a guest takes as long, more on a busy host."""
_FROZEN_NS = SECOND // 2
"""So long before it a guest's file systems are frozen: that took the agent of a busy one 90 to 160 ms."""
_PATIENCE_S = 30.0


class ByTime:
    """When a point by time is due: so long after the last one, or, with the clock of a host whose VMs are to have instants
    in common, at multiples of that time since 1970."""

    def __init__(self, every_s: float, since: float, clock: Callable[[], int] | None) -> None:
        self._every_s = every_s
        self._every_ns = max(int(every_s * SECOND), SECOND)
        self._since = since
        self._clock = clock
        self._newest = 0

    def due(self, now: float) -> tuple[bool, int | None]:
        """Whether one is due now, and the instant that it is to show where it is a common one. It says so once."""
        if self._clock is None:
            due = now - self._since > self._every_s
            self._since = now if due else self._since
            return due, None
        clock = self._clock()
        instant = (clock // self._every_ns + 1) * self._every_ns
        if instant == self._newest or clock < instant - _BEFORE_NS:
            return False, None
        self._newest = instant
        return True, instant

    def made(self, now: float) -> None:
        """One was made that is as good."""
        self._since = now


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a point is to be made: before the number `until`, and not after `at_ns` where that is said.

    `begun`: the number after the newest record that the point's bitmaps may lack.
    """

    until: int
    consistency: Consistency
    at_ns: int | None = None
    begun: int = 0

    def demand(self, laid: Laid, parent_ns: int) -> None:
        """Raises MissedInstant unless the records, fed up to here, make a point of the instant, and later than `parent_ns`."""
        if self.at_ns is None:
            return
        if laid.sequence < self.begun or self.at_ns <= parent_ns:
            raise MissedInstant("the common instant had passed before the work on its point could begin")
        if laid.sequence >= self.until:  # not one of them is later than the instant, so more up to it may follow
            raise MissedInstant("this host's clock was set back before the common instant had passed")


class Instants:
    """Those of one stretch of capture. Everything raises NbdError where the sink does not answer."""

    def __init__(self, reception: Reception, quieting: Quieting | None, time: Time, clock: Callable[[], int]) -> None:
        """`clock`: the host's, by which records are stamped."""
        self._reception = reception
        self._quieting = quieting
        self._time = time
        self._clock = clock
        self._settled = 0
        """The number after the newest thaw: the guest's file systems write something then, if nobody else does."""
        self._marks = (0, 0)
        """From one number to before another there is nothing but marks of ours."""

    def is_news(self, sealed: int, *, quiet: bool) -> bool:
        """Whether the guest wrote anything since the point that ends before the number `sealed`."""
        taken = self._reception.taken
        begin, end = self._marks
        return taken > max(sealed, self._settled if quiet else 0) and not (begin <= sealed and taken == end)

    def cut(self, *, quiet: bool, at_ns: int | None) -> Cut:
        """Of a guest that stands still where it is to be `quiet` and can be made so. Bitmaps have been begun.

        Raises MissedInstant, CaptureLost.
        """
        reception, quieting, begun = self._reception, self._quieting, self._reception.taken
        until, consistency = None, CRASH
        if quiet and quieting is not None:
            until, consistency = quieting.instant(lambda: self._marking(at_ns))
            self._settled = reception.taken
        if until is None:
            until = reception.taken if at_ns is None else self.witness(at_ns)
        return Cut(until, consistency, at_ns, begun)

    def witness(self, at_ns: int = 0) -> int:
        """Put a mark into the sequence, after that instant: whoever reads it knows that no record is missing before it.

        The number after it. Raises MissedInstant, CaptureLost.
        """
        self._sleep(at_ns + 1)
        try:
            with self._connection() as connection:
                return self._mark(connection, "instant")
        except NbdError as error:  # on a busy host; a sink that hangs is seen at the next look
            raise MissedInstant(f"no mark could be put into the journal in time ({error})") from error

    @contextmanager
    def _marking(self, at_ns: int | None) -> Iterator[Callable[[], int]]:
        """A connection for the mark: the sink's handshake says that it answers now, and a guest may be frozen over it."""
        if at_ns is not None:
            self._sleep(at_ns - _FROZEN_NS)
            if self._clock() >= at_ns:  # what comes before it, hooks above all, has taken longer: nobody is frozen for nothing
                raise NotFrozen("the guest could not be made quiet before the common instant had passed")
        with self._connection() as connection:

            def mark() -> int:
                if at_ns is not None:
                    if self._clock() >= at_ns:
                        raise NotFrozen("the guest's file systems were frozen only after the common instant")
                    self._sleep(at_ns + 1)
                return self._mark(connection, "quiet")

            yield mark

    def _connection(self) -> NbdConnection:
        return NbdConnection(str(self._reception.socket_path), "mark-0", timeout=_FRESH_S)

    def _sleep(self, until_ns: int) -> None:
        """Until the clock says so. Raises MissedInstant where that is too long, CaptureLost."""
        end = self._time.monotonic() + _PATIENCE_S
        while (left := until_ns - self._clock()) > 0:
            if not self._reception.alive or self._reception.lets_go:
                raise CaptureLost("the sink ended, or was taken away because it hung")
            if left > _PATIENCE_S * SECOND or self._time.monotonic() > end:
                raise MissedInstant("the common instant is too far ahead, or this host's clock was set back")
            self._time.sleep(min(left / SECOND, 0.05))

    def _mark(self, connection: NbdConnection, what: str) -> int:
        """The number after the mark, or a later one."""
        before = self._reception.taken
        connection.answer(connection.send(0, canonical_json({"mark": what})))
        after = self._reception.taken
        begin = after if after > before + 1 else self._marks[0] if self._marks[1] == before else before
        self._marks = (begin, after)
        return after
