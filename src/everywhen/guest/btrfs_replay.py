# SPDX-License-Identifier: AGPL-3.0-or-later
"""A subvolume of Btrfs with its log replayed, without a write: what comes of it is laid over its tree (`btrfs_changes.py`).

The order is the kernel's, and so are the rules: inodes first, with what the log says is no longer there; then entries of
folders; then references, which bring names along, attributes and extents; last the numbers of names. Nothing is done for free
space, checksums of contents, and inodes that have no name any more: no reader of files looks at them.

Source: kernel, fs/btrfs/tree-log.c (`replay_one_buffer` and what it calls).
"""

from __future__ import annotations

import stat
from typing import Final

from everywhen.formats.filesystems import btrfs, btrfs_log
from everywhen.formats.filesystems.btrfs import DIR_INDEX, EXTENT_DATA, INODE, XATTR, BtrfsEntry, Key
from everywhen.formats.filesystems.btrfs_log import LONG_REFERENCE, RANGE, REFERENCE
from everywhen.guest.btrfs_changes import Changes
from everywhen.guest.btrfs_extents import drop_extents, used_bytes
from everywhen.guest.btrfs_log import BtrfsLogs, Log
from everywhen.guest.btrfs_names import Names
from everywhen.guest.btrfs_trees import BtrfsDevices, Tree
from everywhen.guest.btrfs_view import TreeView
from everywhen.guest.errors import GuestDamaged

_LAST: Final = (1 << 64) - 1


def replay(devices: BtrfsDevices) -> dict[int, Changes]:
    """The changes of each subvolume that has a log. Raises GuestError, FormatError; nothing is to be laid over then."""
    head = devices.superblock
    roots = Tree(head.root, head.root_level)
    found: dict[int, Changes] = {}
    for number, log in BtrfsLogs(devices).found.items():
        data = next((data for _key, data in devices.of(roots, number, btrfs.ROOT)), None)
        if data is not None:  # else it was deleted
            _folder, address, level = btrfs.decode_root(data)
            found[number] = Changes()
            _Replay(TreeView(devices, Tree(address, level, found[number])), log).run()
    return found


class _Replay:
    """Of one subvolume."""

    def __init__(self, tree: TreeView, log: Log) -> None:
        self._tree = tree
        gone = {key.object for key, data in log.items() if key.kind == INODE and not btrfs_log.links_of(data)}
        self._log = {key: data for key, data in log.items() if key.object not in gone}
        self._names = Names(tree)
        self._resized: set[int] = set()

    def run(self) -> None:
        """All of it."""
        for key, data in self._log.items():
            if key.kind == INODE:
                self._inode(key.object, data)
        for key, data in self._log.items():
            if key.kind == DIR_INDEX:
                for entry in btrfs.decode_entries(data):
                    self._entry(key, entry)
        for key, data in self._log.items():
            if key.kind in (REFERENCE, LONG_REFERENCE):
                self._references(key, data)
            elif key.kind == XATTR:
                self._tree.put(key, data)
            elif key.kind == EXTENT_DATA:
                self._extent(key, data)
        self._names.count_links()
        for number in self._resized:
            inode = self._tree.inode(number)
            if inode is not None:
                self._tree.put(Key(number, INODE, 0), btrfs_log.with_bytes(inode, used_bytes(self._tree, number)))

    def _inode(self, number: int, data: bytes) -> None:
        mode = btrfs_log.mode_of(data)
        self._drop_attributes(number)
        old = self._tree.inode(number)
        if stat.S_ISDIR(mode) and old is not None:
            self._drop_entries(number)
            old = self._tree.inode(number)
        key = Key(number, INODE, 0)
        if old is None:
            self._tree.put(key, btrfs_log.with_size(data, 0) if stat.S_ISDIR(mode) else data)
        elif btrfs_log.names_only(data):
            size = btrfs_log.size_of(data)
            if size and stat.S_ISREG(mode) and stat.S_ISREG(btrfs_log.mode_of(old)):
                self._tree.put(key, btrfs_log.with_size(old, size))
        elif stat.S_ISDIR(mode) and stat.S_ISDIR(btrfs_log.mode_of(old)):
            self._tree.put(key, btrfs_log.with_size(data, btrfs_log.size_of(old)))
        else:
            self._tree.put(key, data)
        if stat.S_ISREG(mode):
            sector = self._tree.sector_size
            size = btrfs_log.size_of(self._tree.inode(number) or data)
            drop_extents(self._tree, number, -(-size // sector) * sector, _LAST)
            self._resized.add(number)
        self._names.changed.add(number)

    def _drop_attributes(self, number: int) -> None:
        """Those that are not in the log, which has all of an inode."""
        for key, data in self._tree.of(number, XATTR):
            logged = {one.name for one in btrfs.decode_entries(self._log.get(key, b""))}
            if not {one.name for one in btrfs.decode_entries(data)} <= logged:
                self._tree.remove(key)  # what the log has at this key is put there later

    def _drop_entries(self, folder: int) -> None:
        """Those in the ranges of which the log has all, and that it has not."""
        for key, data in self._log.items():
            if (key.object, key.kind) != (folder, RANGE):
                continue
            last = btrfs_log.decode_range(data)
            for found, entries in self._tree.of(folder, DIR_INDEX, key.offset):
                if found.offset > last:
                    break
                logged = {one.name for one in btrfs.decode_entries(self._log.get(found, b""))}
                for one in btrfs.decode_entries(entries):
                    if one.name not in logged:
                        self._names.unlink(folder, one.key.object, one.name)

    def _entry(self, key: Key, entry: BtrfsEntry) -> None:
        folder = key.object
        if self._tree.inode(folder) is None:
            raise GuestDamaged(f"the log has entries of the folder {folder}, which is not there")
        exists = entry.key.kind == INODE and self._tree.inode(entry.key.object) is not None
        same = 0
        for there in (self._names.by_name(folder, entry.name), self._names.by_index(key, entry.name)):
            if there is not None and there.key == entry.key:
                same += 1
            elif there is not None and exists:
                self._names.unlink(folder, there.key.object, entry.name)
        if same == 2 or not exists or self._is_referred_to(entry.key.object, folder, entry.name):
            return  # with a reference in the log the name comes with that
        self._names.link(folder, entry.key.object, entry.name, key.offset, refer=True)

    def _is_referred_to(self, number: int, folder: int, name: bytes) -> bool:
        """Whether the log has a reference of this inode to this name."""
        for key in (Key(number, REFERENCE, folder), btrfs_log.long_reference_key(number, folder, name)):
            references = btrfs_log.decode_references(key, self._log.get(key, b""))
            if any((one.folder, one.name) == (folder, name) for one in references):
                return True
        return False

    def _references(self, key: Key, data: bytes) -> None:
        number = key.object
        references = btrfs_log.decode_references(key, data)
        if key.kind == REFERENCE and self._tree.inode(key.offset) is None:
            return  # its folder was not logged
        if self._tree.inode(number) is None:
            raise GuestDamaged(f"the log has names of inode {number}, which is not there")
        for one in references:
            if self._tree.inode(one.folder) is None or self._names.is_in_folder(number, one):
                continue
            if number == one.folder:
                return  # the top of the subvolume
            self._make_room(number, one)
            self._names.link(one.folder, number, one.name, one.at, refer=False)
        kept = {(one.folder, one.name) for one in references}
        for one in btrfs_log.decode_references(key, self._tree.get(key) or b""):
            if (one.folder, one.name) not in kept and self._tree.inode(one.folder) is not None:
                self._names.unlink(one.folder, number, one.name)
        self._tree.put(key, data)

    def _make_room(self, number: int, new: btrfs_log.Reference) -> None:
        """Names of this inode in that folder that are not in the log go, and so does what has the new name."""
        short, long = Key(number, REFERENCE, new.folder), btrfs_log.long_reference_key(number, new.folder, new.name)
        for key in (short, long):
            for one in btrfs_log.decode_references(key, self._tree.get(key) or b""):
                if not self._is_referred_to(number, one.folder, one.name) and self._tree.inode(one.folder) is not None:
                    self._names.unlink(one.folder, number, one.name)
        at_index = self._names.by_index(Key(new.folder, DIR_INDEX, new.at), new.name)
        if at_index is not None:
            self._names.unlink(new.folder, at_index.key.object, new.name)
        of_name = self._names.by_name(new.folder, new.name)
        if of_name is not None:
            self._names.unlink(new.folder, of_name.key.object, new.name)

    def _extent(self, key: Key, data: bytes) -> None:
        if self._tree.inode(key.object) is None:
            raise GuestDamaged(f"the log has content of inode {key.object}, which is not there")
        extent = btrfs.decode_extent(data)
        sector = self._tree.sector_size
        end = key.offset + extent.length
        if extent.kind == btrfs.INLINE:
            end = -(-end // sector) * sector
        drop_extents(self._tree, key.object, key.offset, end)
        self._tree.put(key, data)
        self._resized.add(key.object)
