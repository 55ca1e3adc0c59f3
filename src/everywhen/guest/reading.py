# SPDX-License-Identifier: AGPL-3.0-or-later
"""Parts of a disk as disks of their own, and a bounded cache: parsers read the same small pieces again and again."""

from __future__ import annotations

from collections import OrderedDict

from everywhen.block.device import BLOCK_SIZE
from everywhen.guest.errors import GuestDamaged
from everywhen.guest.footprint import note
from everywhen.guest.tree import Readable

_CACHED_BLOCKS = 256
"""16 MiB for each disk: what lies in between (inode tables, folders) is a few MiB where millions of files are listed."""
_LARGE = 4 * BLOCK_SIZE


class Window:
    """Bytes `start` to `start + size` of a larger Readable."""

    def __init__(self, whole: Readable, start: int, size: int) -> None:
        self.whole = whole
        self.start = start
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"{offset} + {length} is outside of {self._size} bytes")
        return self.whole.read(self.start + offset, length) if length else b""


class Cached:
    """The same bytes, the blocks last read kept. Large reads go past it. For one thread at a time.

    `name`: of the disk, for who wants to know what was read of it (`footprint.py`).
    """

    def __init__(self, disk: Readable, name: str = "") -> None:
        self._disk = disk
        self._name = name
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    @property
    def size(self) -> int:
        return self._disk.size

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{offset} + {length} is outside of {self.size} bytes")
        note(self._name, offset, length)
        if length > _LARGE:
            return self._disk.read(offset, length)
        first, begin = divmod(offset, BLOCK_SIZE)
        if begin + length <= BLOCK_SIZE:
            return self._block(first)[begin : begin + length]
        last = (offset + length - 1) // BLOCK_SIZE
        return b"".join(self._block(index) for index in range(first, last + 1))[begin : begin + length]

    def _block(self, index: int) -> bytes:
        found = self._blocks.get(index)
        if found is None:
            start = index * BLOCK_SIZE
            found = self._blocks[index] = self._disk.read(start, min(BLOCK_SIZE, self.size - start))
            if len(self._blocks) > _CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(index)
        return found


def piece(volume: Readable, offset: int, length: int, what: str) -> bytes:
    """Bytes of a volume that its own tables led to. Raises GuestDamaged if they are not all inside of it."""
    if offset < 0 or length < 0 or offset + length > volume.size:
        raise GuestDamaged(f"{what} lies outside of the volume ({offset} + {length} of {volume.size} bytes)")
    return volume.read(offset, length)
