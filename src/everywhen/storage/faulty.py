# SPDX-License-Identifier: AGPL-3.0-or-later
"""A store that misbehaves on request: the double that every user of the storage contract is tested with.

store = FaultyStore(MemoryStore())
store.add(Fault("put", number=3, error=OutOfSpace))                    # the third put fails, nothing is stored
store.add(Fault("put", error=Unavailable, done=True))                  # stored, but the answer was lost
store.add(Fault("put", error=OutOfSpace, lasting=True))                # full from now on
store.add(Fault("get_range", prefix="packs/", change=flip_bit(17)))    # the next read of a pack is damaged
store.before = lambda operation: ...                                   # look, wait, change, or raise, before each one
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from everywhen.storage.base import Buffer, ObjectInfo, ObjectStore, Space, StorageError
from everywhen.storage.forwarding import ForwardingStore, Kind


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of the store: `name` is the object's, the listing's prefix, or ''; `number` counts all calls from 1."""

    kind: Kind
    name: str
    number: int


@dataclass(slots=True)
class Fault:
    """What shall go wrong, and when: at the `number`-th call from now of that kind below that prefix, or from it on."""

    kind: Kind
    number: int = 1
    prefix: str = ""
    error: type[StorageError] | None = None
    done: bool = False  # the error comes after the operation took effect: only the answer was lost
    lasting: bool = False
    change: Callable[[bytes], bytes] | None = None  # what is read instead
    _seen: int = field(default=0, init=False)

    def strikes(self, operation: Operation) -> bool:
        """Count the operation; True when it is one that goes wrong."""
        if operation.kind != self.kind or not operation.name.startswith(self.prefix):
            return False
        self._seen += 1
        return self._seen >= self.number if self.lasting else self._seen == self.number


def flip_bit(position: int) -> Callable[[bytes], bytes]:
    """Damage for `Fault.change`: the bit of that position (modulo the length) is inverted; empty stays empty."""

    def change(content: bytes) -> bytes:
        damaged = bytearray(content)
        if damaged:
            damaged[position // 8 % len(damaged)] ^= 1 << position % 8
        return bytes(damaged)

    return change


def truncate(length: int) -> Callable[[bytes], bytes]:
    """Damage for `Fault.change`: only the first `length` bytes arrive."""
    return lambda content: content[:length]


class FaultyStore(ForwardingStore):
    """`inner`, with faults; without any it is as good as `inner`. A listing fails when it is asked for, not midway."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.before: Callable[[Operation], None] = _nothing
        self.after: Callable[[Operation], None] = _nothing
        self._faults: list[Fault] = []
        self._calls = 0
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Let this go wrong too."""
        with self._lock:
            self._faults.append(fault)

    def heal(self) -> None:
        """Nothing goes wrong any longer."""
        with self._lock:
            self._faults.clear()

    def get(self, name: str) -> bytes:
        """See ObjectReader."""
        return self._read("get", name, lambda: self.inner.get(name))

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """See ObjectReader."""
        return self._read("get_range", name, lambda: self.inner.get_range(name, offset, length))

    def size(self, name: str) -> int:
        """See ObjectReader."""
        operation, faults = self._begin("size", name)
        size = self.inner.size(name)
        self._end(operation, faults)
        return size

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See ObjectReader."""
        operation, faults = self._begin("list", prefix)
        found = self.inner.list(prefix)
        self._end(operation, faults)
        return found

    def space(self) -> Space | None:
        """See ObjectReader."""
        operation, faults = self._begin("space", "")
        space = self.inner.space()
        self._end(operation, faults)
        return space

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        """See ObjectStore."""
        operation, faults = self._begin("put", name)
        self.inner.put(name, parts, if_absent=if_absent)
        self._end(operation, faults)

    def delete(self, name: str) -> None:
        """See ObjectStore."""
        operation, faults = self._begin("delete", name)
        self.inner.delete(name)
        self._end(operation, faults)

    def _read(self, kind: Kind, name: str, read: Callable[[], bytes]) -> bytes:
        operation, faults = self._begin(kind, name)
        content = read()
        for fault in faults:
            content = fault.change(content) if fault.change else content
        self._end(operation, faults)
        return content

    def _begin(self, kind: Kind, name: str) -> tuple[Operation, Sequence[Fault]]:
        with self._lock:
            self._calls += 1
            operation = Operation(kind, name, self._calls)
            faults = [fault for fault in self._faults if fault.strikes(operation)]
        self.before(operation)
        _raise(operation, [fault for fault in faults if not fault.done])
        return operation, faults

    def _end(self, operation: Operation, faults: Sequence[Fault]) -> None:
        _raise(operation, [fault for fault in faults if fault.done])
        self.after(operation)


def _nothing(_: Operation) -> None:
    """What happens before and after an operation unless a test says otherwise."""


def _raise(operation: Operation, faults: list[Fault]) -> None:
    for fault in faults:
        if fault.error:
            raise fault.error(operation.name, f"injected fault in {operation.kind}, call {operation.number}")
