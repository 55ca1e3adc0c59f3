# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk that nobody can read is pushed: its tap sends all of it, through the sink and the spool, as if it were written.

So the spool is consumed meanwhile, and the push rests while that is done, or a repository that is slower than the host would
let the spool grow to its limit.
"""

from __future__ import annotations

from collections.abc import Callable

from everywhen.capture.tap import Tap
from everywhen.services.protect.capture_order import CaptureOrder
from everywhen.services.protect.consuming import Consumer

_LOOK_S = 0.1


class Push:
    """Pushes one disk after the other."""

    def __init__(self, sink: str, order: CaptureOrder, consumer: Consumer) -> None:
        """`sink`: the path of its socket."""
        self._sink = sink
        # However slowly it is looked at: also where no pace is set, it takes 4 s to fill the spool.
        self._rate = min(order.rate or order.spool_limit, max(1, order.spool_limit // 4))
        self._consumer = consumer

    def run(self, tap: Tap, advance: Callable[[int], None]) -> None:
        """Attach the tap, and return when every byte of its disk was sent.

        `advance` is told bytes dealt with since it was last called. Raises TapFailed, NbdError, MonitorError, and what the
        consumer and `advance` do.
        """
        tap.push(self._sink, self._rate)
        done = 0
        while not tap.is_ready(_LOOK_S):
            now = tap.sent()
            advance(max(0, now - done))
            done = max(done, now)
            if self._consumer.is_due:
                tap.rest()
                self._consumer.run(advance)
                tap.go_on()
        tap.sent_all()
        advance(tap.disk.size - done)
