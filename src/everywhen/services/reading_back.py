# SPDX-License-Identifier: AGPL-3.0-or-later
"""A restored disk, read back from where it was written and compared with the moment (`restore --verify`).

Each chunk is checked on its way out of the repository anyhow. This says that the medium below the target keeps what it got,
and that the image's own tables lead to it. What Linux still has of the file in memory is let go first; what lies below, as
the memory of a disk, is not known.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_right

from everywhen.block.device import BlockDevice
from everywhen.block.target_in_place import PIECE
from everywhen.services.failures import Damage


class ReadBack:
    """Takes a disk as a target does, in ascending order, and compares."""

    def __init__(self, device: BlockDevice, path: str, size: int) -> None:
        """`size` is the disk's, in bytes: what follows it is padding. Raises Damage."""
        self._device = device
        self._path = path
        if device.size < size:
            raise self._damage(device.size, size)
        self._data = [(part.start, part.end) for part in device.extents() if not part.zero]

    def write(self, offset: int, data: bytes) -> None:
        """These bytes must be there. Raises Damage, DeviceError."""
        if self._device.read(offset, len(data)) != data:
            raise self._damage(offset, offset + len(data))

    def zero(self, offset: int, length: int) -> None:
        """Zeroes must be there. Raises Damage, DeviceError."""
        end = offset + length
        for start, stop in self._data[max(0, bisect_right(self._data, (offset, end)) - 1) :]:
            if start >= end:
                return
            for at in range(max(start, offset), min(stop, end), PIECE):
                piece = self._device.read(at, min(PIECE, stop - at, end - at))
                if piece.count(0) != len(piece):
                    raise self._damage(at, at + len(piece))

    def _damage(self, start: int, end: int) -> Damage:
        return Damage(
            f"{self._path} does not read back as it was written: bytes {start:,} - {end - 1:,} are not what the moment has.",
            on=self._path,
            safe="The repository is unharmed.",
            do=["Look whether somebody uses that file, and whether its disk is failing (dmesg)", "Restore to another disk"],
        )


def let_go(path: str) -> None:
    """Have the system read the file anew from its medium, as far as it can be told. Raises OSError."""
    if sys.platform == "linux":
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
