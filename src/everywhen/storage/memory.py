# SPDX-License-Identifier: AGPL-3.0-or-later
"""Objects in memory: for tests, and the model that crash tests compare with (what a perfect store would hold)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from everywhen.storage.base import (
    AlreadyExists,
    Buffer,
    ObjectInfo,
    ObjectNotFound,
    OutOfSpace,
    Space,
    Traits,
    check_name,
    check_prefix,
    check_range,
)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's bytes and when they were put, in nanoseconds by the store's clock."""

    content: bytes
    modified_ns: int


class MemoryStore:
    """A store that forgets everything when the process ends."""

    def __init__(self, *, clock_ns: Callable[[], int] | None = None, capacity: int | None = None) -> None:
        """`clock_ns` gives the time of a put; without one, puts are counted. `capacity` is in bytes of content."""
        ticks = itertools.count(1)
        self._clock_ns = clock_ns or (lambda: next(ticks))
        self._capacity = capacity
        self._objects: dict[str, StoredObject] = {}
        self._used = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Always 'memory:'."""
        return "memory:"

    @property
    def traits(self) -> Traits:
        """All that is promised, nearby."""
        return Traits(put_if_absent=True, consistent_list=True, remote=False)

    def get(self, name: str) -> bytes:
        """See ObjectReader."""
        with self._lock:
            found = self._objects.get(check_name(name))
        if found is None:
            raise ObjectNotFound(name, "there is no such object")
        return found.content

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """See ObjectReader."""
        check_range(offset, length)
        return self.get(name)[offset : offset + length]

    def size(self, name: str) -> int:
        """See ObjectReader."""
        return len(self.get(name))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See ObjectReader."""
        check_prefix(prefix)
        with self._lock:
            found = [(name, stored) for name, stored in self._objects.items() if name.startswith(prefix)]
        return (ObjectInfo(name, len(stored.content), stored.modified_ns) for name, stored in found)

    def space(self) -> Space | None:
        """See ObjectReader. None without a capacity."""
        if self._capacity is None:
            return None
        with self._lock:
            return Space(total=self._capacity, free=max(0, self._capacity - self._used))

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        """See ObjectStore."""
        check_name(name)
        content = b"".join(parts)
        with self._lock:
            before = self._objects.get(name)
            if before is not None and if_absent:
                raise AlreadyExists(name, "there is an object of that name")
            used = self._used + len(content) - (len(before.content) if before else 0)
            if self._capacity is not None and used > self._capacity:
                raise OutOfSpace(name, f"{used} bytes would be more than the capacity of {self._capacity}")
            self._objects[name] = StoredObject(content, self._clock_ns())
            self._used = used

    def delete(self, name: str) -> None:
        """See ObjectStore."""
        check_name(name)
        with self._lock:
            before = self._objects.pop(name, None)
            self._used -= len(before.content) if before else 0

    def snapshot(self) -> dict[str, StoredObject]:
        """All objects as they are now, by name."""
        with self._lock:
            return dict(self._objects)

    def restore(self, snapshot: Mapping[str, StoredObject]) -> None:
        """Hold exactly what `snapshot` holds."""
        with self._lock:
            self._objects = dict(snapshot)
            self._used = sum(len(stored.content) for stored in self._objects.values())
