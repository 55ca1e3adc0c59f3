# SPDX-License-Identifier: AGPL-3.0-or-later
"""A program: shows an image as a file (FUSE), on which a loop device can be, and writes down each write and flush.

`recorded_disk.py IMAGE RECORD FOLDER`: the file is FOLDER/disk. The record: u64 offset, u32 length, the bytes; a flush has the
offset 2^64 - 1 and no bytes.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLUSH = (1 << 64) - 1
_HEAD = struct.Struct("<QI")


class RecordedDisk:
    """The operations of a file system with one file."""

    use_ns = True

    def __init__(self, image: str, record: str) -> None:
        self._disk = os.open(image, os.O_RDWR)
        self._size = os.fstat(self._disk).st_size
        self._record = open(record, "wb", buffering=0)  # noqa: SIM115 - as long as the process

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, Any]:
        """Of the folder, or the file."""
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": self._size}

    def readdir(self, _path: str, _handle: int) -> list[str]:
        """The one file."""
        return [".", "..", "disk"]

    def open(self, _path: str, _flags: int) -> int:
        """There is nothing to open."""
        return 0

    def read(self, _path: str, size: int, offset: int, _handle: int) -> bytes:
        """Bytes of the image."""
        return os.pread(self._disk, size, offset)

    def write(self, _path: str, data: bytes, offset: int, _handle: int) -> int:
        """Writes, and writes down."""
        os.pwrite(self._disk, data, offset)
        self._record.write(_HEAD.pack(offset, len(data)) + data)
        return len(data)

    def fsync(self, _path: str, _data: int, _handle: int) -> int:
        """Writes down that all before was to be on the disk."""
        self._record.write(_HEAD.pack(FLUSH, 0))
        return 0


def recorded(record: Path) -> Iterator[tuple[int, bytes]]:
    """The writes and flushes, in their order, as far as the last one is whole."""
    with record.open("rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            offset, length = _HEAD.unpack(head)
            data = file.read(length)
            if len(data) == length:
                yield offset, data


if __name__ == "__main__":
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
    import mfusepy

    # One thread: the record has the order in which the writes were done.
    mfusepy.FUSE(RecordedDisk(sys.argv[1], sys.argv[2]), sys.argv[3], foreground=True, nothreads=True)
