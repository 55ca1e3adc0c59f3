# SPDX-License-Identifier: AGPL-3.0-or-later
"""The files that an image consists of: positioned reads of exactly what was asked for, and where their holes are.

Portable: without os.pread (Windows) a seek and a read do the same, since a device is read by one thread at a time;
without SEEK_DATA everything counts as data.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from everywhen.block.image_errors import ImageDamaged, ImageMissing, ImageUnsupported, not_opened

_OPEN_FLAGS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""O_NONBLOCK: a FIFO in the place of an image must not make the open wait for a writer."""

_SECTORS_WRITTEN: Final = 6
_SECTORS_DISCARDED: Final = 13  # since Linux 4.18


@dataclass(frozen=True, slots=True)
class FileState:
    """One file of an image as it was when asked. A write to a file changes at least one of the times, or the size.

    `written`: of a block device, how much was written and discarded since it is there (`_written`). Its times are those of
    its node: they change with write(2) through that node only.
    """

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    written: tuple[int, ...] = ()


class HostFile:
    """A regular file or a block device, open for reading."""

    def __init__(self, path: str) -> None:
        """Raises ImageMissing or ImageNotAllowed when it cannot be opened, ImageUnsupported when it is neither a file nor a
        block device."""
        self.path = path
        try:
            self._fd = os.open(path, _OPEN_FLAGS)
        except (OSError, ValueError) as error:
            raise not_opened(path, error) from error
        try:
            kind = os.fstat(self._fd)
            if not stat.S_ISREG(kind.st_mode) and not stat.S_ISBLK(kind.st_mode):
                raise ImageUnsupported(f"{path} is neither a file nor a block device")
            self.identity = (kind.st_dev, kind.st_ino)
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
            self._sparse = stat.S_ISREG(kind.st_mode) and getattr(kind, "st_blocks", 1 << 62) * 512 < self.size
        except BaseException:
            os.close(self._fd)
            raise

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises ImageDamaged when the file ends before that or cannot be read."""
        if offset + length > self.size:  # before any memory is asked for
            raise ImageDamaged(f"{self.path} has {self.size} bytes, but the image needs bytes {offset} to {offset + length}")
        try:
            piece = self._read_once(offset, length)
            if len(piece) == length:
                return piece
            pieces, got = [piece], len(piece)
            while piece and got < length:
                piece = self._read_once(offset + got, length - got)
                pieces.append(piece)
                got += len(piece)
        except (OSError, OverflowError) as error:
            raise ImageDamaged(f"{self.path} cannot be read at byte {offset}: {error}") from error
        if got < length:
            raise ImageDamaged(f"{self.path} became shorter while it was read: it ends at byte {offset + got}")
        return b"".join(pieces)

    def read_up_to(self, offset: int, length: int) -> bytes:
        """As many of `length` bytes as there are before the end of the file."""
        return self.read(offset, max(0, min(length, self.size - offset)))

    def _read_once(self, offset: int, length: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._fd, length, offset)
        os.lseek(self._fd, offset, os.SEEK_SET)
        return os.read(self._fd, length)

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Parts of `start` to `end` that may hold something else than zeroes, in order."""
        if not self._sparse or not hasattr(os, "SEEK_DATA"):
            yield start, end
            return
        while start < end:
            try:
                data = os.lseek(self._fd, start, os.SEEK_DATA)
                hole = os.lseek(self._fd, data, os.SEEK_HOLE) if data < end else end
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here to the end of the file
                    return
                yield start, end  # a file system without the notion of holes
                return
            if data < end:
                yield data, min(hole, end)
            start = max(hole, start + 1)

    def state(self) -> FileState:
        """What the file is now: by its name, so that a file put in its place is seen too."""
        try:
            now = os.stat(self.path)
        except OSError as error:
            raise ImageMissing(f"{self.path} is gone: {error.strerror}") from error
        times = (now.st_mtime_ns, now.st_ctime_ns)
        return FileState(self.path, now.st_dev, now.st_ino, now.st_size, *times, self._written())

    def _written(self) -> tuple[int, ...]:
        """Sectors written to a block device, and sectors discarded; empty for files, and where nobody counts (not Linux).

        From Linux, Documentation/block/stat.rst. The numbers of requests beside them are no use: a flush that writes
        nothing counts as one. What was written into the page cache, even before the backup, counts only once it is on
        its way to the device: so that is done first, each time, and all of it falls on the right side.

        Not seen: what reaches the medium by another way than this device (the file behind a loop device, the disk below
        a logical volume, another host on the same storage), and drivers that do not count (brd; `queue/iostats` at 0).
        """
        status = os.fstat(self._fd)
        if not stat.S_ISBLK(status.st_mode) or not hasattr(os, "major"):
            return ()
        with suppress(OSError):  # a device that fails to write: its counts are still worth comparing
            os.fsync(self._fd)
        try:
            with open(f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}/stat", encoding="ascii") as file:
                counts = [int(word) for word in file.read().split()]
        except (OSError, ValueError):
            return ()
        return tuple(counts[at] for at in (_SECTORS_WRITTEN, _SECTORS_DISCARDED) if at < len(counts))

    def close(self) -> None:
        """Safe to call twice: while an image is being opened, two parties feel responsible."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
