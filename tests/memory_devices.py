# SPDX-License-Identifier: AGPL-3.0-or-later
"""Devices in memory behind an NBD server, which note how they are used, and fail or wait where they are told to."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from everywhen.nbd.connection import NbdConnection
from everywhen.nbd.devices import OpenedExport
from everywhen.nbd.exports import NoExport
from everywhen.nbd.room import Room
from everywhen.nbd.served_client import Terms
from everywhen.nbd.serving import NbdServer

BLOCK = 65536
MIB = 1 << 20


class Damaged(Exception):
    """A read that fails."""


class MemoryDevice:
    """Content in memory. `status` looks at it block by block."""

    def __init__(self, content: bytes, *, at_hand: bool = True) -> None:
        self.content = bytearray(content)
        self.at_hand = at_hand
        self.damaged: range = range(0)
        """Blocks that cannot be read."""
        self.held = threading.Event()
        """While it is not set, reads that are not at hand wait."""
        self.held.set()
        self.waiting = 0
        self.most_waiting = 0
        self.flushed = 0
        self.asked_for_status = 0
        self._guard = threading.Lock()

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        with self._guard:
            self.waiting += 1
            self.most_waiting = max(self.waiting, self.most_waiting)
        assert self.held.wait(30)
        with self._guard:
            self.waiting -= 1
            if offset // BLOCK in self.damaged:
                raise Damaged(f"block {offset // BLOCK} is damaged")
            return bytes(self.content[offset : offset + length])

    def read_cached(self, offset: int, length: int) -> bytes | None:
        if not self.at_hand:
            return None
        if offset // BLOCK in self.damaged:
            raise Damaged(f"block {offset // BLOCK} is damaged")
        return bytes(memoryview(self.content)[offset : offset + length])

    def status(self, offset: int, length: int) -> Iterable[tuple[int, bool]]:
        end = offset + length
        while offset < end:
            self.asked_for_status += 1
            step = min(BLOCK - offset % BLOCK, end - offset)
            yield step, not any(self.content[offset : offset + step])
            offset += step

    def write(self, offset: int, data: bytes) -> None:
        with self._guard:
            if offset // BLOCK in self.damaged:
                raise Damaged(f"block {offset // BLOCK} takes nothing")
            self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def flush(self) -> None:
        with self._guard:
            self.flushed += 1


@dataclass
class MemoryExports:
    """Devices by name; those in `writable` can be written."""

    devices: dict[str, MemoryDevice]
    writable: frozenset[str] = frozenset()
    users: list[str] = field(default_factory=list)
    """Names of what is open, once for each user."""
    opened: list[str] = field(default_factory=list)

    def names(self) -> Iterable[str]:
        return list(self.devices)

    def open(self, name: str) -> OpenedExport:
        device = self.devices.get(name)
        if device is None:
            raise NoExport(f'there is no moment "{name}"; the newest is disk@12:00')
        self.users.append(name)
        self.opened.append(name)
        writer = device if name in self.writable else None
        return OpenedExport(device, lambda: self.users.remove(name), writer, f"what {name} is")


@dataclass
class Served:
    """A server that runs, on a unix socket."""

    path: Path
    server: NbdServer
    reported: list[tuple[str, Exception]]

    def connected(self, name: str = "disk", *contexts: str) -> NbdConnection:
        return NbdConnection(str(self.path), name, timeout=20, contexts=contexts)

    def dialled(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(str(self.path))
        return client


@contextmanager
def served(
    exports: MemoryExports,
    folder: Path,
    tls: ssl.SSLContext | None = None,
    room: Room | None = None,
    failures: tuple[type[Exception], ...] = (Damaged,),
) -> Iterator[Served]:
    """Stopped at the end, when nothing may be open any more."""
    path = folder / "nbd"
    reported: list[tuple[str, Exception]] = []
    server = NbdServer(Terms(exports, failures, lambda name, error: reported.append((name, error)), tls, room or Room()))
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(32)
    server.listen(listening)
    try:
        yield Served(path, server, reported)
    finally:
        server.stop()
    assert exports.users == []
