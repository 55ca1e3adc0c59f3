# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is behind the exports of a server: devices for several threads, opened by name and let go of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol


class Device(Protocol):
    """Something to be read, by several threads at once, and only within its size."""

    @property
    def size(self) -> int:
        """Bytes. Does not change."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes; up to 32 MiB are asked for at once. Raises what the server was told are failures."""

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """These bytes if they are at hand; None if anything would have to be waited for. Raises failures.

        Asked before `read` for at most 64 KiB, by the thread that takes the client's requests.
        """

    def status(self, offset: int, length: int) -> Iterable[tuple[int, bool]]:
        """From `offset` on: bytes, and whether they are known to read as zeroes, until all of `length` is covered.

        Only as much of it is taken as the client wants to know, so it had better be made step by step. Raises failures.
        """


class Writer(Protocol):
    """The writing side of a device, for several threads. Raises failures; OSError with ENOSPC among them is told as such."""

    def write(self, offset: int, data: bytes) -> None:
        """Who reads from now on, over any connection, reads this."""

    def zero(self, offset: int, length: int) -> None:
        """Write zeroes; quickly, however many (up to 4 GiB)."""

    def flush(self) -> None:
        """All that was written before is found again after a crash."""


@dataclass(frozen=True, slots=True)
class OpenedExport:
    """A device in use. `release` is called once, by the connection's thread, when it needs it no more."""

    device: Device
    release: Callable[[], None]
    writer: Writer | None = None
    """None: read-only."""
    description: str = ""
    """For people who ask about the export: what its name was taken to mean."""


class Exports(Protocol):
    """What a server serves. Called by several threads."""

    def names(self) -> Iterable[str]:
        """Names for who asks for a list; there may be more that can be opened. Raises NoExport when nothing can be said."""

    def open(self, name: str) -> OpenedExport:
        """The export of this name for one connection, from its first question about it. Raises NoExport with the reason."""
