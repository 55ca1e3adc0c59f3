# SPDX-License-Identifier: AGPL-3.0-or-later
"""Superblock, chunks, nodes and items of Btrfs (btrfs.readthedocs.io, On-disk format; kernel: uapi/linux/btrfs_tree.h).

All numbers are little-endian. Superblock, 4096 bytes at 64 KiB:

| offset | type | name           | meaning                                                  |
|--------|------|----------------|----------------------------------------------------------|
| 32     | 16s  | uuid           | the same on all devices of a file system                 |
| 64     | 8s   | magic          | `_BHRfS_M`                                               |
| 72     | u64  | generation     |                                                          |
| 80     | u64  | root           | address of the tree of roots                             |
| 88     | u64  | chunk_root     | of the tree of chunks                                    |
| 96     | u64  | log_root       | of what was synced and is not in the trees yet, or 0     |
| 136    | u64  | devices        |                                                          |
| 144    | 2u32 | sector, node   | sizes in bytes                                           |
| 160    | u32  | first_chunks   | bytes                                                    |
| 188    | u64  | incompatible   | features                                                 |
| 198    | 2u8  | levels         | of the root tree, of the chunk tree                      |
| 201    | u64  | device         | its number                                               |
| 299    | 256s | label          |                                                          |
| 811    | 2048s| chunks         | those needed to read the tree of chunks: keys and chunks |

A key: u64 object, u8 kind, u64 offset. A node: 48 bytes, u64 its address, 40 bytes, u32 items, u8 level; at level 0 items (key,
u32 place behind the header of 101 bytes, u32 length), else branches (key, u64 address, u64 generation).
A chunk: u64 length, u64, u64 stripe, u64 kind, 12 bytes, u16 stripes, u16 copies (RAID10), then u64 device, u64 place, 16s
each. An inode: 16 bytes, u64 size, u64 bytes, 8 bytes, u32 links, u32 uid, u32 gid, u32 mode, u64 device; from 112 on times of
access, change, modification, creation (i64 s, u32 ns). An entry: key of what it is, 8 bytes, u16 length of data (attributes),
u16 of the name, u8 kind, name, data. A root: inode, 8 bytes, u64 its folder, u64 address; at 238 u8 level.
An extent: 8 bytes, u64 bytes unpacked, u8 compression, u8 encryption, u16, u8 kind (0 here, 1 stored, 2 never written), then
what is here, or u64 address, u64 length, u64 begin within it, u64 bytes of the content.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from everywhen.formats.errors import BadMagic, Corrupt, Truncated, UnsupportedVersion
from everywhen.formats.images.crc32c import crc32c

SUPERBLOCK_PLACE: Final = 65536
SUPERBLOCK_BYTES: Final = 4096
INODE: Final = 1
XATTR: Final = 24
DIR_ITEM: Final = 84
DIR_INDEX: Final = 96
EXTENT_DATA: Final = 108
ROOT: Final = 132
ROOT_REF: Final = 156
CHUNK: Final = 228
FIRST_CHUNK_TREE: Final = 256
TOP_LEVEL: Final = 5
ROOTS_FOLDER: Final = 6
RAID0: Final = 1 << 3
RAID1: Final = 1 << 4 | 1 << 9 | 1 << 10
DUP: Final = 1 << 5
RAID10: Final = 1 << 6
RAID5: Final = 1 << 7
RAID6: Final = 1 << 8
INLINE: Final = 0
UNWRITTEN: Final = 2
HEADER: Final = 101
DEEPEST_TREE: Final = 8
_ITEM: Final = 25
_BRANCH: Final = 33
_CHUNK_HEAD: Final = 48
_KNOWN: Final = (
    0x11FFF  # without the extent tree v2 (0x2000) and the tree of stripes (0x4000); quotas (0x10000) are not in the way
)
_KEY: Final = struct.Struct("<QBQ")


class Key(NamedTuple):
    """Of an item; they are in this order in a tree."""

    object: int
    kind: int
    offset: int


def decode_key(data: bytes, at: int = 0) -> Key:
    """Raises Truncated."""
    if at + 17 > len(data):
        raise Truncated("a key of Btrfs")
    return Key(*_KEY.unpack_from(data, at))


@dataclass(frozen=True, slots=True)
class BtrfsSuperblock:
    """Addresses are logical: chunks say where they are."""

    uuid: bytes
    generation: int
    root: int
    root_level: int
    chunk_root: int
    chunk_level: int
    log_root: int
    devices: int
    device: int
    sector_size: int
    node_size: int
    label: bytes
    chunks: bytes


def decode_superblock(data: bytes) -> BtrfsSuperblock:
    """Raises BadMagic, Truncated, UnsupportedVersion, Corrupt."""
    if len(data) < SUPERBLOCK_BYTES:
        raise Truncated("a superblock of Btrfs")
    if data[64:72] != b"_BHRfS_M":
        raise BadMagic("not a superblock of Btrfs")
    generation, root, chunk_root, log_root = struct.unpack_from("<QQQQ", data, 72)
    (devices,) = struct.unpack_from("<Q", data, 136)
    sector_size, node_size = struct.unpack_from("<II", data, 144)
    (length,) = struct.unpack_from("<I", data, 160)
    (incompatible,) = struct.unpack_from("<Q", data, 188)
    if incompatible & ~_KNOWN:
        raise UnsupportedVersion(f"Btrfs with features that are not read here ({incompatible & ~_KNOWN:#x})")
    if node_size not in {1 << bits for bits in range(12, 17)} or sector_size not in {1 << bits for bits in range(9, 17)}:
        raise Corrupt("the superblock of Btrfs has impossible sizes")
    if length > 2048 or data[198] >= DEEPEST_TREE or data[199] >= DEEPEST_TREE:
        raise Corrupt("the superblock of Btrfs has impossible trees")
    return BtrfsSuperblock(
        uuid=data[32:48],
        generation=generation,
        root=root,
        root_level=data[198],
        chunk_root=chunk_root,
        chunk_level=data[199],
        log_root=log_root,
        devices=devices,
        device=struct.unpack_from("<Q", data, 201)[0],
        sector_size=sector_size,
        node_size=node_size,
        label=data[299:555].partition(b"\0")[0],
        chunks=data[811 : 811 + length],
    )


@dataclass(frozen=True, slots=True)
class BtrfsChunk:
    """`length` bytes from a logical address on: on `places` (device, byte), in the way `kind` says."""

    length: int
    stripe: int
    kind: int
    copies: int
    places: tuple[tuple[int, int], ...]

    @property
    def bytes(self) -> int:
        """Of this chunk's record."""
        return _CHUNK_HEAD + 32 * len(self.places)


def decode_chunk(data: bytes) -> BtrfsChunk:
    """Raises Truncated, Corrupt."""
    if len(data) < _CHUNK_HEAD:
        raise Truncated("a chunk of Btrfs")
    length, _owner, stripe, kind = struct.unpack_from("<QQQQ", data)
    count, copies = struct.unpack_from("<HH", data, 44)
    if not count or not length or not stripe or len(data) < _CHUNK_HEAD + 32 * count:
        raise Corrupt("a chunk of Btrfs with impossible stripes")
    parity = 1 if kind & RAID5 else 2 if kind & RAID6 else 0
    if count <= parity or (kind & RAID10 and (not copies or count % copies)):
        raise Corrupt("a chunk of Btrfs with impossible stripes")
    places = tuple(struct.unpack_from("<QQ", data, _CHUNK_HEAD + 32 * index) for index in range(count))
    return BtrfsChunk(length, stripe, kind, copies, places)


def first_chunks(data: bytes) -> Iterator[tuple[int, BtrfsChunk]]:
    """Address and chunk of each in a superblock. Raises FormatError."""
    at = 0
    while at < len(data):
        key = decode_key(data, at)
        chunk = decode_chunk(data[at + 17 :])
        yield key.offset, chunk
        at += 17 + chunk.bytes


@dataclass(frozen=True, slots=True)
class BtrfsNode:
    """Keys, and at level 0 the data of each, else the address of each."""

    level: int
    keys: list[Key]
    data: list[bytes]
    addresses: list[int]


def decode_node(block: bytes, address: int, level: int) -> BtrfsNode:
    """Raises Truncated, Corrupt: also if it is not the node of this address or not of this level."""
    if len(block) < HEADER:
        raise Truncated("a node of Btrfs")
    (own,) = struct.unpack_from("<Q", block, 48)
    count, own_level = struct.unpack_from("<IB", block, 96)
    if own != address or own_level != level:
        raise Corrupt(f"the node of Btrfs at {address} is another one (of {own}, level {own_level})")
    width = _BRANCH if level else _ITEM
    if HEADER + count * width > len(block):
        raise Corrupt("a node of Btrfs has more items than room")
    places = range(HEADER, HEADER + count * width, width)
    keys = [decode_key(block, at) for at in places]
    if any(one >= other for one, other in itertools.pairwise(keys)):
        raise Corrupt("a node of Btrfs whose items are not in order")
    if level:
        return BtrfsNode(level, keys, [], [struct.unpack_from("<Q", block, at + 17)[0] for at in places])
    data = []
    for at in places:
        place, length = struct.unpack_from("<II", block, at + 17)
        if HEADER + place + length > len(block):
            raise Corrupt("an item of Btrfs outside of its node")
        data.append(block[HEADER + place : HEADER + place + length])
    return BtrfsNode(level, keys, data, [])


@dataclass(frozen=True, slots=True)
class BtrfsInode:
    """Times in ns since 1970."""

    size: int
    bytes: int
    links: int
    uid: int
    gid: int
    mode: int
    device: int
    accessed: int
    changed: int
    modified: int
    created: int


def decode_inode(data: bytes) -> BtrfsInode:
    """Raises Truncated."""
    if len(data) < 160:
        raise Truncated("an inode of Btrfs")
    size, used, _group, links, uid, gid, mode, device = struct.unpack_from("<QQQIIIIQ", data, 16)
    stamps = struct.unpack_from("<qIqIqIqI", data, 112)
    times = [stamps[at] * 1_000_000_000 + stamps[at + 1] for at in (0, 2, 4, 6)]
    return BtrfsInode(size, used, links, uid, gid, mode, device, *times)


def decode_root(data: bytes) -> tuple[int, int, int]:
    """The folder's inode, address and level of a subvolume's tree. Raises Truncated, Corrupt."""
    if len(data) < 239:
        raise Truncated("a root of Btrfs")
    folder, address = struct.unpack_from("<QQ", data, 168)
    if data[238] >= DEEPEST_TREE:
        raise Corrupt(f"a tree of Btrfs of {data[238]} levels")
    return folder, address, data[238]


@dataclass(frozen=True, slots=True)
class BtrfsEntry:
    """Of a folder: the key of what has this name. Of attributes: the value."""

    key: Key
    name: bytes
    value: bytes


def decode_entries(data: bytes) -> list[BtrfsEntry]:
    """All in one item: names with the same hash share it. Raises Truncated."""
    found, at = [], 0
    while at < len(data):
        if at + 30 > len(data):
            raise Truncated("an entry of Btrfs")
        value_length, name_length = struct.unpack_from("<HH", data, at + 25)
        begin = at + 30 + name_length
        if begin + value_length > len(data):
            raise Truncated("an entry of Btrfs")
        found.append(BtrfsEntry(decode_key(data, at), data[at + 30 : begin], data[begin : begin + value_length]))
        at = begin + value_length
    return found


def name_hash(name: bytes) -> int:
    """The offset in the key of the entry of this name (DIR_ITEM, XATTR)."""
    return crc32c(name, 0xFFFFFFFE) ^ 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class BtrfsExtent:
    """Of a content: `length` bytes, from `begin` on in the `stored` bytes at `address` (0: a hole), or `inline`."""

    kind: int
    unpacked: int
    compression: int
    encryption: int
    inline: bytes
    address: int
    stored: int
    begin: int
    length: int


def decode_extent(data: bytes) -> BtrfsExtent:
    """Raises Truncated, Corrupt."""
    if len(data) < 21:
        raise Truncated("an extent of Btrfs")
    unpacked, compression, encryption, _other, kind = struct.unpack_from("<QBBHB", data, 8)
    if kind == INLINE:
        return BtrfsExtent(kind, unpacked, compression, encryption, data[21:], 0, 0, 0, unpacked)
    if len(data) < 53:
        raise Truncated("an extent of Btrfs")
    address, stored, begin, length = struct.unpack_from("<QQQQ", data, 21)
    if kind > UNWRITTEN or not length or begin + length > 1 << 63:
        raise Corrupt(f"an extent of Btrfs of kind {kind} and {length} bytes")
    return BtrfsExtent(kind, unpacked, compression, encryption, b"", address, stored, begin, length)
