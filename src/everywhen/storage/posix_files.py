# SPDX-License-Identifier: AGPL-3.0-or-later
"""Open files kept for reading ranges, because a restore reads thousands of ranges of each pack.

Opening costs six system calls with its checks; a kept file one (fstat) beside the read itself. A file that lost its
last name (deleted or replaced, by whatever process) is noticed by its link count and closed, or else a long restore
would hold the space of packs that gc has deleted. On Windows an open file cannot be deleted by others, so none is kept there.

Threads: any. A file is closed only when nobody reads it, since a number given to another file meanwhile would be read.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from everywhen.storage.posix_calls import WINDOWS, PosixCalls

KEPT_FILES = 0 if WINDOWS else 100  # of usually 1024 that a process may open


@dataclass(slots=True, eq=False)
class _OpenFile:
    descriptor: int
    readers: int
    kept: bool


class OpenFiles:
    """The most recently read files, by object name."""

    def __init__(self, calls: PosixCalls, *, capacity: int = KEPT_FILES) -> None:
        """At most `capacity` files stay open while nobody reads them."""
        self._calls = calls
        self._capacity = capacity
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str, offset: int, length: int, open_object: Callable[[str], int]) -> bytes:
        """Up to `length` bytes of the object from `offset`. Raises OSError and what `open_object(name)` raises."""
        while True:
            file, known = self._borrow(name, open_object)
            try:
                status = os.fstat(file.descriptor)
                if status.st_nlink or not known:
                    # No more than there is: a length from damaged metadata must not decide how much memory is taken.
                    return self._calls.read(file.descriptor, offset, min(length, max(0, status.st_size - offset)))
            except OSError:
                self.forget(name)
                if not known:
                    raise
            finally:
                self._give_back(file)
            self.forget(name)

    def forget(self, name: str) -> None:
        """Keep the file of that name no longer."""
        with self._lock:
            file = self._files.pop(name, None)
            if file is not None:
                self._drop(file)

    def close(self) -> None:
        """Keep no file any longer; those being read are closed after it."""
        with self._lock:
            while self._files:
                self._drop(self._files.popitem()[1])

    def _borrow(self, name: str, open_object: Callable[[str], int]) -> tuple[_OpenFile, bool]:
        """A file that stays open until it is given back, and whether it was opened earlier."""
        with self._lock:
            file = self._files.get(name)
            if file is not None:
                self._files.move_to_end(name)
                file.readers += 1
                return file, True
        descriptor = open_object(name)  # outside the lock: it may wait for a slow medium
        opened = _OpenFile(descriptor, readers=1, kept=True)
        with self._lock:
            before = self._files.pop(name, None)
            if before is not None:
                self._drop(before)
            self._files[name] = opened
            while len(self._files) > self._capacity:
                self._drop(self._files.popitem(last=False)[1])
        return opened, False

    def _give_back(self, file: _OpenFile) -> None:
        with self._lock:
            file.readers -= 1
            if not file.kept and not file.readers:
                self._calls.close(file.descriptor)

    def _drop(self, file: _OpenFile) -> None:
        file.kept = False
        if not file.readers:
            self._calls.close(file.descriptor)
