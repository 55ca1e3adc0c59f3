# SPDX-License-Identifier: AGPL-3.0-or-later
"""Contents of files of Btrfs: stored, packed, in the tree itself, or nowhere. What is unpacked at once is bounded."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterator

from everywhen.formats.errors import Corrupt
from everywhen.formats.filesystems import btrfs
from everywhen.formats.filesystems.btrfs import BtrfsExtent, Key
from everywhen.formats.zstd import decompress_first
from everywhen.guest.btrfs_trees import BtrfsDevices, Tree
from everywhen.guest.errors import GuestDamaged, GuestUnsupported, parsing
from everywhen.guest.tree import Run, Span

_LARGEST_PACKED = 1 << 20
"""The kernel packs 128 KiB at a time."""
_KEPT = 8
_ZLIB, _LZO, _ZSTD = 1, 2, 3


class BtrfsContent:
    """A Content (guest/tree.py) of one inode."""

    def __init__(self, devices: BtrfsDevices, tree: Tree, number: int, size: int, what: str) -> None:
        self._devices = devices
        self._tree = tree
        self._number = number
        self._size = size
        self._what = what
        self._unpacked: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._size)
        parts, at = [], offset
        with parsing(self._what):
            for start, extent in self._extents(offset):
                if start >= end or at >= end:
                    break
                if start > at:
                    parts.append(bytes(start - at))
                    at = start
                stop = min(start + extent.length, end)
                if stop > at:
                    parts.append(self._bytes(extent, at - start, stop - start))
                    at = stop
        parts.append(bytes(max(0, end - at)))
        return b"".join(parts)

    def runs(self) -> Iterator[Run]:
        at = 0
        with parsing(self._what):
            for start, extent in self._extents(0):
                start = max(start, at)
                if start >= self._size:
                    break
                if start > at:
                    yield Run(at, start - at, zero=True)
                end = min(start + extent.length, self._size)
                yield from self._stored(extent, start, end - start)
                at = end
        if at < self._size:
            yield Run(at, self._size - at, zero=True)

    def _extents(self, offset: int) -> Iterator[tuple[int, BtrfsExtent]]:
        """The extents of the content in order from the one at `offset` on, and where each begins."""
        end = 0
        for key, data in self._devices.items(self._tree, Key(self._number, btrfs.EXTENT_DATA, offset)):
            if (key.object, key.kind) < (self._number, btrfs.EXTENT_DATA):
                continue
            if (key.object, key.kind) != (self._number, btrfs.EXTENT_DATA):
                return
            extent = btrfs.decode_extent(data)
            if key.offset < end:
                raise GuestDamaged("its extents overlap")
            end = key.offset + extent.length
            if end > offset:
                yield key.offset, extent

    def _stored(self, extent: BtrfsExtent, start: int, length: int) -> Iterator[Run]:
        if extent.kind == btrfs.UNWRITTEN or (extent.kind != btrfs.INLINE and not extent.address):
            yield Run(start, length, zero=True)
        elif extent.kind == btrfs.INLINE or len(self._devices.devices) > 1:
            yield Run(start, length, zero=False)
        elif extent.compression:
            _device, place, here = self._devices.place(extent.address)
            yield Run(start, length, zero=False, stored=Span(place, extent.stored) if here >= extent.stored else None)
        else:
            address = extent.address + extent.begin
            while length > 0:
                _device, place, here = self._devices.place(address)
                here = min(here, length)
                yield Run(start, here, zero=False, stored=Span(place, here))
                address, start, length = address + here, start + here, length - here

    def _bytes(self, extent: BtrfsExtent, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end` of an extent's part of the content."""
        if extent.encryption:
            raise GuestUnsupported(f"{self._what}: encrypted")
        if extent.kind == btrfs.INLINE:
            content = extent.inline
            if extent.compression:
                content = _unpack(extent, content, self._devices.superblock.sector_size)
            return content[begin:end].ljust(end - begin, b"\0")
        if extent.kind == btrfs.UNWRITTEN or not extent.address:
            return bytes(end - begin)
        if not extent.compression:
            return self._devices.read(extent.address + extent.begin + begin, end - begin)
        return self._packed(extent)[extent.begin + begin : extent.begin + end].ljust(end - begin, b"\0")

    def _packed(self, extent: BtrfsExtent) -> bytes:
        key = extent.address, extent.unpacked
        found = self._unpacked.get(key)
        if found is None:
            if max(extent.unpacked, extent.stored) > _LARGEST_PACKED:
                raise GuestDamaged(f"{self._what}: {extent.unpacked} bytes packed into {extent.stored}, more than there can be")
            packed = self._devices.read(extent.address, extent.stored)
            found = self._unpacked[key] = _unpack(extent, packed, self._devices.superblock.sector_size)
            if len(self._unpacked) > _KEPT:
                self._unpacked.popitem(last=False)
        return found


def _unpack(extent: BtrfsExtent, packed: bytes, sector: int) -> bytes:
    """At most as many bytes as the extent says it has. Raises GuestUnsupported, Corrupt."""
    longest = min(extent.unpacked, _LARGEST_PACKED)
    if extent.compression == _ZLIB:
        try:
            return zlib.decompressobj().decompress(packed, max(longest, 1))
        except zlib.error as error:
            raise Corrupt(f"an extent of Btrfs: {error}") from error
    if extent.compression == _ZSTD:
        return decompress_first(packed, longest)
    if extent.compression == _LZO:
        return _unpack_lzo(packed, sector, longest)
    raise GuestUnsupported(f"an extent of Btrfs with the compression {extent.compression}")


def _unpack_lzo(packed: bytes, sector: int, longest: int) -> bytes:
    """u32 length of all, then pieces of a sector each: u32 length, LZO1X. A length never lies across the end of a sector."""
    from dissect.util.compression import lzo  # only few files have it, and it is not quick to load

    total = min(int.from_bytes(packed[:4], "little"), len(packed))
    at, parts, done = 4, [], 0
    while at + 4 <= total and done < longest:
        if sector - at % sector < 4:
            at += sector - at % sector
        length = int.from_bytes(packed[at : at + 4], "little")
        at += 4
        if not length or length > 2 * sector or at + length > len(packed):
            raise Corrupt("an extent of Btrfs whose pieces do not fit into it")
        parts.append(bytes(lzo.decompress(packed[at : at + length], False, sector)))
        done += len(parts[-1])
        at += length
    return b"".join(parts)[:longest]
