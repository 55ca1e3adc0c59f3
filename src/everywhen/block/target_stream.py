# SPDX-License-Identifier: AGPL-3.0-or-later
"""A restored disk down a pipe: raw, in order, zeroes included."""

from __future__ import annotations

import os
import stat

from everywhen.block.target import Buffer, Target, TargetError, os_error

_ZEROES = memoryview(bytes(1 << 20))


class Stream(Target):
    """An open descriptor, such as standard output; it stays open. One thread, ascending offsets without gaps."""

    def __init__(self, fd: int, size: int, name: str = "standard output") -> None:
        """`size` of the disk in bytes; `name` is used in messages."""
        self.path = name
        self._fd = fd
        self._size = size
        self._position = 0

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        if offset != self._position or offset + len(view) > self._size:
            raise ValueError(f"{offset} to {offset + len(view)} is not what follows {self._position} of {self._size}")
        self._position += len(view)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except BrokenPipeError as error:
            raise TargetError(f"The reader of {self.path} went away; the disk was not written whole.") from error
        except OSError as error:
            raise os_error(self.path, "be written", error) from error

    def zero(self, offset: int, length: int) -> None:
        for done in range(0, length, len(_ZEROES)):
            self.write(offset + done, _ZEROES[: length - done])

    def finish(self) -> None:
        if self._position != self._size:
            raise ValueError(f"{self._position} of {self._size} bytes were written")
        try:
            if stat.S_ISREG(os.fstat(self._fd).st_mode):  # "> file"
                os.fsync(self._fd)
        except OSError as error:
            raise os_error(self.path, "be made durable", error) from error

    def abandon(self) -> str:
        if self._position in (0, self._size):
            return ""
        return f"{self.path} got {self._position} of {self._size} bytes."
