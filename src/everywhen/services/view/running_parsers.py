# SPDX-License-Identifier: AGPL-3.0-or-later
"""A bound on the processes that parse guests' files, one for each moment: who has hundreds of moments open, all in use, must
not have hundreds of processes of some 50 MB each. They keep nothing that the next one would not find again in half a second.
"""

from __future__ import annotations

import threading

from everywhen.services.view.parser import Parser

MOST_RUNNING = 16
"""More for as long as there are questions to all of them at once."""


class RunningParsers:
    """Those that were started last. For several threads."""

    def __init__(self, most: int = MOST_RUNNING) -> None:
        self._most = most
        self._started: list[Parser] = []
        self._lock = threading.Lock()

    def starting(self, new: Parser) -> None:
        """Called before one is started: the ones started first that are not asked just now are ended, if there are too many.

        None of them is waited for: who waits for one that starts, too, might wait for ever.
        """
        with self._lock:
            started = [one for one in self._started if one is not new]
            surplus = len(started) + 1 - self._most
            for one in started[: max(0, surplus)]:
                if one.rest():
                    started.remove(one)
            self._started = [*started, new]

    def ended(self, one: Parser) -> None:
        """It is not used any more."""
        with self._lock:
            if one in self._started:
                self._started.remove(one)
