# SPDX-License-Identifier: AGPL-3.0-or-later
"""Block devices as values: a size, reads anywhere, and which parts are known to be zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

BLOCK_SIZE = 65536
"""Bytes in a block, the unit of block maps and changed-block lists (design 4.2)."""


class DeviceError(Exception):
    """A device or an image that cannot be read or written as asked. Says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes `start` to `start + length` of a device; `zero` when they are known to read as zeroes."""

    start: int
    length: int
    zero: bool

    @property
    def end(self) -> int:
        return self.start + self.length


class BlockDevice(Protocol):
    """A disk that can be read. `read` may be called from one thread at a time unless a class says otherwise."""

    @property
    def size(self) -> int:
        """Size in bytes, not necessarily a whole number of blocks or sectors."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly the bytes asked for. Raises ValueError outside the device, DeviceError when they cannot be had."""

    def extents(self) -> Iterator[Extent]:
        """The whole device in order, without holes between extents. Cheap: metadata only, no data is read."""

    def close(self) -> None:
        """Release files and locks. Further calls are errors."""
