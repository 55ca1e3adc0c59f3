# SPDX-License-Identifier: AGPL-3.0-or-later
"""The log trees of Btrfs: what was synced since the last commit, by subvolume (layouts: formats/filesystems/btrfs_log.py).

A log tree has copies of items of a subvolume's tree, as they were when files were synced, and says of which parts of folders
it has all entries. They are all of the generation after that of the superblock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from everywhen.formats.errors import FormatError
from everywhen.formats.filesystems import btrfs, btrfs_log
from everywhen.formats.filesystems.btrfs import DEEPEST_TREE, BtrfsNode, Key
from everywhen.guest.btrfs_trees import BtrfsDevices, Tree
from everywhen.guest.errors import GuestDamaged, GuestLimit
from everywhen.guest.reading import piece

_MOST_NODES: Final = 1 << 14
"""256 MiB in nodes of 16 KiB; a sum takes 2 ms."""
_MOST_ITEMS: Final = 300_000
_KINDS: Final = frozenset(
    {
        btrfs.INODE,
        btrfs_log.REFERENCE,
        btrfs_log.LONG_REFERENCE,
        btrfs.XATTR,
        btrfs_log.RANGE,
        btrfs.DIR_INDEX,
        btrfs.EXTENT_DATA,
    }
)
Log = dict[Key, bytes]
"""Items of a subvolume, in their order."""


class BtrfsLogs:
    """Reads them all. Raises GuestError, FormatError."""

    def __init__(self, devices: BtrfsDevices) -> None:
        head = devices.superblock
        volume = devices.devices[head.device]
        raw = piece(volume, btrfs.SUPERBLOCK_PLACE, btrfs.SUPERBLOCK_BYTES, "the superblock")
        address, level, self._sums = btrfs_log.log_root(raw)
        self._devices = devices
        self._nodes = self._items = 0
        if level >= DEEPEST_TREE:
            raise GuestDamaged(f"the log has {level} levels")
        self.found: dict[int, Log] = {}
        for key, data in list(self._all(Tree(address, level))):
            if (key.object, key.kind) == (btrfs_log.LOG_TREE, btrfs.ROOT):
                _folder, root, depth = btrfs.decode_root(data)
                self.found[key.offset] = self._log(Tree(root, depth))

    def _log(self, tree: Tree) -> Log:
        log: Log = {}
        for key, data in self._all(tree):
            if key.kind in _KINDS:
                log[key] = data
                self._items += 1
                if self._items > _MOST_ITEMS:
                    raise GuestLimit(f"the log has more than {_MOST_ITEMS:,} items")
        return log

    def _all(self, tree: Tree) -> Iterator[tuple[Key, bytes]]:
        last = Key(-1, 0, 0)
        for key, data in self._below(tree.address, tree.level):
            if key <= last:
                raise GuestDamaged("the log has items that are not in order")
            last = key
            yield key, data

    def _below(self, address: int, level: int) -> Iterator[tuple[Key, bytes]]:
        node = self._node(address, level)
        for index, key in enumerate(node.keys):
            if level:
                yield from self._below(node.addresses[index], level - 1)
            else:
                yield key, node.data[index]

    def _node(self, address: int, level: int) -> BtrfsNode:
        """A node, checked; where its first copy is damaged the other one."""
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise GuestLimit(f"the log has more than {_MOST_NODES:,} nodes")
        try:
            return self._copy(address, level, 0)
        except (FormatError, GuestDamaged):
            return self._copy(address, level, 1)

    def _copy(self, address: int, level: int, copy: int) -> BtrfsNode:
        head = self._devices.superblock
        block = self._devices.read(address, head.node_size, copy)
        btrfs_log.check_log_node(block, head.generation + 1, self._sums)
        return btrfs.decode_node(block, address, level)
