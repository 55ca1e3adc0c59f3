# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk that nobody can read is pushed: its tap sends all of it, through the sink and the spool, as if it were written.

So the spool is consumed meanwhile: what is durable goes to the sealer, and its files are removed, which no moment needs. The
push rests while that is done, or a repository that is slower than the host would let the spool grow to its limit.
"""

from __future__ import annotations

from collections.abc import Callable

from everywhen.capture.reception import Reception
from everywhen.capture.tap import Tap
from everywhen.services.protect.capture_order import CaptureOrder
from everywhen.services.protect.sealing import Sealer
from everywhen.services.protect.spooling import Spool

_LOOK_S = 0.1


class Push:
    """Pushes one disk after the other into a sealer."""

    def __init__(
        self, reception: Reception, spool: Spool, order: CaptureOrder, until: Callable[[Callable[[], bool]], None]
    ) -> None:
        """`until` waits for something that the sink does, and raises CaptureLost."""
        self._reception = reception
        self._spool = spool
        self._limit = order.spool_limit
        # However slowly it is looked at: also where no pace is set, it takes 4 s to fill the spool.
        self._rate = min(order.rate or self._limit, max(1, self._limit // 4))
        self._until = until

    def run(self, tap: Tap, sealer: Sealer, advance: Callable[[int], None]) -> None:
        """Attach the tap, and return when every byte of its disk was sent.

        `advance` is told bytes dealt with since it was last called. Raises TapFailed, NbdError, StorageError, Damaged,
        SpoolDamaged, CaptureLost, MonitorError, and what `advance` does.
        """
        tap.push(str(self._reception.socket_path), self._rate)
        done = 0
        while not tap.is_ready(_LOOK_S):
            now = tap.sent()
            advance(max(0, now - done))
            done = max(done, now)
            if self._spool.size() > self._limit // 8:
                tap.rest()
                self._consume(sealer)
                tap.go_on()
        advance(tap.disk.size - done)

    def _consume(self, sealer: Sealer) -> None:
        self._reception.roll()
        self._until(lambda: self._reception.rolled)
        for group in self._spool.groups(sealer.replay.sequence):
            sealer.feed(group)
        # Not the newest: only by the one after it is it seen that nothing in it is of use to a moment.
        self._spool.ship(sealer.replay.sequence, self._reception.closed - 1)
        self._spool.drop(sealer.replay.sequence)
