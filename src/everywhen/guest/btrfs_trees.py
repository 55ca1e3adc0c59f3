# SPDX-License-Identifier: AGPL-3.0-or-later
"""Chunks and trees of Btrfs: logical addresses to bytes on devices, keys to items (layouts: formats/filesystems/btrfs.py)."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from everywhen.formats.errors import FormatError
from everywhen.formats.filesystems import btrfs
from everywhen.formats.filesystems.btrfs import BtrfsChunk, BtrfsNode, BtrfsSuperblock, Key
from everywhen.guest.btrfs_changes import Changes
from everywhen.guest.errors import GuestDamaged
from everywhen.guest.reading import piece
from everywhen.guest.tree import Readable

_KEPT_NODES = 512
_MOST_CHUNKS = 1 << 20


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree by the address and level of its root."""

    address: int
    level: int
    changes: Changes | None = None
    """What its log has laid over it."""


class BtrfsDevices:
    """The devices of one file system: reads logical addresses."""

    def __init__(self, volumes: list[Readable]) -> None:
        self.superblock: BtrfsSuperblock = _superblock(volumes[0])
        self.devices: dict[int, Readable] = {self.superblock.device: volumes[0]}
        for other in volumes[1:]:
            try:
                head = _superblock(other)
            except (FormatError, GuestDamaged):
                continue  # another volume's damage is reported when that one is opened
            if head.uuid == self.superblock.uuid and head.device not in self.devices:
                self.devices[head.device] = other
                if head.generation > self.superblock.generation:
                    self.superblock = head
        self._starts: list[int] = []
        self._chunks: list[BtrfsChunk] = []
        self._nodes: OrderedDict[int, BtrfsNode] = OrderedDict()
        for address, chunk in btrfs.first_chunks(self.superblock.chunks):
            self._add(address, chunk)
        chunks = Tree(self.superblock.chunk_root, self.superblock.chunk_level)
        for key, data in self.of(chunks, btrfs.FIRST_CHUNK_TREE, btrfs.CHUNK):
            self._add(key.offset, btrfs.decode_chunk(data))

    def _add(self, address: int, chunk: BtrfsChunk) -> None:
        at = bisect_right(self._starts, address)
        if at and self._starts[at - 1] + self._chunks[at - 1].length > address:
            return  # the tree has the superblock's chunks again
        if len(self._starts) >= _MOST_CHUNKS:
            raise GuestDamaged("Btrfs with more chunks than any has")
        self._starts.insert(at, address)
        self._chunks.insert(at, chunk)

    def read(self, address: int, length: int, copy: int = 0) -> bytes:
        """Bytes at a logical address; `copy` prefers another of several. Raises GuestDamaged where they are not to be had."""
        parts = []
        while length > 0:
            device, place, here = self.place(address, copy)
            here = min(here, length)
            if device not in self.devices:
                raise GuestDamaged(f"device {device} of this Btrfs is on none of the disks here")
            parts.append(piece(self.devices[device], place, here, f"the address {address}"))
            address += here
            length -= here
        return b"".join(parts)

    def place(self, address: int, copy: int = 0) -> tuple[int, int, int]:
        """Device, byte on it, and how many bytes follow there, of a logical address."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._starts[at] + self._chunks[at].length:
            raise GuestDamaged(f"nothing says where the address {address} of this Btrfs is")
        chunk, offset = self._chunks[at], address - self._starts[at]
        number, within = divmod(offset, chunk.stripe)
        count = len(chunk.places)
        left = min(chunk.stripe - within, chunk.length - offset)
        if chunk.kind & btrfs.RAID0:
            row, column = divmod(number, count)
        elif chunk.kind & btrfs.RAID10:
            row, group = divmod(number, count // chunk.copies)
            column = self._present(chunk, [group * chunk.copies + one for one in range(chunk.copies)], copy)
        elif chunk.kind & (btrfs.RAID5 | btrfs.RAID6):
            row, index = divmod(number, count - (1 if chunk.kind & btrfs.RAID5 else 2))
            column = (row + index) % count
        else:
            column = self._present(chunk, list(range(count)), copy)
            device, begin = chunk.places[column]
            return device, begin + offset, chunk.length - offset
        device, begin = chunk.places[column]
        return device, begin + row * chunk.stripe + within, left

    def _present(self, chunk: BtrfsChunk, columns: list[int], copy: int) -> int:
        """One of several copies, of those whose device is here if there is one."""
        here = [one for one in columns if chunk.places[one][0] in self.devices] or columns
        return here[copy % len(here)]

    def node(self, address: int, level: int) -> BtrfsNode:
        """The node at an address; where its first copy is damaged the other one. Raises FormatError, GuestDamaged."""
        found = self._nodes.get(address)
        if found is None or found.level != level:
            try:
                found = btrfs.decode_node(self.read(address, self.superblock.node_size), address, level)
            except (FormatError, GuestDamaged):
                found = btrfs.decode_node(self.read(address, self.superblock.node_size, 1), address, level)
            self._nodes[address] = found
            if len(self._nodes) > _KEPT_NODES:
                self._nodes.popitem(last=False)
        else:
            self._nodes.move_to_end(address)
        return found

    def items(self, tree: Tree, first: Key) -> Iterator[tuple[Key, bytes]]:
        """The items of a tree in order, from the last one that is not behind `first` on."""
        below = self._below(tree.address, tree.level, first)
        last = Key(-1, 0, 0)
        for key, data in tree.changes.over(below, first) if tree.changes else below:
            if key <= last:
                raise GuestDamaged("a tree of Btrfs whose items are not in order")
            last = key
            yield key, data

    def _below(self, address: int, level: int, first: Key) -> Iterator[tuple[Key, bytes]]:
        node = self.node(address, level)
        begin = max(0, bisect_right(node.keys, first) - 1)
        for index in range(begin, len(node.keys)):
            if level:
                yield from self._below(node.addresses[index], level - 1, first)
            else:
                yield node.keys[index], node.data[index]

    def of(self, tree: Tree, number: int, kind: int, offset: int = 0) -> Iterator[tuple[Key, bytes]]:
        """The items of one object and kind from an offset on."""
        first = Key(number, kind, offset)
        for key, data in self.items(tree, first):
            if key >= first:
                if key.object != number or key.kind != kind:
                    return
                yield key, data

    def get(self, tree: Tree, key: Key) -> bytes | None:
        """The item of exactly this key."""
        for found, data in self.items(tree, key):
            if found >= key:
                return data if found == key else None
        return None


def _superblock(volume: Readable) -> BtrfsSuperblock:
    return btrfs.decode_superblock(piece(volume, btrfs.SUPERBLOCK_PLACE, btrfs.SUPERBLOCK_BYTES, "the superblock"))
