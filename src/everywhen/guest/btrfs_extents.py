# SPDX-License-Identifier: AGPL-3.0-or-later
"""Extents in a tree of Btrfs while its log is replayed: what is overwritten gives way, as in the kernel's drop_extents."""

from __future__ import annotations

from everywhen.formats.filesystems import btrfs
from everywhen.formats.filesystems.btrfs import EXTENT_DATA, INLINE, Key
from everywhen.formats.filesystems.btrfs_log import part_of_extent
from everywhen.guest.btrfs_view import TreeView
from everywhen.guest.errors import GuestDamaged


def drop_extents(tree: TreeView, number: int, start: int, end: int) -> None:
    """Bytes `start` to `end` of an inode are in no extent any more. Raises GuestError, FormatError."""
    for key, data in tree.from_before(Key(number, EXTENT_DATA, start)):
        if key.offset >= end:
            return
        extent = btrfs.decode_extent(data)
        until = key.offset + extent.length
        if until <= start:
            continue
        if extent.kind == INLINE and (start > key.offset or end < until):
            raise GuestDamaged(f"the log overwrites a part of what inode {number} has in the tree itself")
        if start > key.offset:
            tree.put(key, part_of_extent(data, 0, start - key.offset))
        else:
            tree.remove(key)
        if end < until:
            tree.put(Key(number, EXTENT_DATA, end), part_of_extent(data, end - key.offset, until - end))


def used_bytes(tree: TreeView, number: int) -> int:
    """Of all extents that are stored. Raises GuestError, FormatError."""
    extents = [btrfs.decode_extent(data) for _key, data in tree.of(number, EXTENT_DATA)]
    return sum(one.length for one in extents if one.kind == INLINE or one.address)
