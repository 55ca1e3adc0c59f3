# SPDX-License-Identifier: AGPL-3.0-or-later
"""A tree of Btrfs and its changes while its log is replayed: items by key, put and removed; with an end to what is asked."""

from __future__ import annotations

from typing import Final

from everywhen.formats.filesystems.btrfs import INODE, Key
from everywhen.guest.btrfs_trees import BtrfsDevices, Tree
from everywhen.guest.errors import GuestDamaged, GuestLimit

_MOST_ASKED: Final = 1_500_000
"""Items, some 30 s. A log that synced 50,000 new files asks for a third of it."""
_MOST_BYTES: Final = 256 << 20


class TreeView:
    """Raises GuestError, FormatError."""

    def __init__(self, devices: BtrfsDevices, tree: Tree) -> None:
        if tree.changes is None:
            raise GuestDamaged("a tree that cannot be changed")
        self._devices = devices
        self._tree = tree
        self._changes = tree.changes
        self._asked = 0
        self.sector_size = devices.superblock.sector_size

    def inode(self, number: int) -> bytes | None:
        """None if it is not there."""
        return self.get(Key(number, INODE, 0))

    def get(self, key: Key) -> bytes | None:
        """The item of exactly this key."""
        self._count(1)
        return self._devices.get(self._tree, key)

    def of(self, number: int, kind: int, offset: int = 0) -> list[tuple[Key, bytes]]:
        """The items of one object and kind from an offset on: all at once, since they are changed meanwhile."""
        found = []
        for item in self._devices.of(self._tree, number, kind, offset):
            self._count(1)
            found.append(item)
        return found

    def from_before(self, first: Key) -> list[tuple[Key, bytes]]:
        """The items of the same object and kind from the last one not behind this key on."""
        found = []
        for item in self._devices.items(self._tree, first):
            self._count(1)
            if item[0][:2] > first[:2]:
                break
            if item[0][:2] == first[:2]:
                found.append(item)
        return found

    def put(self, key: Key, data: bytes) -> None:
        """Another content of an item, or a new one."""
        self._changes.put(key, data)
        if self._changes.bytes > _MOST_BYTES:
            raise GuestLimit("the log changes more than any does")

    def remove(self, key: Key) -> None:
        """An item is no more."""
        self._changes.remove(key)

    def _count(self, items: int) -> None:
        self._asked += items
        if self._asked > _MOST_ASKED:
            raise GuestLimit("the log takes more work than any does")
