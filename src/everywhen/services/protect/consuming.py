# SPDX-License-Identifier: AGPL-3.0-or-later
"""The spool of a capture that has no moment yet, consumed while the disks are copied: into the point to come, and away.

Whoever copies rests meanwhile, so that nothing that was read before a record is taken in after it. Why the tree is right all
the same, and which order of reading and consuming is not: docs/capture.md, "Copies".
"""

from __future__ import annotations

from collections.abc import Callable

from everywhen.capture.reception import Reception
from everywhen.services.protect.sealing import Sealer
from everywhen.services.protect.spooling import Spool

_LOOK_S = 1.0


class Consumer:
    """Feeds a sealer with a spool's records, and removes the files: their records came before the first moment."""

    def __init__(
        self,
        reception: Reception,
        spool: Spool,
        sealer: Sealer,
        limit: int,
        until: Callable[[Callable[[], bool]], None],
        monotonic: Callable[[], float],
    ) -> None:
        """`limit`: the spool's in bytes, or the room that there is for it where that is less; `until` waits for something
        that the sink does, and raises CaptureLost; `monotonic`: seconds that never run backwards."""
        self._reception = reception
        self._spool = spool
        self._sealer = sealer
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

        self._sealer.alive = alive
        self._reception.roll()
        self._until(lambda: self._reception.rolled)
        # Before the records are read: a file that is closed while they are may hold some that are not.
        closed = self._reception.closed
        for group in self._spool.groups(self._sealer.replay.sequence):
            self._sealer.feed(group)
        self._spool.discard(closed)
