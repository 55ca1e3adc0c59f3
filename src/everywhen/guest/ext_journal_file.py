# SPDX-License-Identifier: AGPL-3.0-or-later
"""The journal of an ext3 or ext4 volume as a file: where its blocks are. Only as much of the file system as that takes.

Source: the kernel's documentation, ext4 Data Structures and Algorithms: "Block Group Descriptors", "Inode Table", "The Contents
of inode.i_block" ("Direct/Indirect Block Addressing", "Extent Tree"). Numbers are little-endian.

| of     | offset | type    | name                                                                                          |
|--------|--------|---------|-----------------------------------------------------------------------------------------------|
| group  | 8, 40  | u32 × 2 | first block of its inodes, low and (64 bits) high                                             |
| inode  | 0      | u16     | mode                                                                                          |
|        | 4, 108 | u32 × 2 | bytes of content, low and high                                                                |
|        | 32     | u32     | flags (0x80000: `blocks` is an extent tree)                                                   |
|        | 40     | 60s     | blocks: 12 places, and one each of a block of places, of places of such blocks, and once more; |
|        |        |         | or the root of the tree                                                                       |
| node   | 0      | u16 × 4 | magic 0xF30A, entries, most entries, depth (0: the entries are extents)                       |
|        | 12     | 12 each | extent: u32 first block, u16 count (above 32768: not written yet), u16 high and u32 low place |
|        |        |         | else: u32 first block, u32 low and u16 high place of a node                                   |
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from everywhen.guest.errors import GuestDamaged, GuestLimit, GuestUnsupported
from everywhen.guest.ext_journal_layout import MOST_BLOCKS
from everywhen.guest.ext_journal_super import SUPER_AT, ExtSuper, Incompat, u16, u32
from everywhen.guest.tree import Readable

_EXTENTS: Final = 0x80000
_REGULAR: Final = 8
_TREE_MAGIC: Final = 0xF30A
_DEEPEST: Final = 5
_LONGEST_EXTENT: Final = 32768
_MOST_NODES: Final = 1 << 14
"""Of an extent tree: more than one of extents of one block each would have, over 2^19 blocks of 1 KiB (84 in a node)."""


class JournalFile:
    """The journal's blocks, numbered from 0, wherever they are on the volume."""

    def __init__(self, volume: Readable, super_block: ExtSuper) -> None:
        """Raises GuestDamaged where no whole file is found, GuestUnsupported where it would be hard to find."""
        self._volume = volume
        self.block_size = super_block.block_size
        self._most = super_block.blocks
        self._starts: list[int] = []
        self._places: list[int] = []
        inode = self._inode(super_block)
        content = u32(inode, 4) | u32(inode, 108) << 32
        if u16(inode, 0) >> 12 != _REGULAR or not 0 < content <= self._most * self.block_size:
            raise GuestDamaged(f"inode {super_block.journal} is no journal")
        self.blocks = min(content // self.block_size, MOST_BLOCKS)  # the journal's superblock says how many it uses
        if u32(inode, 32) & _EXTENTS:
            self._map(self._extents(inode[40:100]))
        else:
            numbers = struct.unpack_from("<15I", inode, 40)
            self._map((first, 1, place) for first, place in enumerate(islice(self._numbers(numbers), self.blocks)))

    def place(self, block: int) -> int:
        """Where on the volume a block of the journal is, in blocks."""
        run = bisect_right(self._starts, block) - 1
        return self._places[run] + block - self._starts[run]

    def read(self, block: int) -> bytes:
        """A block of the journal."""
        return self._block(self.place(block))

    def _block(self, place: int) -> bytes:
        if not 0 < place < self._most:
            raise GuestDamaged(f"what leads to the journal is said to be in block {place}, outside the file system")
        return self._volume.read(place * self.block_size, self.block_size)

    def _inode(self, super_block: ExtSuper) -> bytes:
        if (
            not super_block.inodes_in_group
            or not 128 <= super_block.inode_size <= self.block_size
            or not 32 <= super_block.descriptor_size <= self.block_size
        ):
            raise GuestDamaged("the numbers in the superblock are impossible")
        group, index = divmod(super_block.journal - 1, super_block.inodes_in_group)
        nth, at = divmod(group, self.block_size // super_block.descriptor_size)
        if nth and super_block.features & Incompat.META_GROUPS:
            raise GuestUnsupported(f"the journal is inode {super_block.journal} of a file system with meta block groups")
        descriptor = self._block(SUPER_AT // self.block_size + 1 + nth)[at * super_block.descriptor_size :]
        table = u32(descriptor, 8) | (u32(descriptor, 40) << 32 if super_block.descriptor_size >= 64 else 0)
        in_block = self.block_size // super_block.inode_size
        beyond, at = divmod(index, in_block)
        return self._block(table + beyond)[at * super_block.inode_size :][: super_block.inode_size]

    def _map(self, runs: Iterator[tuple[int, int, int]]) -> None:
        end = 0
        for first, count, place in runs:
            if first != end or not 0 < place <= place + count <= self._most:
                raise GuestDamaged(f"block {end} of the journal is nowhere")
            if not self._starts or self._places[-1] + end - self._starts[-1] != place:
                self._starts.append(first)
                self._places.append(place)
            end += count
            if end >= self.blocks:
                return
        raise GuestDamaged(f"the journal ends after {end} of its {self.blocks} blocks")

    def _numbers(self, inode: Sequence[int]) -> Iterator[int]:
        """Places of the blocks of a file, as the oldest format has them."""
        yield from inode[:12]
        for depth, number in enumerate(inode[12:], 1):
            yield from self._below(number, depth)

    def _below(self, number: int, depth: int) -> Iterator[int]:
        for below in struct.unpack(f"<{self.block_size // 4}I", self._block(number)):
            if depth > 1:
                yield from self._below(below, depth - 1)
            else:
                yield below

    def _extents(self, root: bytes) -> Iterator[tuple[int, int, int]]:
        """(first block, count, place) of the extents of a file, in order."""
        waiting: list[tuple[int, int]] = []
        node, expected = root, -1
        for _ in range(_MOST_NODES):
            magic, entries, depth = struct.unpack_from("<HHxxH", node)
            fits = 0 < entries <= len(node) // 12 - 1 and depth <= _DEEPEST and expected in (-1, depth)
            if magic != _TREE_MAGIC or not fits:
                raise GuestDamaged("the journal's extent tree is damaged")
            if depth:
                below = struct.iter_unpack("<IIHH", node[12 : 12 + 12 * entries])
                waiting += reversed([(high << 32 | low, depth - 1) for _, low, high, _ in below])
            else:
                for first, count, high, low in struct.iter_unpack("<IHHI", node[12 : 12 + 12 * entries]):
                    if not 0 < count <= _LONGEST_EXTENT:
                        raise GuestDamaged(f"block {first} of the journal was never written")
                    yield first, count, high << 32 | low
            if not waiting:
                return
            place, expected = waiting.pop()
            node = self._block(place)
        raise GuestLimit("the journal's extent tree is larger than any journal's")
