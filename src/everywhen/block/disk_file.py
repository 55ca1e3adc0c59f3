# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk as an image file that is written nowhere: made while it is read, from the disk and the layout of its format.

Byte for byte what a restore in that format writes for the same identity: both take headers and tables from
`formats/layouts`, and a place in the file for each unit of the disk that is not known to be zero. What is held is the list of
these parts, 16 bytes for each stretch, and the layout, 25 bytes for each segment; contents are the device's.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from everywhen.block.device import BlockDevice
from everywhen.formats.layouts.choose import FORMATS
from everywhen.formats.layouts.layout import Identity, Layout
from everywhen.formats.layouts.runs import Runs

_NAMESPACE = uuid.UUID("6d0f8b2e-51f4-4c1e-9a53-0b7f3c9d2a64")
"""Of the identities that are made here (RFC 9562, section 5.5). Another one would make another disk of each of them."""


@dataclass(frozen=True, slots=True)
class DiskFile:
    """An image file of a device. Several threads may read it if they may read the device."""

    device: BlockDevice
    layout: Layout

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        return self.layout.file_size

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file, fewer only at its end. Raises ValueError below 0, and what the device raises."""
        return self.layout.read(offset, length, self.device.read)

    def data(self) -> Runs:
        """Which bytes of the file are no holes."""
        return Runs.of_ranges(self.layout.starts, self.layout.starts + self.layout.lengths)


def disk_file(device: BlockDevice, allocated: Runs, image_format: str, identity: Identity) -> DiskFile:
    """`device`, which has zeroes where nothing is `allocated`, as a file of one of the FORMATS.

    Raises LayoutError for a disk that does not fit into it.
    """
    return DiskFile(device, FORMATS[image_format](device.size, allocated, identity))


def identity_of(moment: str, time_ns: int, disk: str, image_format: str) -> Identity:
    """The same at each opening of the same moment, and no other's: whoever keeps such a file open, or copies it in pieces on
    two days, must find one file. `moment` is the label of an opened moment, `time_ns` when it was (since 1970 UTC)."""
    unique = uuid.uuid5(_NAMESPACE, f"{moment}/{disk}.{image_format}")
    return Identity(unique, time_ns // 1_000_000_000, f"{disk}.{image_format}")
