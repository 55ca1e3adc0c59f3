# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where restored bytes go: what all targets have in common.

A target is opened, filled with `write` and `zero` so that every byte of the disk is covered once, then `finish`ed. Only
after `finish` has returned is anything promised: then all bytes are durable. Leaving the `with` block without it (an
error, Ctrl-C) abandons the target; what then is left behind is added to the exception as a note.

    with NewFile(path, layout) as target:
        target.write(0, data)
        target.finish()

One class per idea: `target_file.NewFile` (a new file, any format), `target_device.WholeDevice`,
`target_in_place.InPlace` (only what differs), `target_stream.Stream` (a pipe).

TargetError (a DeviceError)
├── TargetExists       there is something of that name, and nobody said that it may be replaced
├── TargetBusy         mounted, or used by another program
├── TargetTooSmall     the disk is larger than the device
├── TargetUnsuitable   not the kind of thing that can be written so: a folder, an image of another format, ...
├── TargetNotWritable  the operating system refuses
└── TargetFull         no room left, or a quota or size limit of the file system reached
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from types import TracebackType
from typing import Self, TypeAlias

from everywhen.block.device import DeviceError

Buffer: TypeAlias = bytes | bytearray | memoryview

_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


class TargetError(DeviceError):
    """Restored bytes cannot go there. The message says what was written (mostly: nothing) and what to do."""


class TargetExists(TargetError):
    """Something of that name exists. `path`; `size` in bytes; `modified_ns` since 1970 UTC."""

    def __init__(self, path: str, size: int, modified_ns: int, safe: str) -> None:
        when = datetime.fromtimestamp(modified_ns // 1_000_000_000, UTC)
        super().__init__(f"{path} exists ({size_text(size)}, {when:%Y-%m-%d %H:%M} UTC). {safe}")
        self.path = path
        self.size = size
        self.modified_ns = modified_ns


class TargetBusy(TargetError):
    """Mounted, or used by another program or restore."""


class TargetTooSmall(TargetError):
    """The disk does not fit."""


class TargetUnsuitable(TargetError):
    """Not the kind of thing that this target writes to."""


class TargetNotWritable(TargetError):
    """The operating system refused to open or to write it."""


class TargetFull(TargetError):
    """No room left, or a limit of the file system was reached."""


class Target(ABC):
    """A place for a restored disk. Unless a class says otherwise, `write` and `zero` may be called from several threads."""

    path: str
    """The real path, all symbolic links followed: what is really written."""

    @abstractmethod
    def write(self, offset: int, data: Buffer) -> None:
        """These bytes of the disk. The buffer is not kept. Raises TargetError, ValueError outside the disk."""

    @abstractmethod
    def zero(self, offset: int, length: int) -> None:
        """Zeroes in this range of the disk."""

    @abstractmethod
    def finish(self) -> None:
        """Make everything durable and visible, then close. Call once, after the last `write` has returned."""

    @abstractmethod
    def abandon(self) -> str:
        """Close without finishing and remove what can be removed. Returns what is left behind in words, '' for nothing.

        After `finish`, and the second time, it does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        left = self.abandon()
        if error is not None and left:
            error.add_note(left)


def os_error(path: str, doing: str, error: OSError) -> TargetError:
    """What the operating system's refusal means for the target at `path`; `doing` as in 'be written'."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return TargetFull(f"{path} could not {doing}: {reason}. Make room, or restore to another place.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return TargetNotWritable(f"{path} cannot {doing}: {reason}.")
    return TargetError(f"{path} could not {doing}: {reason}.")


def size_text(size: int) -> str:
    """A size for people: '40 GB', '1.5 MB', '812 bytes' (powers of 1000, as disks are sold)."""
    for exponent, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**exponent:
            value = size / 10**exponent
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}".replace(".0", "")
    return f"{size} bytes"
