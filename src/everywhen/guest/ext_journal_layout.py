# SPDX-License-Identifier: AGPL-3.0-or-later
"""Bytes of jbd2's journal in ext3 and ext4: its superblock, and the blocks of its log.

Source: the kernel's documentation, ext4 Data Structures and Algorithms, "Journal (jbd2)"; the names below are those of its
sections. All numbers are big-endian. The documentation does not say that tags of checksum version 2 are two bytes longer than
their fields: that is from the kernel's `journal_tag_bytes`.

*Block Header*: u32 magic, u32 kind, u32 sequence (the transaction's number). *Super Block*, 1024 bytes, after that header:

| offset | type | name            | meaning                                                                 |
|--------|------|-----------------|-------------------------------------------------------------------------|
| 12     | u32  | block_size      | that of the file system                                                 |
| 16     | u32  | blocks          | in the journal, this one and those for fast commits included            |
| 20     | u32  | first           | first block of the log                                                  |
| 24     | u32  | sequence        | of the oldest transaction in the log                                    |
| 28     | u32  | start           | block where that begins; 0: nothing to be replayed                      |
| 36     | u32  | compat          | 1: a commit has the CRC-32 of its transaction. From here on: version 2  |
| 40     | u32  | incompat        | see `Incompat`                                                          |
| 44     | u32  | ro_compat       | none is known                                                           |
| 48     | 16s  | uuid            | every checksum begins with it                                           |
| 80     | u8   | checksum_type   | 4: CRC-32C                                                              |
| 84     | u32  | fast_blocks     | at the journal's end, for fast commits; 0: 256                          |
| 252    | u32  | checksum        | CRC-32C of the 1024 bytes with these four as zeroes                     |

*Descriptor Block*: after the header tags, one for each block that follows in the log, see `Super.tags`; the last 4 bytes are
its checksum in versions 2 and 3. *Revocation Block*: u32 bytes in use, then numbers of blocks; the checksum is at its end too.
*Commit Block*: u8 checksum type and u8 size at 12, u32 checksum at 16, u64 time in seconds at 48.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from everywhen.formats.images.crc32c import crc32c
from everywhen.guest.errors import GuestDamaged, GuestLimit, GuestUnsupported

MAGIC: Final = 0xC03B3998
_HEADER: Final = struct.Struct(">III")
_SUPER: Final = struct.Struct(">IIIIIIIII")
_FEATURES: Final = struct.Struct(">III16s")
_SUPER_SIZE: Final = 1024
_CHECKSUM_AT: Final = 252
_TAIL: Final = 4
_CRC32C: Final = 4
MOST_BLOCKS: Final = 1 << 19
"""Of a journal that is replayed here: some 300 bytes are kept for each of its blocks. mke2fs makes 262,144 at most unasked."""
_LEAST_BLOCKS: Final = 1024
_FAST_BLOCKS: Final = 256
_REVERSED: Final = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


class Kind(IntEnum):
    """What a block of the journal is."""

    DESCRIPTOR = 1
    COMMIT = 2
    SUPER_1 = 3
    SUPER_2 = 4
    REVOKE = 5


class Incompat(IntFlag):
    """Features that a reader of the log must know."""

    REVOKE = 1
    WIDE = 2
    """Numbers of blocks have 64 bits."""
    ASYNC_COMMIT = 4
    """A commit may be on the disk before what it commits."""
    CHECKSUM_2 = 8
    CHECKSUM_3 = 16
    FAST_COMMIT = 32


class _Flag(IntFlag):
    ESCAPED = 1
    SAME_UUID = 2
    LAST = 8


@dataclass(frozen=True, slots=True)
class Tag:
    """A block of the file system that is in the log: `target` is where it belongs, in blocks."""

    target: int
    escaped: bool
    checksum: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The end of a transaction; `checksum` is that of version 1, None where there is none."""

    seconds: int
    checksum: int | None
    intact: bool


@dataclass(frozen=True, slots=True)
class Super:
    """The journal's superblock. Numbers of blocks are the journal's own, `last` is one past the log's end."""

    block_size: int
    blocks: int
    first: int
    last: int
    sequence: int
    start: int
    incompat: Incompat
    sums_transactions: bool
    """Checksum version 1: a commit has one for all of its transaction."""
    uuid: bytes

    @property
    def sums_blocks(self) -> bool:
        """Checksum versions 2 and 3: each block has its own."""
        return bool(self.incompat & (Incompat.CHECKSUM_2 | Incompat.CHECKSUM_3))

    def tags(self, block: bytes) -> Iterator[Tag]:
        """What a descriptor block says of the blocks that follow it."""
        wide, third = bool(self.incompat & Incompat.WIDE), bool(self.incompat & Incompat.CHECKSUM_3)
        size = 16 if third else 8 + 4 * wide + 2 * bool(self.incompat & Incompat.CHECKSUM_2)
        end = self.block_size - (_TAIL if self.sums_blocks else 0)
        at = _HEADER.size
        while at + size <= end:
            low, checksum, flags = struct.unpack_from(">IHH", block, at)
            high = struct.unpack_from(">I", block, at + 8)[0] if wide else 0
            if third:
                (checksum,) = struct.unpack_from(">I", block, at + 12)
            yield Tag(high << 32 | low, bool(flags & _Flag.ESCAPED), checksum)
            if flags & _Flag.LAST:
                return
            at += size + (0 if flags & _Flag.SAME_UUID else 16)

    def revoked(self, block: bytes) -> tuple[int, ...]:
        """Numbers of the blocks that a revocation block takes back."""
        (used,) = struct.unpack_from(">I", block, _HEADER.size)
        if used > self.block_size - (_TAIL if self.sums_blocks else 0):
            raise GuestDamaged(f"a revocation block of the journal has {used} of {self.block_size} bytes in use")
        width, letter = (8, "Q") if self.incompat & Incompat.WIDE else (4, "I")
        count = max(0, used - 16) // width
        return struct.unpack_from(f">{count}{letter}", block, 16)

    def commit(self, block: bytes) -> Commit:
        """A commit block, checked where it has a checksum of its own."""
        kind, size = block[12], block[13]
        (checksum,), (seconds,) = struct.unpack_from(">I", block, 16), struct.unpack_from(">Q", block, 48)
        if self.sums_blocks:
            return Commit(seconds, None, self._sum(block[:16] + bytes(4) + block[20:]) == checksum)
        if not self.sums_transactions or not (kind or size or checksum):
            return Commit(seconds, None, intact=True)
        return Commit(seconds, checksum, (kind, size) == (1, 4))

    def intact(self, block: bytes) -> bool:
        """Whether the checksum at the end of a descriptor or revocation block is right, if there is one."""
        return not self.sums_blocks or self._sum(block[:-_TAIL] + bytes(_TAIL)) == int.from_bytes(block[-_TAIL:], "big")

    def tag_fits(self, tag: Tag, sequence: int, block: bytes) -> bool:
        """Whether `block`, as it is in the log, has the checksum that its tag has, if there is one."""
        if not self.sums_blocks:
            return True
        checksum = self._sum(sequence.to_bytes(4, "big") + block)
        return tag.checksum == (checksum if self.incompat & Incompat.CHECKSUM_3 else checksum & 0xFFFF)

    def _sum(self, content: bytes) -> int:
        return crc32c(self.uuid + content) ^ 0xFFFFFFFF


def header(block: bytes) -> tuple[int, int] | None:
    """Kind and sequence of a block of the log, None if it is none of the journal's own."""
    magic, kind, sequence = _HEADER.unpack_from(block)
    return (kind, sequence) if magic == MAGIC else None


def sum_on(register: int, block: bytes) -> int:
    """The checksum of version 1, CRC-32 with its bits in the other order, gone on with `block`; it begins with 0xFFFFFFFF.

    The standard library has the one with its bits reversed: so bits of all that goes in and comes out are turned round.
    """
    turned = int(f"{register:032b}"[::-1], 2) ^ 0xFFFFFFFF
    return int(f"{zlib.crc32(block.translate(_REVERSED), turned) ^ 0xFFFFFFFF:032b}"[::-1], 2)


def parse_super(block: bytes, block_size: int, room: int) -> Super:
    """The journal's superblock, of a file system with that block size; the journal's file has `room` blocks."""
    magic, kind, _, size, blocks, first, sequence, start, _ = _SUPER.unpack_from(block)
    if magic != MAGIC or kind not in (Kind.SUPER_1, Kind.SUPER_2):
        raise GuestDamaged("the journal does not begin with a superblock of its own")
    compat, incompat, ro_compat, uuid = _FEATURES.unpack_from(block, 36) if kind == Kind.SUPER_2 else (0, 0, 0, bytes(16))
    if ro_compat or incompat & ~sum(Incompat):
        raise GuestUnsupported(f"the journal has features that are not known here ({incompat:#x}, {ro_compat:#x})")
    sums = (compat & 1) + bool(incompat & Incompat.CHECKSUM_2) + bool(incompat & Incompat.CHECKSUM_3)
    if sums > 1:
        raise GuestDamaged("the journal says that it has checksums of several versions")
    if incompat & (Incompat.CHECKSUM_2 | Incompat.CHECKSUM_3):
        if block[80] != _CRC32C:
            raise GuestUnsupported(f"the journal has checksums of a kind that is not known here ({block[80]})")
        whole = block[:_CHECKSUM_AT] + bytes(4) + block[_CHECKSUM_AT + 4 : _SUPER_SIZE]
        if crc32c(whole) ^ 0xFFFFFFFF != int.from_bytes(block[_CHECKSUM_AT : _CHECKSUM_AT + 4], "big"):
            raise GuestDamaged("the checksum of the journal's superblock is wrong")
    if blocks > MOST_BLOCKS:
        raise GuestLimit(f"the journal has {blocks} blocks, which is too long to replay here")
    last = blocks
    if incompat & Incompat.FAST_COMMIT:
        last -= int.from_bytes(block[84:88], "big") or _FAST_BLOCKS
        if last < _LEAST_BLOCKS:
            raise GuestDamaged("the journal has no room for more than fast commits")
    if size != block_size or blocks > room or not 0 < first < last or (start and not first <= start < last):
        raise GuestDamaged("the numbers in the journal's superblock are impossible")
    return Super(size, blocks, first, last, sequence, start, Incompat(incompat), bool(compat & 1), uuid)


def emptied(block: bytes, journal: Super, sequence: int) -> bytes:
    """The journal's first block as it is when all is replayed; `sequence` is that of the next transaction."""
    new = bytearray(block)
    struct.pack_into(">II", new, 24, sequence, 0)
    if journal.sums_blocks:
        new[_CHECKSUM_AT : _CHECKSUM_AT + 4] = bytes(4)
        struct.pack_into(">I", new, _CHECKSUM_AT, crc32c(bytes(new[:_SUPER_SIZE])) ^ 0xFFFFFFFF)
    return bytes(new)
