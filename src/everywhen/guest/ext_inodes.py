# SPDX-License-Identifier: AGPL-3.0-or-later
"""Inodes of ext2, ext3 and ext4 by number, and where their contents are (layouts: formats/filesystems/ext.py)."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator

from everywhen.formats.filesystems import ext, ext_attributes
from everywhen.guest.content import Inline, Stored
from everywhen.guest.errors import GuestDamaged, GuestUnsupported
from everywhen.guest.footprint import taking_down
from everywhen.guest.reading import piece
from everywhen.guest.tree import Content, Readable, Run, Span

_MAP_BLOCKS = 12
_KEPT_GROUPS = 4096
_LARGEST = 1 << 48
"""No content is larger: 2^32 blocks of 64 KiB."""
_LARGEST_ATTRIBUTE = 1 << 20
"""With ea_inode an attribute has up to 64 KiB; above this it is not read."""


class ExtInodes:
    """Reads inodes, their attributes and contents. Raises GuestError, FormatError."""

    def __init__(self, volume: Readable) -> None:
        self.volume = volume
        self.superblock = ext.decode_superblock(piece(volume, ext.SUPERBLOCK_PLACE, ext.SUPERBLOCK_BYTES, "the superblock"))
        self._tables: OrderedDict[int, int] = OrderedDict()

    def place(self, number: int) -> int:
        """Where an inode is on the volume."""
        head = self.superblock
        if not 0 < number <= head.inodes:
            raise GuestDamaged(f"inode {number} of {head.inodes}")
        group, index = divmod(number - 1, head.inodes_per_group)
        table = self._tables.get(group)
        if table is None:
            where = head.descriptor_place(group)
            with taking_down(None):  # tables of inodes stay where they are; what else a descriptor has changes all the time
                descriptor = piece(self.volume, where, head.descriptor_size, f"the descriptor of group {group}")
            table = ext.inode_table_block(descriptor)
            self._tables[group] = table
            if len(self._tables) > _KEPT_GROUPS:
                self._tables.popitem(last=False)
        return table * head.block_size + index * head.inode_size

    def get(self, number: int) -> ext.ExtInode:
        """The inode of this number."""
        return ext.decode_inode(piece(self.volume, self.place(number), self.superblock.inode_size, f"inode {number}"))

    def attributes(self, number: int, inode: ext.ExtInode) -> dict[str, bytes]:
        """Its extended attributes; one of the file system's own (`system.data`) among them."""
        found = ext_attributes.decode_in_inode(inode.tail)
        if inode.attributes_block:
            size = self.superblock.block_size
            block = piece(self.volume, inode.attributes_block * size, size, f"the attributes of inode {number}")
            found += ext_attributes.decode_block(block)
        return {one.name: self._value(one) if one.elsewhere else one.value for one in found}

    def _value(self, one: ext_attributes.ExtAttribute) -> bytes:
        if one.length > _LARGEST_ATTRIBUTE:
            raise GuestDamaged(f"the attribute {one.name} has {one.length} bytes")
        inode = self.get(one.elsewhere)
        return Stored(self.volume, inode.size, lambda at: self._runs(inode, at), one.name).read(0, one.length)

    def content(self, number: int, inode: ext.ExtInode, what: str) -> Content:
        """Content of a file, folder or link."""
        if inode.flags & ext.INLINE:
            return self._inline(number, inode)
        if inode.size > _LARGEST:
            raise GuestDamaged(f"{what}: {inode.size} bytes, more than the file system can have")
        return Stored(self.volume, inode.size, lambda at: self._runs(inode, at), what)

    def _inline(self, number: int, inode: ext.ExtInode) -> Content:
        rest = self.attributes(number, inode).get(ext_attributes.DATA, b"")
        room = inode.block_map + rest
        if inode.size > len(room):
            # The kernel gives zeroes for what a content grown by truncate has not in either place (seen: d_inline_dump.img).
            room = room.ljust(min(inode.size, self.superblock.inode_size), b"\0")
        content = room[: inode.size]
        return Inline(content, self.place(number) + 40 if len(content) <= len(inode.block_map) else None)

    def _runs(self, inode: ext.ExtInode, offset: int) -> Iterator[Run]:
        block = offset // self.superblock.block_size
        if inode.flags & ext.EXTENTS:
            return self._extents(inode.block_map, None, block, 1 << 32)
        return self._mapped(inode, block)

    def _extents(self, node: bytes, depth: int | None, block: int, end: int) -> Iterator[Run]:
        """Runs of a tree of extents from the one that has `block` on; each node's are within what its parent says of it."""
        size = self.superblock.block_size
        own, entries = ext.decode_extents(node, depth)
        firsts = [entry.first for entry in entries]
        last = -1
        for index, entry in enumerate(entries):
            if entry.first < last or entry.first >= end:
                raise GuestDamaged("its extents are not in order")
            last = entry.first
            if isinstance(entry, ext.ExtExtent):
                last += entry.length
                if last > block and entry.length:
                    yield self._run(entry)
                continue
            until = firsts[index + 1] if index + 1 < len(firsts) else end
            last += 1
            if until > block:
                inner = piece(self.volume, entry.place * size, size, "a node of its extents")
                yield from self._extents(inner, own - 1, block, until)

    def _run(self, extent: ext.ExtExtent) -> Run:
        size = self.superblock.block_size
        length = extent.length * size
        # Never written since it was allocated: zeroes for the guest, whatever lies there.
        stored = None if extent.unwritten else Span(extent.place * size, length)
        return Run(extent.first * size, length, zero=extent.unwritten, stored=stored)

    def _mapped(self, inode: ext.ExtInode, block: int) -> Iterator[Run]:
        """Runs of a map of blocks; no run reaches over the end of a block of the map, so that the first comes soon."""
        direct = struct.unpack("<15I", inode.block_map)
        yield from self._pointers(direct[:_MAP_BLOCKS], 0, block)
        per_block = self.superblock.block_size // 4
        first, end = _MAP_BLOCKS, -(-inode.size // self.superblock.block_size)
        for level in (1, 2, 3):
            yield from self._map_tree(direct[_MAP_BLOCKS + level - 1], level, first, max(block, first), end)
            first += per_block**level

    def _map_tree(self, node: int, level: int, first: int, block: int, end: int) -> Iterator[Run]:
        """Runs below one block of a map, which stands for the blocks of the content from `first` on."""
        size = self.superblock.block_size
        below = (size // 4) ** (level - 1)
        if node == 0 or first >= end or first + below * (size // 4) <= block:
            return
        pointers = struct.unpack(f"<{size // 4}I", piece(self.volume, node * size, size, "a block of its map"))
        if level == 1:
            yield from self._pointers(pointers, first, block)
            return
        for pointer in pointers:
            yield from self._map_tree(pointer, level - 1, first, block, end)
            first += below

    def _pointers(self, pointers: tuple[int, ...], first: int, block: int) -> Iterator[Run]:
        """Runs of the blocks that follow each other on the volume too."""
        size = self.superblock.block_size
        begin, count = 0, 0
        for index, pointer in enumerate((*pointers, 0)):
            if count and pointer == pointers[begin] + count:
                count += 1
                continue
            if count and first + begin + count > block:
                yield Run((first + begin) * size, count * size, zero=False, stored=Span(pointers[begin] * size, count * size))
            begin, count = index, 1 if pointer else 0

    def map_blocks(self, inode: ext.ExtInode) -> Iterator[Span]:
        """The blocks that say where the content is, beside the inode itself."""
        if inode.flags & ext.INLINE:
            return
        if inode.flags & ext.EXTENTS:
            yield from self._extent_nodes(inode.block_map, None)
            return
        direct = struct.unpack("<15I", inode.block_map)
        for level in (1, 2, 3):
            yield from self._map_nodes(direct[_MAP_BLOCKS + level - 1], level)

    def _extent_nodes(self, node: bytes, depth: int | None) -> Iterator[Span]:
        size = self.superblock.block_size
        own, entries = ext.decode_extents(node, depth)
        for entry in entries:
            if isinstance(entry, ext.ExtBranch):
                yield Span(entry.place * size, size)
                if own > 1:
                    inner = piece(self.volume, entry.place * size, size, "a node of its extents")
                    yield from self._extent_nodes(inner, own - 1)

    def _map_nodes(self, node: int, level: int) -> Iterator[Span]:
        size = self.superblock.block_size
        if node:
            yield Span(node * size, size)
            if level > 1:
                for pointer in struct.unpack(f"<{size // 4}I", piece(self.volume, node * size, size, "a block of its map")):
                    yield from self._map_nodes(pointer, level - 1)


def refuse_encrypted(inode: ext.ExtInode, what: str) -> None:
    """Raises GuestUnsupported for what the guest encrypts: names and contents are not to be had without its key."""
    if inode.flags & ext.ENCRYPTED:
        raise GuestUnsupported(f"{what}: encrypted by the guest (fscrypt)")
