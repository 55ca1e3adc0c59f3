# SPDX-License-Identifier: AGPL-3.0-or-later
"""Superblock, inodes, extents and folders of ext2, ext3 and ext4 (kernel: Documentation/filesystems/ext4, fs/ext4/ext4.h).

All numbers are little-endian. Superblock, 1024 bytes at 1024; what is needed of it:

| offset | type | name            | meaning                                                       |
|--------|------|-----------------|---------------------------------------------------------------|
| 0      | u32  | inodes          |                                                               |
| 4, 336 | u32  | blocks          | low and (64bit) high half                                     |
| 20     | u32  | first_block     | 1 where blocks have 1024 bytes                                |
| 24     | u32  | log_block_size  | blocks have 1024 << this bytes                                |
| 32, 40 | u32  | per group       | blocks, inodes                                                |
| 56     | u16  | magic           | 0xEF53                                                        |
| 76     | u32  | revision        | 0: inodes of 128 bytes, no features                           |
| 88     | u16  | inode_size      |                                                               |
| 92     | 3u32 | features        | compatible, incompatible, compatible for reading              |
| 104    | 16s  | uuid            |                                                               |
| 120    | 16s  | label           |                                                               |
| 254    | u16  | descriptor_size | of a group; 32 unless 64bit                                   |
| 260    | u32  | first_meta_bg   | from this block of descriptors on they lie in their groups    |
| 588    | 2u32 | backup_groups   | the groups with a superblock, with sparse_super2              |

An inode, 128 bytes and more: u16 mode, u16 uid, u32 size, 4 u32 times (access, change, modification, deletion), u16 gid,
u16 links, u32 blocks of 512 bytes, u32 flags, u32, 60s map, u32, u32 attribute block, u32 high half of size, u32, u16 high
part of blocks, u16 of the attribute block, u16 of uid, u16 of gid; from 128 on u16 extra_size, u16, then u32 with nanoseconds
(30 bits) and 2 more bits of seconds of change, modification, access, then u32 creation time and its nanoseconds.

The map is 15 block numbers (12 blocks, then trees of one, two and three levels), or the root of a tree of extents: nodes
with a header of 12 bytes (u16 0xF30A, u16 entries, u16, u16 depth, u32) and entries of 12: (u32 block, u16 length, u16 and u32
place) at depth 0, else (u32 block, u32 and u16 place, u16). A length above 32768: so much less, and never written (zeroes).
An entry of a folder: u32 inode, u16 length, u8 name's length, u8 kind (or the name's length is a u16), name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import BadMagic, Corrupt, Truncated, UnsupportedVersion

SUPERBLOCK_PLACE: Final = 1024
SUPERBLOCK_BYTES: Final = 1024
ROOT: Final = 2
DEEPEST_TREE: Final = 5  # of extents

HAS_JOURNAL: Final = 0x4  # compatible
SPARSE_SUPER2: Final = 0x200
FILETYPE: Final = 0x2  # incompatible
RECOVER: Final = 0x4
JOURNAL_DEVICE: Final = 0x8
META_BG: Final = 0x10
IS_64BIT: Final = 0x80
LARGE_DIR: Final = 0x4000
_KNOWN: Final = 0x3F7DE  # without compression (0x1), which never was in a kernel
_OF_EXT3: Final = FILETYPE | RECOVER | META_BG | JOURNAL_DEVICE
SPARSE_SUPER: Final = 0x1  # compatible for reading
HUGE_FILE: Final = 0x8
_OF_EXT3_READING: Final = 0x7

ENCRYPTED: Final = 0x800  # flags of an inode
HUGE: Final = 0x40000
EXTENTS: Final = 0x80000
INLINE: Final = 0x10000000

_SMALL: Final = struct.Struct("<HHIIIIIHHIII60sIIIIHHHH")
_LARGE: Final = struct.Struct("<HHIIIII")
_EXTENT_HEADER: Final = struct.Struct("<HHHHI")
_EXTENT_MAGIC: Final = 0xF30A
_UNWRITTEN: Final = 32768
_DIRENT: Final = struct.Struct("<IHBB")


@dataclass(frozen=True, slots=True)
class ExtSuperblock:
    """Sizes in bytes, `first_block` and `first_meta_bg` in blocks."""

    inodes: int
    blocks: int
    first_block: int
    block_size: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    compatible: int
    incompatible: int
    compatible_for_reading: int
    uuid: bytes
    label: bytes
    descriptor_size: int
    first_meta_bg: int
    backup_groups: tuple[int, int]

    @property
    def kind(self) -> str:
        """`ext2`, `ext3` or `ext4`, as blkid tells them apart."""
        if self.incompatible & ~_OF_EXT3 or self.compatible_for_reading & ~_OF_EXT3_READING:
            return "ext4"
        return "ext3" if self.compatible & HAS_JOURNAL else "ext2"

    def has_superblock(self, group: int) -> bool:
        """Whether a copy of the superblock begins this group."""
        if group == 0:
            return True
        if self.compatible & SPARSE_SUPER2:
            return group in self.backup_groups
        if group == 1 or not self.compatible_for_reading & SPARSE_SUPER:
            return True
        for base in (3, 5, 7):
            power = base
            while power < group:
                power *= base
            if power == group:
                return True
        return False

    def descriptor_place(self, group: int) -> int:
        """Where the descriptor of a group is on the volume, in bytes."""
        in_block = self.block_size // self.descriptor_size
        number, index = divmod(group, in_block)
        if not self.incompatible & META_BG or number < self.first_meta_bg:
            block = SUPERBLOCK_PLACE // self.block_size + number + 1
        else:
            first = number * in_block
            block = self.first_block + first * self.blocks_per_group + self.has_superblock(first)
            if self.block_size == SUPERBLOCK_PLACE and first == 0 and self.first_block == 0:
                block += 1
        return block * self.block_size + index * self.descriptor_size


def decode_superblock(data: bytes) -> ExtSuperblock:
    """Raises BadMagic, UnsupportedVersion, Corrupt."""
    if len(data) < SUPERBLOCK_BYTES:
        raise Truncated("a superblock of ext")
    (magic,) = struct.unpack_from("<H", data, 56)
    if magic != 0xEF53:
        raise BadMagic("not a superblock of ext")
    inodes, blocks = struct.unpack_from("<II", data, 0)
    first_block, log_block_size = struct.unpack_from("<II", data, 20)
    (per_group,) = struct.unpack_from("<I", data, 32)
    (inodes_per_group,) = struct.unpack_from("<I", data, 40)
    (revision,) = struct.unpack_from("<I", data, 76)
    (inode_size,) = struct.unpack_from("<H", data, 88)
    compatible, incompatible, reading = struct.unpack_from("<III", data, 92) if revision else (0, 0, 0)
    if incompatible & JOURNAL_DEVICE:
        raise UnsupportedVersion("the journal of another file system of ext, not a file system")
    if incompatible & ~_KNOWN:
        raise UnsupportedVersion(f"a file system of ext with features that are not read here ({incompatible & ~_KNOWN:#x})")
    (descriptor_size, first_meta_bg) = struct.unpack_from("<H4xI", data, 254)
    if incompatible & IS_64BIT:
        blocks |= struct.unpack_from("<I", data, 336)[0] << 32
    else:
        descriptor_size = 32
    if not revision:
        inode_size = 128
    if log_block_size > 6 or not per_group or not inodes_per_group or not inodes or not blocks:
        raise Corrupt("the superblock of ext has impossible sizes")
    block_size = SUPERBLOCK_PLACE << log_block_size
    if not 128 <= inode_size <= block_size or inode_size & (inode_size - 1):
        raise Corrupt(f"the superblock of ext has inodes of {inode_size} bytes")
    if not 32 <= descriptor_size <= block_size:
        raise Corrupt(f"the superblock of ext has descriptors of {descriptor_size} bytes")
    return ExtSuperblock(
        inodes=inodes,
        blocks=blocks,
        first_block=first_block,
        block_size=block_size,
        blocks_per_group=per_group,
        inodes_per_group=inodes_per_group,
        inode_size=inode_size,
        compatible=compatible,
        incompatible=incompatible,
        compatible_for_reading=reading,
        uuid=data[104:120],
        label=data[120:136].partition(b"\0")[0],
        descriptor_size=descriptor_size,
        first_meta_bg=first_meta_bg,
        backup_groups=struct.unpack_from("<II", data, 588),
    )


def inode_table_block(descriptor: bytes) -> int:
    """The first block of a group's inodes, by the group's descriptor."""
    (low,) = struct.unpack_from("<I", descriptor, 8)
    high = struct.unpack_from("<I", descriptor, 40)[0] if len(descriptor) >= 64 else 0
    return int(high << 32 | low)


@dataclass(frozen=True, slots=True)
class ExtInode:
    """Times in ns; `blocks` of 512 bytes (with the flag HUGE of the file system's size). `tail` is what follows the fields."""

    mode: int
    uid: int
    gid: int
    size: int
    links: int
    blocks: int
    flags: int
    modified: int
    changed: int
    accessed: int
    created: int | None
    block_map: bytes
    attributes_block: int
    tail: bytes


def decode_inode(data: bytes) -> ExtInode:
    """Raises Truncated."""
    if len(data) < 128:
        raise Truncated("an inode of ext")
    fields = _SMALL.unpack_from(data)
    mode, uid, size, atime, ctime, mtime, _deleted, gid, links, blocks, flags, _osd, block_map = fields[:13]
    _generation, acl, size_high, _fragment, blocks_high, acl_high, uid_high, gid_high = fields[13:]
    extra, more = b"", 128
    if len(data) > 128:
        (extra_size,) = struct.unpack_from("<H", data, 128)
        more = min(128 + extra_size, len(data))
        extra = data[132:more]
    ctime_extra, mtime_extra, atime_extra = (
        struct.unpack_from("<I", extra, at)[0] if len(extra) >= at + 4 else 0 for at in (0, 4, 8)
    )
    created = None
    if len(extra) >= 20:
        created = _time(*struct.unpack_from("<II", extra, 12))
    return ExtInode(
        mode=mode,
        uid=uid | uid_high << 16,
        gid=gid | gid_high << 16,
        size=size | size_high << 32,
        links=links,
        blocks=blocks | blocks_high << 32,
        flags=flags,
        modified=_time(mtime, mtime_extra),
        changed=_time(ctime, ctime_extra),
        accessed=_time(atime, atime_extra),
        created=created,
        block_map=block_map,
        attributes_block=acl | acl_high << 32,
        tail=data[more:],
    )


def _time(seconds: int, extra: int) -> int:
    """ns since 1970. The seconds are signed, 2 bits of `extra` continue them, the others are nanoseconds."""
    signed = seconds - (1 << 32) if seconds & 0x80000000 else seconds
    return (signed + ((extra & 3) << 32)) * 1_000_000_000 + (extra >> 2)


@dataclass(frozen=True, slots=True)
class ExtExtent:
    """`length` blocks of a content from `first` on are at `place` on the volume, or (unwritten) are zeroes."""

    first: int
    length: int
    place: int
    unwritten: bool


@dataclass(frozen=True, slots=True)
class ExtBranch:
    """Extents from `first` on are in the node at block `place`."""

    first: int
    place: int


def decode_extents(node: bytes, depth: int | None) -> tuple[int, list[ExtExtent | ExtBranch]]:
    """A node's depth and entries; it must have this depth, or (the root) any. Raises Truncated, BadMagic, Corrupt."""
    if len(node) < _EXTENT_HEADER.size:
        raise Truncated("a node of extents of ext")
    magic, entries, _most, own, _generation = _EXTENT_HEADER.unpack_from(node)
    if magic != _EXTENT_MAGIC:
        raise BadMagic("not a node of extents of ext")
    if own > DEEPEST_TREE or (depth is not None and own != depth):
        raise Corrupt(f"a node of extents of ext at the wrong depth ({own})")
    if 12 + 12 * entries > len(node):
        raise Corrupt("a node of extents of ext has more entries than room")
    places = range(12, 12 + 12 * entries, 12)
    if own:
        branches: list[ExtExtent | ExtBranch] = []
        for at in places:
            first, low, high = struct.unpack_from("<IIH", node, at)
            branches.append(ExtBranch(first, high << 32 | low))
        return own, branches
    extents: list[ExtExtent | ExtBranch] = []
    for at in places:
        first, length, high, low = struct.unpack_from("<IHHI", node, at)
        unwritten = length > _UNWRITTEN
        extents.append(ExtExtent(first, length - _UNWRITTEN if unwritten else length, high << 32 | low, unwritten))
    return own, extents


def decode_folder(block: bytes, *, with_kind: bool) -> Iterator[tuple[int, bytes]]:
    """Inode and name of each entry in a block of a folder; blocks of its index look empty. Raises Corrupt at a bad one."""
    at = 0
    while at + _DIRENT.size <= len(block):
        inode, length, name_length, kind = _DIRENT.unpack_from(block, at)
        if len(block) == 65536 and length in (0, 65535):
            length = 65536
        if not with_kind:
            name_length |= kind << 8
        if length < 8 or length % 4 or at + length > len(block) or 8 + name_length > length:
            raise Corrupt(f"an entry of a folder of ext with an impossible length ({length})")
        if inode:
            yield inode, block[at + 8 : at + 8 + name_length]
        at += length
