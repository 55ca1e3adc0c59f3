# SPDX-License-Identifier: AGPL-3.0-or-later
"""A restored disk over an existing raw file or block device: reads first and writes only the pages that differ.

For going back by an hour on a large disk: mostly reading, and flash and thin pools are spared. The price is that it is
not atomic; `target_mark` makes an unfinished one visible. The mark is written before the first byte that differs: where
nothing differs, nothing at all is written.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack

import numpy as np

from everywhen.block.detect import detect
from everywhen.block.host_file import HostFile
from everywhen.block.target import Buffer, Target, TargetUnsuitable, os_error
from everywhen.block.target_descriptor import OPEN_FLAGS, Descriptor
from everywhen.block.target_device import check_inside, open_device
from everywhen.block.target_mark import Mark, leave_mark, mark_path, read_mark, remove_mark
from everywhen.formats.layouts.runs import Runs

_PAGE = 4096
PIECE = 1 << 20
"""Bytes that are looked at together."""


class InPlace(Target):
    """An existing raw file of exactly the disk's size, or a block device of at least that.

    `unfinished`: the mark that an earlier, unfinished restore in place left here, or None. `bytes_written`: what
    differed, so far.
    """

    def __init__(
        self,
        path: str,
        size: int,
        source: str,
        *,
        mark_folder: str | None = None,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        """`source`: which moment, as the user should read it in the mark. `mark_folder` is needed for devices.

        `lock` is held while the target is open (QEMU's image locks). Raises TargetError, and what `lock` raises.
        """
        self.path = os.path.realpath(path)
        self.bytes_written = 0
        self._size = size
        self._marked = False
        self._guard = threading.Lock()
        with ExitStack() as stack:
            if lock is not None:
                stack.enter_context(lock)
            self._current = HostFile(self.path)
            stack.callback(self._current.close)
            is_device = stat.S_ISBLK(os.stat(self.path).st_mode)
            check_raw(path, self._current)
            self._target = open_device(path, size) if is_device else _open_file(path, self._current, size)
            stack.callback(self._target.close)
            if is_device and mark_folder is None:
                raise ValueError("a restore in place to a device needs a folder for its mark")
            self._mark_path = mark_path(self.path, mark_folder)
            self.unfinished = read_mark(self._mark_path)
            self._mark = Mark(source, self.path, size)
            self._closing = stack.pop_all()

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        check_inside(offset, len(view), self._size)
        current = self._current.read(offset, len(view))
        for start, end in differing(view, current):
            self._before_writing(end - start)
            self._target.write(offset + start, view[start:end])

    def zero(self, offset: int, length: int) -> None:
        check_inside(offset, length, self._size)
        for start, end in nonzero(self._current, offset, offset + length):
            self._before_writing(end - start)
            self._target.zero(start, end - start)

    def finish(self) -> None:
        self._target.sync()
        if self._marked or self.unfinished is not None:
            remove_mark(self._mark_path)
        self._marked = False
        self._closing.close()

    def abandon(self) -> str:
        self._closing.close()
        if not self._marked:
            return ""
        return f"{self.path} is partly restored: do not use it. Go on with the same restore --in-place ({self._mark_path})."

    def _before_writing(self, length: int) -> None:
        with self._guard:
            if not self._marked:
                leave_mark(self._mark_path, self._mark)
                self._marked = True
            self.bytes_written += length


def nonzero(current: HostFile, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges that are not all zeroes; neighbours of less than a piece apart are found separately."""
    for first, last in current.data_ranges(start, end):
        for piece in range(first, last, PIECE):
            stop = min(piece + PIECE, last)
            content = current.read(piece, stop - piece)
            if content.count(0) != len(content):
                yield piece, stop


def check_raw(path: str, current: HostFile) -> None:
    """Raises TargetUnsuitable; ImageUnsupported for a container that is known by name."""
    found = detect(current)
    if found != "raw":
        safe = "Nothing was written. Only raw files and devices are written in place. Replace it: --overwrite"
        raise TargetUnsuitable(f"{path} is a {found} image. {safe}")


def demand_size(path: str, current: HostFile, size: int) -> None:
    """Raises TargetUnsuitable for a file that is smaller or larger than the disk."""
    if current.size != size:
        safe = f"Nothing was written. Replace it: --overwrite. Change its size: truncate -s {size} {path}"
        raise TargetUnsuitable(f"{path} has {current.size} bytes, the disk {size}. {safe}")


def _open_file(path: str, current: HostFile, size: int) -> Descriptor:
    """Raises TargetUnsuitable, TargetNotWritable."""
    demand_size(path, current, size)
    try:
        return Descriptor(current.path, os.open(current.path, os.O_RDWR | OPEN_FLAGS))
    except OSError as error:
        raise os_error(path, "be opened for writing", error) from error


def differing(new: memoryview, old: bytes) -> list[tuple[int, int]]:
    """Ranges of whole pages (the last may be shorter) where these two of the same length differ."""
    pages, rest = divmod(len(new), _PAGE)
    wanted = np.frombuffer(new, np.uint64, pages * _PAGE // 8).reshape(pages, _PAGE // 8)
    present = np.frombuffer(old, np.uint64, pages * _PAGE // 8).reshape(pages, _PAGE // 8)
    numbers = np.flatnonzero((wanted != present).any(axis=1)).astype(np.int64)
    if rest and new[pages * _PAGE :] != old[pages * _PAGE :]:
        numbers = np.append(numbers, pages)
    runs = Runs.of_blocks(numbers, _PAGE, len(new))
    return list(zip(runs.starts.tolist(), runs.ends.tolist(), strict=True))
