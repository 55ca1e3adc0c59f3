# SPDX-License-Identifier: AGPL-3.0-or-later
"""What goes wrong in what is open goes wrong again with each read: a line of it is enough."""

from __future__ import annotations

import threading
from collections.abc import Callable

_MOST = 1000
"""Lines that are remembered; then all of them may be said again."""


class SaidOnce:
    """Says each line once. For several threads."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        with self._lock:
            if line in self._said:
                return
            if len(self._said) >= _MOST:
                self._said.clear()
            self._said.add(line)
        self._say(line)
