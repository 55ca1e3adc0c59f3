# SPDX-License-Identifier: AGPL-3.0-or-later
"""Memory for what all clients of a server have under way together.

What a client has under way at once in small requests is its own affair (`OWN`): they go on whatever others do. A request that
goes beyond that takes its bytes out of a room that all share, and waits until there are some. A client that does not take its
answers, or ends in the middle of a write, keeps what they need: one that has done so for a while is hung up on, but only
where another one waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from threading import Condition
from time import monotonic
from typing import Protocol

OWN = 1 << 20
"""Bytes of requests that a client may have under way beside the room: of 256 clients as many as half of the room."""
SIZE = 512 << 20
"""Bytes: eight clients with all that each may have under way."""
PATIENCE_S = 30.0
_LOOK_S = 1.0


class Occupant(Protocol):
    """A client that takes of the room."""

    @property
    def gone(self) -> bool:
        """Whether it needs no room any more."""

    @property
    def waited_for_since(self) -> float | None:
        """Since when (of the monotonic clock) it has been waited for; None while it is not."""

    def evict(self, seconds: float) -> None:
        """Hang up, so that what it has is given back; it was waited for so long."""


class Room:
    """Of one server. For several threads."""

    def __init__(
        self,
        size: int = SIZE,
        *,
        patience_s: float = PATIENCE_S,
        look_s: float = _LOOK_S,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`size` in bytes: of the largest request at least. Who waits looks every `look_s` seconds for one that is waited for
        longer than `patience_s`.
        """
        self._free = size
        self._patience_s = patience_s
        self._look_s = look_s
        self._clock = clock
        self._taken: Counter[Occupant] = Counter()
        self._changed = Condition()

    def take(self, count: int, who: Occupant) -> bool:
        """Wait for so many bytes; False, and nothing is taken, when `who` has gone meanwhile."""
        while True:
            with self._changed:
                if who.gone:
                    return False
                if count <= self._free:
                    self._free -= count
                    self._taken[who] += count
                    return True
                if self._changed.wait(self._look_s):
                    continue
                late = self._waited_for_longest()
            if late is not None:
                late.evict(self._patience_s)

    def give_back(self, count: int, who: Occupant) -> None:
        """So many bytes are free again."""
        with self._changed:
            self._free += count
            self._taken[who] -= count
            if not self._taken[who]:
                del self._taken[who]
            self._changed.notify_all()

    def leave(self, who: Occupant) -> None:
        """All that it has is free again."""
        with self._changed:
            self._free += self._taken.pop(who, 0)
            self._changed.notify_all()

    def look_again(self) -> None:
        """Somebody who may be waiting has gone."""
        with self._changed:
            self._changed.notify_all()

    def _waited_for_longest(self) -> Occupant | None:
        """Of those who have some of it, and if it is too long."""
        before = self._clock() - self._patience_s
        waited = [(since, who) for who in self._taken if not who.gone and (since := who.waited_for_since) is not None]
        since, who = min(waited, key=lambda one: one[0], default=(0.0, None))
        return who if who is not None and since <= before else None
