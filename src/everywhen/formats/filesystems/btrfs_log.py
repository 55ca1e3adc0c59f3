# SPDX-License-Identifier: AGPL-3.0-or-later
"""Bytes of Btrfs that its log trees need beside those that are read (btrfs.py): references, ranges, sums, and items anew.

Sources: btrfs.readthedocs.io, On-disk format; kernel: uapi/linux/btrfs_tree.h, fs/btrfs/tree-log.c. Numbers are little-endian.

| item       | kind | key's offset         | content                                                                          |
|------------|------|----------------------|----------------------------------------------------------------------------------|
| reference  | 12   | folder               | of each name: u64 index in the folder, u16 length, name                          |
| reference  | 13   | hash of folder, name | of each name: u64 folder, u64 index, u16 length, name                            |
| range      | 72   | first index          | u64 last index: of these the log has all entries of the folder (the key's object) |
| root       | 132  | subvolume            | as in the tree of roots; the object is 2^64 - 6                                  |

The superblock has at 196 u16 kind of checksum (0 CRC-32C, 1 xxHash64, 2 SHA-256, 3 BLAKE2b of 256 bits) and at 200 the
level of the tree of log roots. A node begins with 32 bytes for the checksum of all behind them; at 80 u64 generation, at 88 u64
its tree.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from everywhen.formats.errors import Corrupt, Truncated
from everywhen.formats.filesystems.btrfs import INODE, Key
from everywhen.formats.images.crc32c import crc32c

REFERENCE: Final = 12
LONG_REFERENCE: Final = 13
RANGE: Final = 72
LOG_TREE: Final = (1 << 64) - 6
_SUM: Final = 32
_SUMS: Final[dict[int, Callable[[bytes], bytes]]] = {
    0: lambda data: crc32c(data).to_bytes(4, "little"),
    2: lambda data: hashlib.sha256(data).digest(),
    3: lambda data: hashlib.blake2b(data, digest_size=32).digest(),
}
"""By their kind; xxHash is not in Python."""
_SIZE_AT: Final = 16
_BYTES_AT: Final = 24
_LINKS_AT: Final = 40
_MODE_AT: Final = 52
_BEGIN_AT: Final = 37
_KINDS: Final = {0o10: 1, 0o04: 2, 0o02: 3, 0o06: 4, 0o01: 5, 0o14: 6, 0o12: 7}


def log_root(superblock: bytes) -> tuple[int, int, int]:
    """Address and level of the tree of log roots, and the kind of checksums, of a whole superblock."""
    (address,) = struct.unpack_from("<Q", superblock, 96)
    return address, superblock[200], int.from_bytes(superblock[196:198], "little")


def check_log_node(block: bytes, generation: int, sums: int) -> None:
    """Raises Corrupt if this is no node of a log of this generation, or damaged."""
    own, tree = struct.unpack_from("<QQ", block, 80)
    if own != generation or tree != LOG_TREE:
        raise Corrupt(f"a node of a log of Btrfs is another one (of tree {tree}, generation {own})")
    summed = _SUMS.get(sums)
    if summed:
        right = summed(block[_SUM:])
        if block[: len(right)] != right:
            raise Corrupt("a node of a log of Btrfs whose checksum is wrong")


class Reference(NamedTuple):
    """A name of an inode: in this folder, with this index there."""

    folder: int
    at: int
    name: bytes


def decode_references(key: Key, data: bytes) -> list[Reference]:
    """Of either kind. Raises Truncated."""
    found, at = [], 0
    while at < len(data):
        folder = key.offset
        if key.kind == LONG_REFERENCE:
            folder, at = int.from_bytes(data[at : at + 8], "little"), at + 8
        if at + 10 > len(data):
            raise Truncated("a reference of Btrfs")
        index, length = struct.unpack_from("<QH", data, at)
        at += 10 + length
        if at > len(data):
            raise Truncated("a reference of Btrfs")
        found.append(Reference(folder, index, data[at - length : at]))
    return found


def encode_references(key: Key, references: list[Reference]) -> bytes:
    """The item of this key with these."""
    head = "<QQH" if key.kind == LONG_REFERENCE else "<QH"
    parts = []
    for one in references:
        numbers = (one.folder, one.at) if key.kind == LONG_REFERENCE else (one.at,)
        parts.append(struct.pack(head, *numbers, len(one.name)) + one.name)
    return b"".join(parts)


def long_reference_key(inode: int, folder: int, name: bytes) -> Key:
    """Where a reference of the second kind is."""
    return Key(inode, LONG_REFERENCE, crc32c(name, folder & 0xFFFFFFFF) ^ 0xFFFFFFFF)


def encode_entry(inode: int, mode: int, name: bytes) -> bytes:
    """An entry of a folder."""
    key = struct.pack("<QBQ", inode, INODE, 0)
    return key + struct.pack("<QHHB", 0, 0, len(name), _KINDS.get(mode >> 12, 0)) + name


def decode_range(data: bytes) -> int:
    """The last index. Raises Truncated."""
    if len(data) < 8:
        raise Truncated("a range of a folder in a log of Btrfs")
    return int.from_bytes(data[:8], "little")


def names_only(inode: bytes) -> bool:
    """Whether an inode is logged so that it is there, and nothing else of it counts but (unless it is 0) its size."""
    return not any(inode[:8])


def mode_of(inode: bytes) -> int:
    """Raises Corrupt."""
    if len(inode) < 160:
        raise Corrupt("an inode of Btrfs that is too short")
    return int.from_bytes(inode[_MODE_AT : _MODE_AT + 4], "little")


def size_of(inode: bytes) -> int:
    """In bytes."""
    return int.from_bytes(inode[_SIZE_AT : _SIZE_AT + 8], "little")


def links_of(inode: bytes) -> int:
    """How many names it says that it has."""
    return int.from_bytes(inode[_LINKS_AT : _LINKS_AT + 4], "little")


def with_size(inode: bytes, size: int) -> bytes:
    """The inode with another size."""
    return inode[:_SIZE_AT] + struct.pack("<Q", max(0, size)) + inode[_SIZE_AT + 8 :]


def with_bytes(inode: bytes, used: int) -> bytes:
    """The inode with other bytes in use."""
    return inode[:_BYTES_AT] + struct.pack("<Q", used) + inode[_BYTES_AT + 8 :]


def with_links(inode: bytes, links: int) -> bytes:
    """The inode with another number of names."""
    return inode[:_LINKS_AT] + struct.pack("<I", links) + inode[_LINKS_AT + 4 :]


def part_of_extent(extent: bytes, skipped: int, length: int) -> bytes:
    """`length` bytes of an extent that is not here, without its first ones."""
    (begin,) = struct.unpack_from("<Q", extent, _BEGIN_AT)
    return extent[:_BEGIN_AT] + struct.pack("<QQ", begin + skipped, length) + extent[_BEGIN_AT + 16 :]
