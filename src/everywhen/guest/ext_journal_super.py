# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the superblock of ext2, ext3 and ext4 says of the journal: where it is, and whether it must be replayed.

Source: the kernel's documentation, ext4 Data Structures and Algorithms, "Super Block". Numbers are little-endian.

| offset | type    | name                                                                                   |
|--------|---------|----------------------------------------------------------------------------------------|
| 4, 336 | u32 × 2 | blocks, low and (64 bits) high                                                         |
| 24     | u32     | block size: 1024 shifted by this                                                       |
| 40     | u32     | inodes in a group                                                                      |
| 56     | u16     | magic, 0xEF53                                                                          |
| 76     | u32     | revision; 0: inodes have 128 bytes                                                     |
| 88     | u16     | bytes of an inode                                                                      |
| 92, 96 | u32     | features: compatible (4: has a journal), incompatible (`Incompat`)                     |
| 100    | u32     | features: read-only compatible (0x400: superblock, inodes and more have checksums)     |
| 208    | 16s     | UUID of the device that has the journal                                                |
| 224    | u32     | inode of the journal                                                                   |
| 228    | u32     | number of the device that has the journal                                              |
| 254    | u16     | bytes of a group descriptor, if numbers of blocks have 64 bits                         |
| 1020   | u32     | CRC-32C of all before                                                                  |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from everywhen.formats.images.crc32c import crc32c
from everywhen.guest.errors import GuestDamaged, GuestUnsupported
from everywhen.guest.tree import Readable

SUPER_AT: Final = 1024
SUPER_SIZE: Final = 1024
_MAGIC: Final = 0xEF53
_LARGEST_SHIFT: Final = 6
_HAS_JOURNAL: Final = 4
_CHECKSUMS: Final = 0x400


class Incompat(IntFlag):
    """Features that lead to the journal, or away from it."""

    RECOVER = 4
    """The journal must be replayed."""
    JOURNAL_DEVICE = 8
    META_GROUPS = 16
    WIDE = 128
    """Numbers of blocks have 64 bits."""


@dataclass(frozen=True, slots=True)
class ExtSuper:
    """What leads to the journal, from the file system's superblock."""

    block_size: int
    blocks: int
    """Of the file system, no more than are on the volume."""
    features: Incompat
    journal: int
    """Number of its inode, 0 if it is on another device."""
    inodes_in_group: int
    inode_size: int
    descriptor_size: int

    @property
    def must_recover(self) -> bool:
        return bool(self.features & Incompat.RECOVER)


def read_super(volume: Readable) -> ExtSuper:
    """The superblock. Raises GuestDamaged if none is there, GuestUnsupported if the journal is on another device."""
    raw = volume.read(SUPER_AT, SUPER_SIZE) if volume.size >= SUPER_AT + SUPER_SIZE else bytes(SUPER_SIZE)
    shift, magic, (compat, incompat) = u32(raw, 24), u16(raw, 56), struct.unpack_from("<II", raw, 92)
    if magic != _MAGIC or shift > _LARGEST_SHIFT:
        raise GuestDamaged("there is no superblock of ext2, ext3 or ext4")
    features, inode, device = Incompat(incompat & sum(Incompat)), u32(raw, 224), u32(raw, 228)
    if features & Incompat.JOURNAL_DEVICE:
        raise GuestUnsupported("this is no file system, but the journal of one that is on another device")
    if features & Incompat.RECOVER:
        if not compat & _HAS_JOURNAL:
            raise GuestDamaged("the file system says that its journal must be replayed, and that it has none")
        if not inode and (device or any(raw[208:224])):
            raise GuestUnsupported("the journal of the file system is on another device")
        if not inode or device:
            raise GuestDamaged("the file system does not say where its journal is")
    wide = bool(features & Incompat.WIDE)
    size, blocks = 1024 << shift, u32(raw, 4) | (u32(raw, 336) << 32 if wide else 0)
    return ExtSuper(
        block_size=size,
        blocks=min(blocks, volume.size // size),
        features=features,
        journal=inode,
        inodes_in_group=u32(raw, 40),
        inode_size=u16(raw, 88) if u32(raw, 76) else 128,
        descriptor_size=u16(raw, 254) if wide else 32,
    )


def recovered(raw: bytes) -> bytes:
    """A superblock that says that its journal has been replayed."""
    new = bytearray(raw)
    struct.pack_into("<I", new, 96, u32(raw, 96) & ~int(Incompat.RECOVER))
    if u32(raw, 100) & _CHECKSUMS:
        struct.pack_into("<I", new, 1020, crc32c(bytes(new[:1020])) ^ 0xFFFFFFFF)
    return bytes(new)


def u16(raw: bytes, at: int) -> int:
    """A number of two bytes."""
    return int.from_bytes(raw[at : at + 2], "little")


def u32(raw: bytes, at: int) -> int:
    """A number of four bytes."""
    return int.from_bytes(raw[at : at + 4], "little")
