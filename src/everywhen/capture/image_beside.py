# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reading a disk that must not be exported (K1), past QEMU: from the raw file or block device of this host that it lies on.

QEMU is asked for nothing, so nothing can happen to the guest. What is read may be older or newer than a write that is under
way: that is so with an export too, and the journal lies over it. Linux keeps buffered reads and QEMU's writes in step, direct
ones too: these throw the pages that they pass out of the page cache before they are answered (Linux, mm/filemap.c,
kiocb_invalidate_post_direct_write). Of other formats a reader outside sees less than QEMU has answered: qcow2's tables may wait
in QEMU's memory for the guest's next flush.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from everywhen.block.device import DeviceError, Extent
from everywhen.block.image import Image
from everywhen.block.image_errors import ImageError
from everywhen.block.open_image import open_image
from everywhen.capture import answers
from everywhen.capture.export import Pace
from everywhen.capture.nodes import DiskNode
from everywhen.capture.qmp import Monitor

BESIDE = (("raw", "file"), ("raw", "host_device"), ("file",), ("host_device",))
"""Drivers of the nodes below which byte n of the disk is byte n of the file, if both have the same size."""
_LONGEST = 4 << 20


class ImageBeside:
    """A BlockDevice: the disk as its guest sees it, while the guest writes. For one thread."""

    def __init__(self, image: Image, pace: Pace) -> None:
        self.size = image.size
        self._image = image
        self._pace = pace

    def read(self, offset: int, length: int) -> bytes:
        """Raises ValueError outside the disk, DeviceError."""
        parts = []
        while length:
            count = min(length, _LONGEST)
            self._pace.spend(count)
            parts.append(self._image.read(offset, count))
            offset, length = offset + count, length - count
        return b"".join(parts)

    def extents(self) -> Iterator[Extent]:
        """As the file system knows it now: what is written later is in the journal."""
        return self._image.extents()

    def close(self) -> None:
        """Close the file."""
        self._image.close()


def path_beside(monitor: Monitor, disk: DiskNode) -> str | None:
    """The file of this host that has the disk's bytes; None where there is none that is surely the one QEMU has open."""
    nodes = answers.block_nodes(monitor)
    chain = [nodes[name] for name in answers.graph(monitor).chain(disk.node) if name in nodes]
    path = chain[-1].filename if chain else ""
    if tuple(node.driver for node in chain) not in BESIDE or any(node.size != disk.size for node in chain):
        return None
    return path if os.path.isabs(path) and _is_open_elsewhere(path) else None


def open_beside(path: str, disk: DiskNode, pace: Pace) -> ImageBeside:
    """Raises DeviceError."""
    try:
        image = open_image(path, format="raw")
    except ImageError as error:
        raise DeviceError(f"{disk.device}: {error}") from error
    if image.size != disk.size:
        image.close()
        raise DeviceError(f"{disk.device} has {disk.size} bytes, and {path} {image.size}")
    return ImageBeside(image, pace)


def _is_open_elsewhere(path: str) -> bool:
    """Whether another process has this very file or device open to write: by that name there may be another one by now."""
    try:
        identity = _identity(path)
    except OSError:
        return False
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with suppress(OSError):  # it has ended, or is not ours to see
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if _identity(str(descriptor)) == identity and _writes(process / "fdinfo" / descriptor.name):
                        return True
    return False


def _identity(path: str) -> tuple[int, int, int]:
    """What makes two names the same file; of a block device it is its number, whatever node it has."""
    status = os.stat(path)
    if stat.S_ISBLK(status.st_mode):
        return (status.st_rdev, 0, 1)
    return (status.st_dev, status.st_ino, 0)


def _writes(description: Path) -> bool:
    """From `flags` of /proc/PID/fdinfo/FD (proc(5)), in octal."""
    words = description.read_text().split()
    return int(words[words.index("flags:") + 1], 8) & os.O_ACCMODE != os.O_RDONLY
