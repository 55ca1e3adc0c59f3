# SPDX-License-Identifier: AGPL-3.0-or-later
"""A restored disk on a whole block device: everything on it is overwritten, up to the disk's size.

What lies after the disk's end on a larger device is not touched: it is not the disk's, and wiping it may take hours.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from everywhen.block.target import (
    Buffer,
    Target,
    TargetBusy,
    TargetTooSmall,
    TargetUnsuitable,
    os_error,
    size_text,
)
from everywhen.block.target_descriptor import OPEN_FLAGS, Descriptor
from everywhen.block.target_device_use import uses


class WholeDevice(Target):
    """A block device, opened exclusively: while it is open, Linux refuses to mount it or to build on it."""

    def __init__(self, path: str, size: int) -> None:
        """`size` of the disk in bytes. Raises TargetBusy, TargetTooSmall, TargetUnsuitable, TargetNotWritable."""
        self.path = os.path.realpath(path)
        self._size = size
        self._device = open_device(path, size)
        self._open = True
        self._written = False

    def write(self, offset: int, data: Buffer) -> None:
        check_inside(offset, memoryview(data).nbytes, self._size)
        self._written = True
        self._device.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        check_inside(offset, length, self._size)
        self._written = True
        self._device.zero(offset, length)

    def finish(self) -> None:
        self._device.sync()
        self._open = False
        self._device.close()

    def abandon(self) -> str:
        if not self._open:
            return ""
        self._open = False
        self._device.close()
        return f"{self.path} is partly overwritten: its old content is lost. Restore to it again." if self._written else ""


def open_device(path: str, size: int) -> Descriptor:
    """The block device at `path`, free and at least `size` bytes long, open for reading and writing.

    Raises TargetBusy, TargetTooSmall, TargetUnsuitable, TargetNotWritable.
    """
    real = os.path.realpath(path)
    name = path if os.path.abspath(path) == real else f"{path} (really {real})"
    try:
        kind = os.stat(real)
        if not stat.S_ISBLK(kind.st_mode):
            raise TargetUnsuitable(f"{name} is not a block device. Nothing was written.")
        used = uses(kind.st_rdev)
        if used:
            raise _busy(name, used)
        exclusively = os.O_EXCL if sys.platform == "linux" else 0
        fd = os.open(real, os.O_RDWR | exclusively | OPEN_FLAGS)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _busy(name, ["another program or the kernel has it open exclusively"]) from error
        raise os_error(name, "be opened for writing", error) from error
    try:
        room = os.lseek(fd, 0, os.SEEK_END)
        if room < size:
            safe = "Nothing was written. Choose a larger device."
            raise TargetTooSmall(
                f"{name} has {size_text(room)} ({room} bytes), the disk {size_text(size)} ({size} bytes). {safe}"
            )
        return Descriptor(real, fd)
    except BaseException:
        os.close(fd)
        raise


def check_inside(offset: int, length: int, size: int) -> None:
    """ValueError for a range outside the disk (a fault of the program)."""
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"{offset} to {offset + length} is outside a disk of {size} bytes")


def _busy(name: str, reasons: list[str]) -> TargetBusy:
    return TargetBusy(f"{name} is in use: {', '.join(reasons)}. Nothing was written. Release it, or choose another device.")
