# SPDX-License-Identifier: AGPL-3.0-or-later
"""Bytes of XFS's log: records, operations in them, and the items of transactions that say what changed.

Sources: "XFS Algorithms & Data Structures", Journaling Log; kernel: libxfs/xfs_log_format.h, xfs_log.c, xfs_log_recover.c.

The log is a ring of blocks of 512 bytes. Records lie in it one behind the other. The first four bytes of each block are the
number of the turn (cycle) in which it was written; what was there is in the header. A number of a record (LSN) is its cycle
and its first block, 32 bits each. Header of a record, one block, big-endian but for the checksum:

| offset | type | name        | meaning                                                                             |
|--------|------|-------------|-------------------------------------------------------------------------------------|
| 0      | u32  | magic       | 0xFEEDBABE                                                                          |
| 4      | u32  | cycle       |                                                                                     |
| 8      | u32  | version     | 1, 2                                                                                |
| 12     | u32  | length      | bytes behind the headers                                                            |
| 16     | u64  | number      |                                                                                     |
| 24     | u64  | tail        | number of the oldest record that may hold what is nowhere else                      |
| 32     | u32  | checksum    | CRC-32C, little-endian: of this header to byte 328 (i386: 324) with these four zero, |
|        |      |             | of the further headers that are needed 260 bytes, and what follows, as on the disk   |
| 40     | u32  | operations  |                                                                                     |
| 44     | 64u32| first_words | what was in the first four bytes of the blocks behind the headers                   |
| 300    | u32  | order       | of the bytes of items: 1 little-endian, 2 big-endian                                |
| 304    | 16s  | uuid        | of the file system                                                                  |
| 320    | u32  | most        | version 2: bytes that there can be. For each 32 KiB beyond the first there is one    |
|        |      |             | more header: u32 cycle, then 64u32 as above                                         |

An operation, big-endian: u32 transaction, u32 length, u8 client, u8 flags (`Flag`), u16; then as many bytes, a region. What a
transaction has between START and COMMIT: 16 bytes that begin with `TRAN` (as a number), then items. An item is a region that
begins with u16 kind (`Item`), u16 how many regions it has, and the others. All below is in the order of the guest's processor:

| of     | offset | type | meaning                                                                                     |
|--------|--------|------|---------------------------------------------------------------------------------------------|
| BUFFER | 4      | u16  | flags (`BufferFlag`); from bit 11 on what it is (`UNSEEN_BUFFERS`)                           |
|        | 6      | u16  | blocks of 512 bytes                                                                         |
|        | 8      | i64  | first of them on the volume                                                                 |
|        | 16     | u32  | words of the map that follows: a bit for each 128 bytes; the other regions are those of ones |
| INODE  | 4      | u32  | what is here (`InodePart`): the inode, then what lies in its forks                           |
|        | 24     | u32  | number of a device                                                                          |
|        | 40     | i64  | first block of 512 bytes of the inodes among which it is; i32 bytes at 48, i32 its place at 52 |
|        |        |      | written by 32 bits: without the four bytes at 12, 52 in all                                 |
| CREATE | 4      | u32  | big-endian: group, its first block, count, u32 bytes of an inode, u32 blocks, u32 generation  |

The inode in the log is that of the disk with its numbers in this order, to byte 176 (version 3) or 96. The root of a tree of
extents is there as a node (24 or 72 bytes of header), not as in an inode.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from everywhen.formats.errors import Corrupt, Truncated, UnsupportedVersion

BLOCK: Final = 512
CHUNK: Final = 128
MOST_BYTES: Final = 256 << 10
"""Of a record, without its headers."""
MOST_HEADERS: Final = 8
MOST_BUFFER: Final = 128
"""Blocks of a buffer: those of folders have 64 KiB at most."""
MAGIC: Final = 0xFEEDBABE
WORDS: Final = 64
"""Blocks whose first words one header has."""
_HEADER: Final = struct.Struct(">IIIIQQIII")
_SUMS: Final = (328, 324)
_SUM_AT: Final = 32
_FURTHER_SUM: Final = 260
_WORDS_AT: Final = 44
_ORDER_AT: Final = 300
_LITTLE: Final = 1
_OPERATION: Final = struct.Struct(">IIBBH")
_HEAD: Final = struct.pack("<I", 0x5452414E)
HEAD_BYTES: Final = 16
_BUFFER: Final = struct.Struct("<HHHHqI")
_INODE: Final = struct.Struct("<HHIHHIQI12xqii")
_INODE_32: Final = struct.Struct("<HHIHHQI12xqii")
_CREATE: Final = struct.Struct(">4xIIIIII")
_CORE: Final = "HHbbHIIIHHQQQQQQIIHBbIHHI"
_CORE_2: Final = "HHbbHIIIHH6xHQQQQQIIHBbIHHI"
_MORE: Final = "IIQQQI12xQQ"
_BIG_TIME: Final = 1 << 3
_LARGE_COUNTS: Final = 1 << 4
_TIMES: Final = (32, 40, 48, 144)


class Flag:
    """Of an operation. Plain numbers, here and below: a log has millions, and IntFlag took half of the time."""

    START: Final = 1
    COMMIT: Final = 2
    CONTINUED: Final = 4
    """The region goes on in the next record."""
    CONTINUES: Final = 8
    UNMOUNT: Final = 32


class Item(IntEnum):
    """Kinds of items. Those that are not here concern free space, quotas and reverse maps, which no file shows."""

    INODE = 0x123B
    BUFFER = 0x123C
    CREATE = 0x123F
    MAP = 0x1244
    """A change of a file's map that is intended (reflinks, copies on write), and that it was done."""
    MAP_DONE = 0x1245
    ATTRIBUTE = 0x1246
    ATTRIBUTE_DONE = 0x1247
    EXCHANGE = 0x1248
    EXCHANGE_DONE = 0x1249


INTENTS: Final = {Item.MAP: Item.MAP_DONE, Item.ATTRIBUTE: Item.ATTRIBUTE_DONE, Item.EXCHANGE: Item.EXCHANGE_DONE}
KNOWN_ITEMS: Final = range(0x1236, 0x1250)


class BufferFlag:
    """Of a buffer: inodes in it (of which only the list of those without a name is logged so); freed; quotas."""

    INODES: Final = 1
    CANCEL: Final = 2
    QUOTAS: Final = 4 | 8 | 16


UNSEEN_BUFFERS: Final = frozenset({1, 2, 3, 5, 6, 7, 12, 13, 14, 19, 20})
"""Quotas, headers of groups, indexes of folders, the realtime device: nobody who reads files looks at them."""


class InodePart:
    """What an item of an inode has."""

    CORE: Final = 0x001
    DATA: Final = 0x002
    DATA_EXTENTS: Final = 0x004
    DATA_ROOT: Final = 0x008
    DEVICE: Final = 0x010
    ATTRIBUTES: Final = 0x040
    ATTRIBUTE_EXTENTS: Final = 0x080
    ATTRIBUTE_ROOT: Final = 0x100
    DATA_FORK: Final = 0x00E
    ATTRIBUTE_FORK: Final = 0x1C0


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """`headers` and `blocks` (of content) of 512 bytes each."""

    cycle: int
    length: int
    number: int
    tail: int
    checksum: int
    operations: int
    headers: int
    little: bool
    uuid: bytes

    @property
    def blocks(self) -> int:
        """Of the whole record."""
        return self.headers + -(-self.length // BLOCK)


def decode_record(block: bytes) -> RecordHeader | None:
    """The header in this block, None if there is none that can be one."""
    magic, cycle, version, length, number, tail, _sum, _before, operations = _HEADER.unpack_from(block)
    (most,) = struct.unpack_from(">I", block, 320)
    if magic != MAGIC or version not in (1, 2) or not length or length > MOST_BYTES:
        return None
    headers = -(-most // (WORDS * BLOCK)) if version == 2 and most else 1
    if headers > MOST_HEADERS or length > headers * WORDS * BLOCK:
        return None
    checksum = int.from_bytes(block[_SUM_AT : _SUM_AT + 4], "little")
    little = int.from_bytes(block[_ORDER_AT : _ORDER_AT + 4], "big") == _LITTLE
    return RecordHeader(cycle, length, number, tail, checksum, operations, headers, little, block[304:320])


def summed_headers(headers: bytes, length: int) -> tuple[bytes, ...]:
    """What of the headers of a record of this length the checksum is about; one of these."""
    first = headers[:_SUM_AT] + bytes(4) + headers[_SUM_AT + 4 : BLOCK]
    used = -(-length // (WORDS * BLOCK)) * BLOCK  # there are as many as the longest record needs
    more = b"".join(headers[at : at + _FURTHER_SUM] for at in range(BLOCK, min(used, len(headers)), BLOCK))
    return tuple(first[:size] + more for size in _SUMS)


def unstamped(headers: bytes, content: bytes) -> bytes:
    """A record's content with the first words of its blocks put back."""
    whole = bytearray(content)
    for index in range(-(-len(content) // BLOCK)):
        header, word = divmod(index, WORDS)
        at = header * BLOCK + (4 + 4 * word if header else _WORDS_AT + 4 * word)
        whole[index * BLOCK : index * BLOCK + 4] = headers[at : at + 4]
    return bytes(whole)


def operations(content: bytes, count: int) -> Iterator[tuple[int, int, bytes]]:
    """Transaction, flags and region of each. Raises Truncated."""
    at, unpack, size = 0, _OPERATION.unpack_from, _OPERATION.size
    for _ in range(count):
        if at + size > len(content):
            raise Truncated("a record of XFS's log with fewer operations than it says")
        transaction, length, _client, flags, _reserved = unpack(content, at)
        at += size
        if at + length > len(content):
            raise Truncated("an operation of XFS's log that is longer than its record")
        yield transaction, flags, content[at : at + length]
        at += length


def is_head(region: bytes) -> bool:
    """Whether a transaction can begin so."""
    return region[:4] == _HEAD and len(region) <= HEAD_BYTES


def decode_item(region: bytes) -> tuple[int, int]:
    """Kind of an item, and how many regions it has. Raises Corrupt."""
    if len(region) < 4:
        raise Corrupt("an item of XFS's log without a kind")
    kind, count = struct.unpack_from("<HH", region)
    if not count:
        raise Corrupt("an item of XFS's log without regions")
    return kind, count


def decode_intent(region: bytes) -> int:
    """Number of an intent, or of the one that was done. Raises Truncated."""
    if len(region) < 16:
        raise Truncated("an intent of XFS's log")
    return int.from_bytes(region[8:16], "little")


@dataclass(frozen=True, slots=True)
class LoggedBuffer:
    """`map` has a bit for each 128 bytes of the `blocks` of 512 bytes from `first` on."""

    flags: int
    first: int
    blocks: int
    map: int

    @property
    def kind(self) -> int:
        return self.flags >> 11


def decode_buffer(region: bytes) -> LoggedBuffer:
    """Raises Truncated, Corrupt."""
    if len(region) < _BUFFER.size:
        raise Truncated("a buffer in XFS's log")
    _kind, _count, flags, blocks, first, words = _BUFFER.unpack_from(region)
    bits = region[_BUFFER.size : _BUFFER.size + 4 * words]
    found = int.from_bytes(bits, "little")
    if first < 0 or blocks > MOST_BUFFER or found >> blocks * (BLOCK // CHUNK):
        raise Corrupt("a buffer in XFS's log with impossible sizes")
    return LoggedBuffer(flags, first, blocks, found)


@dataclass(frozen=True, slots=True)
class LoggedInode:
    """`place` in bytes of the volume."""

    parts: int
    number: int
    device: int
    place: int


def decode_logged_inode(region: bytes) -> LoggedInode:
    """Raises Truncated, Corrupt."""
    if len(region) == _INODE_32.size:
        _kind, _count, parts, _attributes, _data, number, device, block, _length, offset = _INODE_32.unpack(region)
    elif len(region) >= _INODE.size:
        _kind, _count, parts, _attributes, _data, _pad, number, device, block, _length, offset = _INODE.unpack_from(region)
    else:
        raise Truncated("an inode in XFS's log")
    if block < 0 or not 0 <= offset < MOST_BUFFER * BLOCK:
        raise Corrupt("an inode in XFS's log that is nowhere")
    return LoggedInode(parts, number, device, block * BLOCK + offset)


def decode_create(region: bytes) -> tuple[int, int, int, int]:
    """Group, its first block, inodes and bytes of each, where new inodes are made. Raises Truncated."""
    if len(region) < _CREATE.size:
        raise Truncated("new inodes in XFS's log")
    group, block, count, size, _blocks, _generation = _CREATE.unpack_from(region)
    return group, block, count, size


def disk_inode(core: bytes) -> bytes:
    """What the log has of an inode, as it is on the disk (but its checksum). Raises Truncated, UnsupportedVersion."""
    version = core[4] if len(core) > 4 else 0
    size = 176 if version == 3 else 96
    if len(core) < size:
        raise Truncated("an inode in XFS's log")
    if version not in (2, 3):
        raise UnsupportedVersion(f"an inode of version {version} in XFS's log")
    large = False
    if version == 3:
        code = _CORE + _MORE
        (flags,) = struct.unpack_from("<Q", core, 120)
        big_time, large = bool(flags & _BIG_TIME), bool(flags & _LARGE_COUNTS)
    else:
        code, big_time = _CORE_2, False
    new = bytearray(size)
    struct.pack_into(">" + code, new, 0, *struct.unpack_from("<" + code, core))
    if version == 3:
        new[160:176] = core[160:176]
        if not large:
            new[24:32] = bytes(8)
    new[6:8] = bytes(2)
    if not big_time:
        for at in _TIMES[: 4 if version == 3 else 3]:
            struct.pack_into(">iI", new, at, *struct.unpack_from("<iI", core, at))
    return bytes(new)


def disk_root(node: bytes, room: int, *, version: int) -> bytes:
    """The root of a tree of extents as it is in an inode that has `room` bytes for it. Raises Corrupt."""
    header = 72 if version == 3 else 24
    level, count = struct.unpack_from(">HH", node, 4) if len(node) >= header else (0, 0)
    inside, there = (len(node) - header) // 16, (room - 4) // 16
    if count > inside or count > there:
        raise Corrupt("the root of a tree of extents in XFS's log that does not fit")
    keys = node[header : header + 8 * count]
    places = node[header + 8 * inside : header + 8 * (inside + count)]
    return struct.pack(">HH", level, count) + keys.ljust(8 * there, b"\0") + places
