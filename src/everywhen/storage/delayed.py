# SPDX-License-Identifier: AGPL-3.0-or-later
"""A store made as slow as one far away (design, P9: 30 ms), to test that reading ahead hides it.

Each operation waits one round trip, and for its bytes on a line that all threads share: two transfers at once take as
long as one of both. What is sent and what is received share the line, which is harsher than most lines are.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence

from everywhen.storage.base import Buffer, ObjectInfo, ObjectStore, Traits
from everywhen.storage.forwarding import ForwardingStore


class DelayedStore(ForwardingStore):
    """`inner` behind a line; says of itself that it is remote."""

    def __init__(
        self,
        inner: ObjectStore,
        *,
        latency_s: float,
        bytes_per_s: float,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        """`latency_s`: seconds of one round trip. `sleep` and `clock` count in seconds, as time.sleep and monotonic."""
        super().__init__(inner)
        self._latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._sleep = sleep
        self._clock = clock
        self._line_is_free_at = clock()
        self._lock = threading.Lock()

    @property
    def traits(self) -> Traits:
        """Those of `inner`, but remote."""
        return dataclasses.replace(self.inner.traits, remote=True)

    def get(self, name: str) -> bytes:
        """See ObjectReader."""
        self._travel(0)
        content = self.inner.get(name)
        self._transfer(len(content))
        return content

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """See ObjectReader."""
        self._travel(0)
        content = self.inner.get_range(name, offset, length)
        self._transfer(len(content))
        return content

    def size(self, name: str) -> int:
        """See ObjectReader."""
        self._travel(0)
        return self.inner.size(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See ObjectReader. One round trip for each 1,000 names, the page size of S3."""
        self._travel(0)
        for number, found in enumerate(self.inner.list(prefix), 1):
            yield found
            if number % 1000 == 0:
                self._travel(0)

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        """See ObjectStore."""
        self._travel(sum(memoryview(part).nbytes for part in parts))
        self.inner.put(name, parts, if_absent=if_absent)

    def delete(self, name: str) -> None:
        """See ObjectStore."""
        self._travel(0)
        self.inner.delete(name)

    def _travel(self, sent: int) -> None:
        self._sleep(self._latency_s)
        if sent:
            self._transfer(sent)

    def _transfer(self, length: int) -> None:
        with self._lock:
            now = self._clock()
            self._line_is_free_at = max(now, self._line_is_free_at) + length / self._bytes_per_s
            wait = self._line_is_free_at - now
        self._sleep(wait)
