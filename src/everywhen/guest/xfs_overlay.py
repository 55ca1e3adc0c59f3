# SPDX-License-Identifier: AGPL-3.0-or-later
"""An XFS with what its log has laid over it, without a write: of each piece of metadata the latest that was logged.

Buffers are logged in chunks of 128 bytes, inodes by themselves. Both are laid over the volume's own bytes when these are read.
All that is older than what is on the volume is in the log again in its newer state, so it does no harm; inodes say of which
record they are, and are compared. Left out is what no reader of files looks at (`UNSEEN_BUFFERS`, the list of inodes without a
name), and checksums of inodes are not made new: this is for `guest/xfs.py`, and no volume to be mounted.

Source: kernel, xfs_buf_item_recover.c, xfs_inode_item_recover.c, xfs_icreate_item.c.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from everywhen.formats.filesystems import xfs_log
from everywhen.formats.filesystems.xfs import XfsSuperblock
from everywhen.formats.filesystems.xfs_log import BLOCK, CHUNK, BufferFlag, InodePart
from everywhen.guest.errors import GuestDamaged, GuestLimit
from everywhen.guest.tree import Readable
from everywhen.guest.xfs_transactions import LoggedItem

_PAGE: Final = 4096
_NEW_INODES: Final = 64
"""Made at once, or those of a block if these are more."""
_KEPT: Final = 256
_CHUNK_COST: Final = 340
_INODE_COST: Final = 700
_MOST: Final = 400 << 20
"""Bytes of memory for all that is laid over, by these costs (seen: 330 for a chunk, 600 for an inode with a few extents)."""
_MOST_DROPPED: Final = 1 << 27
"""Chunks and inodes, over all that is freed: some 10 s. A log of cancelled blocks alone reaches it with 160 MiB."""
_LEAST_FLUSHES: Final = 0x7FFF


class _Inode:
    """What the log has of one inode."""

    __slots__ = ("attributes", "core", "data", "device", "is_new", "number")

    def __init__(self, *, is_new: bool) -> None:
        self.is_new = is_new
        """Nothing of what is on the volume counts."""
        self.number = 0
        self.core = b""
        self.device: int | None = None
        self.data: tuple[int, bytes] | None = None
        self.attributes: tuple[int, bytes] | None = None

    def add(self, number: int, item: LoggedItem, head: xfs_log.LoggedInode) -> None:
        """A later state of it."""
        if not head.parts & InodePart.CORE or item.count < 2:
            raise GuestDamaged(f"inode {head.number} in its log has no content")
        core, forks = item.regions[1], item.regions[2:]
        if self.core[82:83] != core[82:83]:
            self.attributes = None  # they lay elsewhere; if there still are some, they are logged with this
        self.number, self.core = number, core
        if head.parts & InodePart.DEVICE:
            self.device = head.device
        if head.parts & InodePart.DATA_FORK and forks:
            self.data = head.parts & InodePart.DATA_FORK, forks.pop(0)
        if head.parts & InodePart.ATTRIBUTE_FORK and forks:
            self.attributes = head.parts & InodePart.ATTRIBUTE_FORK, forks.pop(0)

    def over(self, below: bytes) -> bytes:
        """The inode as it is, over the bytes on the volume. Raises FormatError."""
        if not self.core:
            return b"IN".ljust(len(below), b"\0")
        if not self.is_new and (below[:2] != b"IN" or self._is_older(below)):
            return below
        core = xfs_log.disk_inode(self.core)
        version, begin = core[4], 176 if core[4] == 3 else 100
        middle = begin + 8 * core[82] if core[82] else len(below)
        if middle > len(below):
            raise GuestDamaged("an inode in its log has attributes outside of it")
        data, attributes = below[begin:middle], below[middle:]
        if self.device is not None:
            data = self.device.to_bytes(4, "big") + data[4:]
        if self.data:
            data = _fork(self.data, data, version=version)
        if self.attributes:
            attributes = _fork(self.attributes, attributes, version=version)
        return core + bytes(begin - len(core)) + data + attributes

    def _is_older(self, below: bytes) -> bool:
        """Than the state on the volume."""
        if below[4] >= 3:
            there = int.from_bytes(below[112:120], "big")
            return there != (1 << 64) - 1 and there > self.number
        there, own = int.from_bytes(below[30:32], "big"), int.from_bytes(self.core[30:32], "little")
        return own < there and not (there == 0xFFFF and own < _LEAST_FLUSHES)


def _fork(logged: tuple[int, bytes], below: bytes, *, version: int) -> bytes:
    part, content = logged
    if part & (InodePart.DATA_ROOT | InodePart.ATTRIBUTE_ROOT):
        content = xfs_log.disk_root(content, len(below), version=version)
    return content[: len(below)] + below[len(content) :]


class XfsOverlay:
    """The volume with all that was put over it. For one thread at a time."""

    def __init__(self, volume: Readable, superblock: XfsSuperblock) -> None:
        self._volume = volume
        self._superblock = superblock
        self._chunks: dict[int, bytes] = {}
        """By their place on the volume, in chunks."""
        self._inodes: dict[int, _Inode] = {}
        """By their place on the volume, in bytes."""
        self._changed: set[int] = set()
        """Pages in which there is one of these."""
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._dropped = 0

    @property
    def size(self) -> int:
        return self._volume.size

    @property
    def cost(self) -> int:
        """Bytes of memory, nearly."""
        return len(self._chunks) * _CHUNK_COST + len(self._inodes) * _INODE_COST

    def put_buffer(self, item: LoggedItem) -> None:
        """What was logged of a buffer. Raises GuestDamaged, GuestLimit, FormatError."""
        head = xfs_log.decode_buffer(item.regions[0])
        if head.flags & (BufferFlag.INODES | BufferFlag.QUOTAS) or head.kind in xfs_log.UNSEEN_BUFFERS:
            return
        start, bits, at = self._place(head.first * BLOCK, head.blocks * BLOCK) // CHUNK, head.map, 0
        for region in item.regions[1:]:
            skipped = (bits & -bits).bit_length() - 1
            if skipped < 0 or not region or len(region) % CHUNK:
                raise GuestDamaged("a buffer in its log has other pieces than it says")
            bits >>= skipped
            at += skipped
            count = len(region) // CHUNK
            if bits & (1 << count) - 1 != (1 << count) - 1:
                raise GuestDamaged("a buffer in its log has other pieces than it says")
            for index in range(count):
                self._chunks[start + at + index] = region[index * CHUNK : (index + 1) * CHUNK]
            self._mark((start + at) * CHUNK, count * CHUNK)
            bits >>= count
            at += count
        if bits:
            raise GuestDamaged("a buffer in its log has fewer pieces than it says")

    def put_inode(self, number: int, item: LoggedItem) -> None:
        """An inode, logged in the transaction of this number. Raises GuestDamaged, FormatError."""
        head = xfs_log.decode_logged_inode(item.regions[0])
        place = self._place(head.place, self._superblock.inode_size)
        if place % self._superblock.inode_size:
            raise GuestDamaged(f"inode {head.number} in its log is where none can be")
        inode = self._inodes.get(place)
        if inode is None:
            inode = self._inodes[place] = _Inode(is_new=False)
            self._mark(place, self._superblock.inode_size)
        inode.add(number, item, head)

    def create_inodes(self, item: LoggedItem) -> None:
        """Inodes that were made where none were. Raises GuestDamaged, FormatError."""
        group, block, count, size = xfs_log.decode_create(item.regions[0])
        head = self._superblock
        if size != head.inode_size or not 0 < count <= max(_NEW_INODES, 1 << head.inodes_log):
            raise GuestDamaged("new inodes in its log with impossible sizes")
        place = self._place(head.block_place(group << head.group_log | block), count * size)
        self._drop(place, count * size)
        for at in range(place, place + count * size, size):
            self._inodes[at] = _Inode(is_new=True)
        self._mark(place, count * size)

    def cancel(self, item: LoggedItem) -> None:
        """A buffer that was freed: nothing that was logged of it counts. Raises FormatError."""
        head = xfs_log.decode_buffer(item.regions[0])
        self._drop(head.first * BLOCK, head.blocks * BLOCK)

    def _drop(self, place: int, length: int) -> None:
        """Forget all that was laid over these bytes."""
        self._dropped += length // CHUNK
        if self._dropped > _MOST_DROPPED:
            raise GuestLimit("its log frees more than any file system does")
        for chunk in range(place // CHUNK, (place + length) // CHUNK):
            self._chunks.pop(chunk, None)
        for at in range(place, place + length, self._superblock.inode_size):
            self._inodes.pop(at, None)

    def check_cost(self) -> None:
        """Raises GuestLimit if more is laid over than there is memory for."""
        if self.cost > _MOST:
            raise GuestLimit("its log holds more changes than there is memory for here")

    def read(self, offset: int, length: int) -> bytes:
        """As of any volume. Raises GuestDamaged too, where what is laid over makes no sense; other bytes can be read."""
        first, end = offset // _PAGE, -(-(offset + length) // _PAGE)
        changed = [page for page in range(first, end) if page in self._changed] if length else []
        below = self._volume.read(offset, length)
        if not changed:
            return below
        content = bytearray(below)
        for page in changed:
            begin, stop = max(offset, page * _PAGE), min(offset + length, (page + 1) * _PAGE)
            content[begin - offset : stop - offset] = self._page(page)[begin - page * _PAGE : stop - page * _PAGE]
        return bytes(content)

    def _place(self, place: int, length: int) -> int:
        if not 0 <= place <= place + length <= self.size:
            raise GuestDamaged("its log changes what is outside of the volume")
        return place

    def _mark(self, place: int, length: int) -> None:
        self._changed.update(range(place // _PAGE, -(-(place + length) // _PAGE)))

    def _page(self, number: int) -> bytes:
        """A page with all that is laid over it."""
        found = self._pages.get(number)
        if found is None:
            found = self._pages[number] = self._laid_over(number)
            if len(self._pages) > _KEPT:
                self._pages.popitem(last=False)
        else:
            self._pages.move_to_end(number)
        return found

    def _laid_over(self, number: int) -> bytes:
        start, size = number * _PAGE, self._superblock.inode_size
        page = bytearray(self._volume.read(start, min(_PAGE, self.size - start)))
        for index in range(_PAGE // CHUNK):
            chunk = self._chunks.get(start // CHUNK + index)
            if chunk is not None:
                page[index * CHUNK : (index + 1) * CHUNK] = chunk
        for at in range(0, _PAGE, size):
            inode = self._inodes.get(start + at)
            if inode is not None:
                page[at : at + size] = inode.over(bytes(page[at : at + size]))
        return bytes(page)
