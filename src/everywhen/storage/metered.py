# SPDX-License-Identifier: AGPL-3.0-or-later
"""A store that counts: operations of each kind, bytes read and written. For reports, and for tests of how much is asked."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence

from everywhen.storage.base import Buffer, ObjectInfo, ObjectStore, Space
from everywhen.storage.forwarding import ForwardingStore, Kind


class MeteredStore(ForwardingStore):
    """`operations` by kind, failed ones included; `bytes_read` and `bytes_written` of those that succeeded."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.operations: Counter[Kind] = Counter()
        self.bytes_read = 0
        self.bytes_written = 0
        self._lock = threading.Lock()

    def get(self, name: str) -> bytes:
        """See ObjectReader."""
        self._count("get")
        return self._received(self.inner.get(name))

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """See ObjectReader."""
        self._count("get_range")
        return self._received(self.inner.get_range(name, offset, length))

    def size(self, name: str) -> int:
        """See ObjectReader."""
        self._count("size")
        return self.inner.size(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See ObjectReader."""
        self._count("list")
        return self.inner.list(prefix)

    def space(self) -> Space | None:
        """See ObjectReader."""
        self._count("space")
        return self.inner.space()

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        """See ObjectStore."""
        self._count("put")
        self.inner.put(name, parts, if_absent=if_absent)
        with self._lock:
            self.bytes_written += sum(memoryview(part).nbytes for part in parts)

    def delete(self, name: str) -> None:
        """See ObjectStore."""
        self._count("delete")
        self.inner.delete(name)

    def _count(self, kind: Kind) -> None:
        with self._lock:
            self.operations[kind] += 1

    def _received(self, content: bytes) -> bytes:
        with self._lock:
            self.bytes_read += len(content)
        return content
