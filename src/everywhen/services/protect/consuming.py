# SPDX-License-Identifier: AGPL-3.0-or-later
"""The spool of a capture that has no moment yet, consumed while the disks are copied: into the point to come, and away.

Whoever copies rests meanwhile, so that nothing that was read before a record is taken in after it. Why the tree is right all
the same, and which order of reading and consuming is not: docs/capture.md, "Copies".
"""

from __future__ import annotations

from collections.abc import Callable

from everywhen.capture.reception import Reception
from everywhen.services.protect.recipient import Making, Spooled

_LOOK_S = 1.0


class Consumer:
    """Has a spool's records laid into a point in the making, and the files removed: they came before the first moment."""

    def __init__(
        self,
        reception: Reception,
        spool: Spooled,
        making: Making,
        limit: int,
        until: Callable[[Callable[[], bool]], None],
        monotonic: Callable[[], float],
    ) -> None:
        """`limit`: the spool's in bytes, or the room that there is for it where that is less; `until` waits for something
        that the sink does, and raises CaptureLost; `monotonic`: seconds that never run backwards."""
        self._reception = reception
        self._spool = spool
        self._making = making
        self._limit = limit
        self._until = until
        self._monotonic = monotonic

    @property
    def is_due(self) -> bool:
        """Whether so much waits that a copy has to rest."""
        return self._spool.size() > self._limit // 8

    def run(self, advance: Callable[[int], None]) -> None:
        """Consume what is there, and again while more than half of the spool came in meanwhile.

        `advance` is told 0 bytes once a second, and after each time. Raises StorageError, Damaged, SpoolDamaged, Corrupt,
        CaptureLost, and what `advance` does.
        """
        while True:
            self._consume(advance)
            advance(0)
            if self._spool.size() <= self._limit // 2:
                return

    def _consume(self, advance: Callable[[int], None]) -> None:
        looked = self._monotonic()

        def alive() -> None:
            nonlocal looked
            if self._monotonic() - looked > _LOOK_S:
                advance(0)
                looked = self._monotonic()

        self._reception.roll()
        self._until(lambda: self._reception.rolled)
        # Before the records are read: a file that is closed while they are may hold some that are not.
        closed = self._reception.closed
        self._making.lay(alive)
        self._spool.discard(closed)
