# SPDX-License-Identifier: AGPL-3.0-or-later
"""Superblock, inodes, extents, folders and links of XFS ("XFS Algorithms & Data Structures"; kernel: libxfs/xfs_format.h).

All numbers are big-endian. What is needed of the superblock, the first 512 bytes:

| offset | type | name         | meaning                                                     |
|--------|------|--------------|-------------------------------------------------------------|
| 0      | 4s   | magic        | `XFSB`                                                      |
| 4      | u32  | block_size   |                                                             |
| 32     | 16s  | uuid         |                                                             |
| 48     | u64  | log          | first block of the log, 0 if it is on another device        |
| 56     | u64  | root         | inode                                                       |
| 84     | u32  | group_blocks | blocks in an allocation group                               |
| 88     | u32  | groups       |                                                             |
| 96     | u32  | log_blocks   |                                                             |
| 100    | u16  | version      | low 4 bits: 4 or 5; the others are features                 |
| 104    | u16  | inode_size   |                                                             |
| 108    | 12s  | label        |                                                             |
| 123    | u8   | inodes_log   | inodes in a block, a power of two                           |
| 124    | u8   | group_log    | blocks in a group, rounded up to a power of two             |
| 192    | u8   | folder_log   | blocks in a block of a folder, a power of two               |
| 200    | u32  | features2    | 0x200: entries of folders have a kind                       |
| 216    | u32  | incompatible | version 5; 1: entries of folders have a kind                |

Numbers of inodes and blocks are (group << bits) + number within the group.
An inode: `IN`, u16 mode, u8 version, u8 format (0 device, 1 here, 2 extents, 3 tree of extents), u16 old links, u32 uid,
u32 gid, u32 links, u16, u16, u64 (with NREXT64 the number of extents), u64 times of access, modification, change, u64 size, u64
blocks, u32, u32 extents (with NREXT64 of attributes), u16 extents of attributes, u8 place of attributes in units of 8 bytes, u8
their format, 8 bytes, u16 flags, 8 bytes; version 3 from 120 on: u64 flags, 16 bytes, u64 creation time, 24 bytes.
An extent has 128 bits: 1 never written, 54 first block of the content, 52 place, 21 blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import BadMagic, Corrupt, Truncated, UnsupportedVersion

SUPERBLOCK_BYTES: Final = 512
DEVICE: Final = 0
LOCAL: Final = 1
EXTENTS: Final = 2
TREE: Final = 3
REALTIME: Final = 1
FOLDER_DATA_ENDS: Final = 32 << 30
"""Behind these bytes of a folder there is only its index."""
DEEPEST_TREE: Final = 9
_KNOWN: Final = 0xFF
_BIGTIME: Final = 1 << 3
_NREXT64: Final = 1 << 4
_BIGTIME_BEGINS: Final = -(1 << 31)
_EXTENT: Final = struct.Struct(">QQ")
_TREE_MAGICS: Final = (b"BMAP", b"BMA3")
_FOLDER_MAGICS: Final = {b"XD2B": (16, True), b"XDB3": (64, True), b"XD2D": (16, False), b"XDD3": (64, False)}
"""Header's bytes, and whether the block's end has the index of the folder."""
LINK_HEADER: Final = 56


@dataclass(frozen=True, slots=True)
class XfsSuperblock:
    """Sizes in bytes."""

    block_size: int
    uuid: bytes
    log: int
    log_blocks: int
    root: int
    group_blocks: int
    groups: int
    version: int
    inode_size: int
    label: bytes
    inodes_log: int
    group_log: int
    folder_block: int
    has_kinds: bool

    def block_place(self, block: int) -> int:
        """Where a block is on the volume, in bytes. Raises Corrupt."""
        group, number = divmod(block, 1 << self.group_log)
        if group >= self.groups or number >= self.group_blocks:
            raise Corrupt(f"block {number} of group {group} of XFS, which does not exist")
        return (group * self.group_blocks + number) * self.block_size

    def inode_place(self, inode: int) -> int:
        """Where an inode is on the volume, in bytes. Raises Corrupt."""
        block, index = divmod(inode, 1 << self.inodes_log)
        return self.block_place(block) + index * self.inode_size


def decode_superblock(data: bytes) -> XfsSuperblock:
    """Raises BadMagic, Truncated, UnsupportedVersion, Corrupt."""
    if len(data) < SUPERBLOCK_BYTES:
        raise Truncated("a superblock of XFS")
    if data[:4] != b"XFSB":
        raise BadMagic("not a superblock of XFS")
    (block_size,) = struct.unpack_from(">I", data, 4)
    log, root = struct.unpack_from(">QQ", data, 48)
    group_blocks, groups, _bitmap, log_blocks, versions, _sector, inode_size = struct.unpack_from(">IIIIHHH", data, 84)
    (features2,) = struct.unpack_from(">I", data, 200)
    (incompatible,) = struct.unpack_from(">I", data, 216)
    version = versions & 15
    if version not in (4, 5) or (version == 5 and incompatible & ~_KNOWN):
        raise UnsupportedVersion(f"XFS of version {version} with features that are not read here ({incompatible:#x})")
    folder_block = block_size << min(data[192], 16)
    if block_size not in {1 << bits for bits in range(9, 17)} or not 256 <= inode_size <= 2048 or folder_block > 1 << 16:
        raise Corrupt("the superblock of XFS has impossible sizes")
    if not groups or not group_blocks or data[124] > 32 or inode_size << data[123] != block_size:
        raise Corrupt("the superblock of XFS has impossible groups")
    return XfsSuperblock(
        block_size=block_size,
        uuid=data[32:48],
        log=log,
        log_blocks=log_blocks,
        root=root,
        group_blocks=group_blocks,
        groups=groups,
        version=version,
        inode_size=inode_size,
        label=data[108:120].partition(b"\0")[0],
        inodes_log=data[123],
        group_log=data[124],
        folder_block=folder_block,
        has_kinds=bool(incompatible & 1) if version == 5 else bool(features2 & 0x200),
    )


@dataclass(frozen=True, slots=True)
class XfsInode:
    """Times in ns. `fork` says where the content is, `attributes` where the attributes are, in the formats of theirs."""

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
    format: int
    extents: int
    fork: bytes
    fork_at: int
    attributes_format: int
    attribute_extents: int
    attributes: bytes


def decode_inode(data: bytes) -> XfsInode:
    """Raises BadMagic, Truncated, Corrupt."""
    if len(data) < 256:
        raise Truncated("an inode of XFS")
    if data[:2] != b"IN":
        raise BadMagic("no inode of XFS is here")
    mode, version, form, old_links, uid, gid, links = struct.unpack_from(">HBBHIII", data, 2)
    atime, mtime, ctime, size, blocks = struct.unpack_from(">QQQQQ", data, 32)
    extents, attribute_extents, place, attributes_format = struct.unpack_from(">IHBB", data, 76)
    (flags,) = struct.unpack_from(">H", data, 90)
    flags2 = struct.unpack_from(">Q", data, 120)[0] if version >= 3 else 0
    if flags2 & _NREXT64:
        attribute_extents = extents
        (extents,) = struct.unpack_from(">Q", data, 24)
    begin = 176 if version >= 3 else 100
    middle = begin + 8 * place if place else len(data)
    if middle > len(data):
        raise Corrupt("an inode of XFS with attributes outside of it")
    is_big = bool(flags2 & _BIGTIME)
    return XfsInode(
        mode=mode,
        uid=uid,
        gid=gid,
        size=size,
        links=old_links if version == 1 else links,
        blocks=blocks,
        flags=flags,
        modified=_time(mtime, is_big=is_big),
        changed=_time(ctime, is_big=is_big),
        accessed=_time(atime, is_big=is_big),
        created=_time(struct.unpack_from(">Q", data, 144)[0], is_big=is_big) if version >= 3 else None,
        format=form,
        extents=extents,
        fork=data[begin:middle],
        fork_at=begin,
        attributes_format=attributes_format,
        attribute_extents=attribute_extents,
        attributes=data[middle:],
    )


def _time(stamp: int, *, is_big: bool) -> int:
    """ns since 1970: a count of ns from 1901 on, or 32 bits of seconds (signed) and 32 of ns."""
    if is_big:
        return stamp + _BIGTIME_BEGINS * 1_000_000_000
    seconds = stamp >> 32
    return (seconds - (1 << 32) if seconds >> 31 else seconds) * 1_000_000_000 + (stamp & 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class XfsExtent:
    """`length` blocks of a content from `first` on are at block `place`, or (unwritten) are zeroes."""

    first: int
    length: int
    place: int
    unwritten: bool


def decode_extents(data: bytes, count: int) -> list[XfsExtent]:
    """Raises Truncated."""
    if count * _EXTENT.size > len(data):
        raise Truncated(f"{count} extents of XFS in {len(data)} bytes")
    found = []
    for high, low in _EXTENT.iter_unpack(data[: count * _EXTENT.size]):
        place = (high & 0x1FF) << 43 | low >> 21
        found.append(XfsExtent(high >> 9 & (1 << 54) - 1, low & 0x1FFFFF, place, bool(high >> 63)))
    return found


def decode_tree_root(fork: bytes) -> tuple[int, list[tuple[int, int]]]:
    """Level, and first block of the content and place of each node below the root in an inode. Raises FormatError."""
    level, count = struct.unpack_from(">HH", fork)
    return level, _branches(fork[4:], count)


def decode_tree_node(block: bytes, level: int) -> list[tuple[int, int]] | list[XfsExtent]:
    """A node of this level: as the root, or at level 0 the extents. Raises FormatError."""
    if block[:4] not in _TREE_MAGICS:
        raise BadMagic("a node of a tree of extents of XFS without its magic")
    own, count = struct.unpack_from(">HH", block, 4)
    if own != level:
        raise Corrupt(f"a node of a tree of extents of XFS of level {own}, not {level}")
    body = block[72 if block[:4] == b"BMA3" else 24 :]
    return _branches(body, count) if level else decode_extents(body, count)


def _branches(body: bytes, count: int) -> list[tuple[int, int]]:
    room = len(body) // 16
    if count > room:
        raise Corrupt("a node of a tree of extents of XFS has more entries than room")
    keys = struct.unpack_from(f">{count}Q", body)
    return list(zip(keys, struct.unpack_from(f">{count}Q", body, 8 * room), strict=True))


def decode_short_folder(fork: bytes, *, has_kinds: bool) -> Iterator[tuple[int, bytes]]:
    """Inode and name of each entry of a folder that is in its inode. Raises Truncated."""
    count, wide = fork[0], fork[1]
    width = 8 if wide else 4
    at = 2 + width
    for _ in range(count):
        if at >= len(fork) or at + 3 + fork[at] + has_kinds + width > len(fork):
            raise Truncated("a folder in an inode of XFS")
        name = fork[at + 3 : at + 3 + fork[at]]
        at += 3 + len(name) + has_kinds
        yield int.from_bytes(fork[at : at + width], "big"), name
        at += width


def decode_folder_block(block: bytes, *, has_kinds: bool) -> Iterator[tuple[int, bytes]]:
    """Inode and name of each entry in a block of a folder, `.` and `..` among them. Raises FormatError at the first bad one."""
    if block[:4] not in _FOLDER_MAGICS:
        raise BadMagic("a block of a folder of XFS without its magic")
    at, has_index = _FOLDER_MAGICS[block[:4]]
    end = len(block)
    if has_index:
        (count,) = struct.unpack_from(">I", block, end - 8)
        end -= 8 + 8 * count
        if end < at:
            raise Corrupt("a block of a folder of XFS has a larger index than itself")
    while at + 4 <= end:
        if block[at : at + 2] == b"\xff\xff":
            (length,) = struct.unpack_from(">H", block, at + 2)
        else:
            if at + 11 > end:
                raise Truncated("an entry of a folder of XFS")
            inode, name_length = struct.unpack_from(">QB", block, at)
            length = (11 + name_length + has_kinds + 7) & ~7
            if at + length <= end:
                yield inode, block[at + 9 : at + 9 + name_length]
        if not length or length % 8 or at + length > end:
            raise Corrupt("an entry of a folder of XFS with an impossible length")
        at += length


def decode_link_part(data: bytes) -> bytes:
    """What a piece of a link's target has behind its header (version 5). Raises BadMagic."""
    if data[:4] != b"XSLM":
        raise BadMagic("a piece of a link of XFS without its magic")
    (length,) = struct.unpack_from(">I", data, 8)
    return data[LINK_HEADER : LINK_HEADER + length]
