# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a restore in place would write: the same comparison, and nothing is written (`restore --in-place --dry-run`)."""

from __future__ import annotations

import os
import stat
import threading
from contextlib import AbstractContextManager, ExitStack

from everywhen.block.host_file import HostFile
from everywhen.block.target import Buffer, Target, TargetUnsuitable
from everywhen.block.target_device import check_inside
from everywhen.block.target_in_place import check_raw, demand_size, differing, nonzero


class Difference(Target):
    """An existing raw file of exactly the disk's size, or a block device of at least that. `bytes_written`: would be."""

    def __init__(self, path: str, size: int, *, lock: AbstractContextManager[object]) -> None:
        """`lock` is held while the target is open. Raises TargetError, and what `lock` raises."""
        self.path = os.path.realpath(path)
        self.bytes_written = 0
        self._size = size
        self._guard = threading.Lock()
        with ExitStack() as stack:
            stack.enter_context(lock)
            self._current = HostFile(self.path)
            stack.callback(self._current.close)
            check_raw(path, self._current)
            if not stat.S_ISBLK(os.stat(self.path).st_mode):
                demand_size(path, self._current, size)
            elif self._current.size < size:
                raise TargetUnsuitable(f"{path} has {self._current.size} bytes, the disk {size}. Nothing was written.")
            self._closing = stack.pop_all()

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        check_inside(offset, len(view), self._size)
        self._count(differing(view, self._current.read(offset, len(view))))

    def zero(self, offset: int, length: int) -> None:
        check_inside(offset, length, self._size)
        self._count(list(nonzero(self._current, offset, offset + length)))

    def finish(self) -> None:
        self._closing.close()

    def abandon(self) -> str:
        self._closing.close()
        return ""

    def _count(self, ranges: list[tuple[int, int]]) -> None:
        with self._guard:
            self.bytes_written += sum(end - start for start, end in ranges)
