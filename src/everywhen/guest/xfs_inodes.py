# SPDX-License-Identifier: AGPL-3.0-or-later
"""Inodes of XFS by number, where their contents are, and their attributes (layouts: formats/filesystems/xfs.py)."""

from __future__ import annotations

from collections.abc import Iterator

from everywhen.formats.errors import Corrupt
from everywhen.formats.filesystems import xfs, xfs_attributes
from everywhen.guest.content import Inline, Stored
from everywhen.guest.errors import GuestDamaged, GuestUnsupported
from everywhen.guest.reading import piece
from everywhen.guest.tree import Content, Readable, Run, Span

_LARGEST = 1 << 63
_MOST_ATTRIBUTE_BLOCKS = 1 << 16
_LARGEST_ATTRIBUTE = 1 << 16
_END = 1 << 54


class XfsInodes:
    """Reads inodes, their attributes and contents. Raises GuestError, FormatError."""

    def __init__(self, volume: Readable) -> None:
        self.volume = volume
        self.superblock = xfs.decode_superblock(piece(volume, 0, xfs.SUPERBLOCK_BYTES, "the superblock"))

    def get(self, number: int) -> xfs.XfsInode:
        """The inode of this number."""
        place = self.superblock.inode_place(number)
        return xfs.decode_inode(piece(self.volume, place, self.superblock.inode_size, f"inode {number}"))

    def content(self, number: int, inode: xfs.XfsInode, what: str) -> Content:
        """Content of a file or folder."""
        if inode.size >= _LARGEST:
            raise GuestDamaged(f"{what}: {inode.size} bytes")
        if inode.flags & xfs.REALTIME:
            raise GuestUnsupported(f"{what}: its content is on the file system's realtime device, which is not read here")
        if inode.format == xfs.LOCAL:
            if inode.size > len(inode.fork):
                raise GuestDamaged(f"{what}: {inode.size} bytes in an inode that has not as many")
            return Inline(inode.fork[: inode.size], self.superblock.inode_place(number) + inode.fork_at)
        return Stored(self.volume, inode.size, lambda at: self._runs(inode, at), what)

    def blocks(self, inode: xfs.XfsInode, until: int) -> Iterator[bytes]:
        """The blocks of a folder, as far as its entries go (`until` in bytes), that are stored."""
        size, room = self.superblock.folder_block, self.volume.size
        content = Stored(self.volume, min(until, xfs.FOLDER_DATA_ENDS), lambda at: self._runs(inode, at), "a folder")
        done = 0
        for run in content.runs():
            if run.zero:
                continue
            room -= run.length
            if room < 0:
                raise GuestDamaged("a folder larger than its volume")
            for at in range(max(done, run.start // size * size), run.end, size):
                yield content.read(at, size)
                done = at + size

    def link_parts(self, inode: xfs.XfsInode) -> Iterator[bytes]:
        """The pieces of a long target."""
        if inode.size > 1024:
            raise GuestDamaged(f"a link with a target of {inode.size} bytes")
        for run in self._runs(inode, 0):
            if run.stored is None or run.length > 1 << 16:
                raise GuestDamaged("a link with a target in no place")
            yield piece(self.volume, run.stored.place, run.length, "the target")

    def _runs(self, inode: xfs.XfsInode, offset: int) -> Iterator[Run]:
        block = offset // self.superblock.block_size
        if inode.format == xfs.EXTENTS:
            yield from self._listed(xfs.decode_extents(inode.fork, inode.extents), block, 0, _END)
        elif inode.format == xfs.TREE:
            yield from self._tree(inode.fork, block)
        else:
            raise Corrupt(f"an inode of XFS whose content has the format {inode.format}")

    def _tree(self, fork: bytes, block: int) -> Iterator[Run]:
        level, branches = xfs.decode_tree_root(fork)
        if not 0 < level <= xfs.DEEPEST_TREE:
            raise Corrupt(f"a tree of extents of XFS of {level} levels")
        yield from self._below(branches, level, block, 0, _END)

    def _below(self, branches: list[tuple[int, int]], level: int, block: int, begin: int, end: int) -> Iterator[Run]:
        """Runs below the branches of a node, each within what its key says: so no node is read twice."""
        for index, (first, place) in enumerate(branches):
            until = branches[index + 1][0] if index + 1 < len(branches) else end
            if not begin <= first < until <= end:
                raise Corrupt("a tree of extents of XFS that is not in order")
            if until <= block:
                continue
            node = piece(self.volume, self.superblock.block_place(place), self.superblock.block_size, "a node of its extents")
            found = xfs.decode_tree_node(node, level - 1)
            extents = [one for one in found if isinstance(one, xfs.XfsExtent)]
            yield from self._listed(extents, block, first, until)
            inner = [one for one in found if not isinstance(one, xfs.XfsExtent)]
            yield from self._below(inner, level - 1, block, first, until)

    def _listed(self, extents: list[xfs.XfsExtent], block: int, begin: int, end: int) -> Iterator[Run]:
        size = self.superblock.block_size
        for one in extents:
            if not begin <= one.first < end:
                raise Corrupt("extents of XFS that are not in order")
            begin = one.first + one.length
            if begin > block and one.length:
                # Never written since it was allocated: zeroes for the guest, whatever lies there.
                stored = None if one.unwritten else Span(self.superblock.block_place(one.place), one.length * size)
                yield Run(one.first * size, one.length * size, zero=one.unwritten, stored=stored)

    def nodes(self, inode: xfs.XfsInode) -> Iterator[Span]:
        """The blocks that say where the content is, beside the inode itself."""
        if inode.format == xfs.TREE:
            level, branches = xfs.decode_tree_root(inode.fork)
            yield from self._nodes(branches, level)

    def _nodes(self, branches: list[tuple[int, int]], level: int) -> Iterator[Span]:
        size = self.superblock.block_size
        for _first, place in branches:
            span = Span(self.superblock.block_place(place), size)
            yield span
            if level > 1:
                found = xfs.decode_tree_node(piece(self.volume, span.place, size, "a node of its extents"), level - 1)
                yield from self._nodes([one for one in found if not isinstance(one, xfs.XfsExtent)], level - 1)

    def attributes(self, inode: xfs.XfsInode) -> dict[str, bytes]:
        """Its extended attributes."""
        if not inode.attributes:
            return {}
        if inode.attributes_format == xfs.LOCAL:
            return {one.name: one.value for one in xfs_attributes.decode_short(inode.attributes)}
        content = self._attribute_blocks(inode)
        if not content.size:
            return {}
        found: dict[str, bytes] = {}
        waiting, seen = [0], set[int]()
        while waiting:
            number = waiting.pop()
            if number in seen or len(seen) > _MOST_ATTRIBUTE_BLOCKS:
                raise GuestDamaged("its attributes go round")
            seen.add(number)
            size = self.superblock.block_size
            leaf, below = xfs_attributes.decode_block(content.read(number * size, size))
            waiting += below
            for one in leaf:
                found[one.name] = self._remote(content, one) if one.block else one.value
        return found

    def _attribute_blocks(self, inode: xfs.XfsInode) -> Content:
        """The blocks of attributes as one content."""
        size = self.superblock.block_size
        if inode.attributes_format == xfs.EXTENTS:
            runs = list(self._listed(xfs.decode_extents(inode.attributes, inode.attribute_extents), 0, 0, _END))
        else:
            runs = list(self._tree(inode.attributes, 0))
        end = min(max((run.end for run in runs), default=0), _MOST_ATTRIBUTE_BLOCKS * size)
        return Stored(self.volume, end, lambda at: (run for run in runs if run.end > at), "its attributes")

    def _remote(self, content: Content, one: xfs_attributes.XfsAttribute) -> bytes:
        if one.length > _LARGEST_ATTRIBUTE:
            raise GuestDamaged(f"the attribute {one.name} has {one.length} bytes")
        size = self.superblock.block_size
        at, value = one.block * size, b""
        while len(value) < one.length:
            block = content.read(at, size)
            if not block:
                raise GuestDamaged(f"the attribute {one.name} ends too early")
            value += block[xfs_attributes.REMOTE_HEADER :] if self.superblock.version == 5 else block
            at += size
        return value[: one.length]
