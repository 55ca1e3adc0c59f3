# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names in a tree of Btrfs while its log is replayed. Each is in three places: an entry by hash, one by index, a reference."""

from __future__ import annotations

import stat

from everywhen.formats.filesystems import btrfs, btrfs_log
from everywhen.formats.filesystems.btrfs import DIR_INDEX, DIR_ITEM, INODE, BtrfsEntry, Key
from everywhen.formats.filesystems.btrfs_log import LONG_REFERENCE, REFERENCE, Reference
from everywhen.guest.btrfs_view import TreeView
from everywhen.guest.errors import GuestDamaged

_ENTRY = 30


class Names:
    """Raises GuestError, FormatError."""

    def __init__(self, tree: TreeView) -> None:
        self._tree = tree
        self.changed: set[int] = set()
        """Inodes whose names are to be counted."""

    def by_name(self, folder: int, name: bytes) -> BtrfsEntry | None:
        """The entry of this name."""
        return self._entry(Key(folder, DIR_ITEM, btrfs.name_hash(name)), name)

    def by_index(self, key: Key, name: bytes) -> BtrfsEntry | None:
        """The entry of this name with this index."""
        return self._entry(key, name)

    def is_in_folder(self, number: int, one: Reference) -> bool:
        """Whether the folder has exactly this name of the inode."""
        index = self.by_index(Key(one.folder, DIR_INDEX, one.at), one.name)
        name = self.by_name(one.folder, one.name)
        return index is not None and name is not None and index.key.object == name.key.object == number

    def link(self, folder: int, number: int, name: bytes, index: int, *, refer: bool) -> None:
        """A new name, with a reference if there is none that brings it along. Nothing if the name is there."""
        if self.by_name(folder, name) is not None:
            return
        entry = btrfs_log.encode_entry(number, btrfs_log.mode_of(self._inode(number)), name)
        key = Key(folder, DIR_ITEM, btrfs.name_hash(name))
        self._tree.put(key, (self._tree.get(key) or b"") + entry)
        self._tree.put(Key(folder, DIR_INDEX, index), entry)
        if refer:
            short = Key(number, REFERENCE, folder)
            references = btrfs_log.decode_references(short, self._tree.get(short) or b"")
            self._tree.put(short, btrfs_log.encode_references(short, [*references, Reference(folder, index, name)]))
        self._resize(folder, 2 * len(name))
        self.changed.add(number)

    def unlink(self, folder: int, number: int, name: bytes) -> None:
        """A name less."""
        index = self._forget(number, folder, name)
        self._without(Key(folder, DIR_ITEM, btrfs.name_hash(name)), name)
        self._without(Key(folder, DIR_INDEX, index), name)
        self._resize(folder, -2 * len(name))
        self.changed.add(number)

    def count_links(self) -> None:
        """Each inode has as many names as there are; what is in folders that have none is without a name, too."""
        while self.changed:
            number = self.changed.pop()
            inode = self._tree.inode(number)
            if inode is None:
                continue
            links = 0
            for kind in (REFERENCE, LONG_REFERENCE):
                links += sum(len(btrfs_log.decode_references(key, data)) for key, data in self._tree.of(number, kind))
            if links != btrfs_log.links_of(inode):
                self._tree.put(Key(number, INODE, 0), btrfs_log.with_links(inode, links))
            if not links and stat.S_ISDIR(btrfs_log.mode_of(inode)):
                for _key, data in self._tree.of(number, DIR_INDEX):
                    for one in btrfs.decode_entries(data):
                        self.unlink(number, one.key.object, one.name)

    def _entry(self, key: Key, name: bytes) -> BtrfsEntry | None:
        entries = btrfs.decode_entries(self._tree.get(key) or b"")
        return next((one for one in entries if one.name == name), None)

    def _forget(self, number: int, folder: int, name: bytes) -> int:
        """Removes the reference of a name; its index."""
        for key in (Key(number, REFERENCE, folder), btrfs_log.long_reference_key(number, folder, name)):
            references = btrfs_log.decode_references(key, self._tree.get(key) or b"")
            for one in references:
                if (one.folder, one.name) == (folder, name):
                    references.remove(one)
                    self._store(key, btrfs_log.encode_references(key, references))
                    return one.at
        raise GuestDamaged(f"inode {number} does not know of a name that the log removes")

    def _without(self, key: Key, name: bytes) -> None:
        """An item of entries without this one."""
        data, at, left = self._tree.get(key) or b"", 0, b""
        for one in btrfs.decode_entries(data):
            end = at + _ENTRY + len(one.name) + len(one.value)
            if one.name != name:
                left += data[at:end]
            at = end
        self._store(key, left)

    def _store(self, key: Key, data: bytes) -> None:
        if data:
            self._tree.put(key, data)
        else:
            self._tree.remove(key)

    def _resize(self, folder: int, more: int) -> None:
        inode = self._inode(folder)
        self._tree.put(Key(folder, INODE, 0), btrfs_log.with_size(inode, btrfs_log.size_of(inode) + more))

    def _inode(self, number: int) -> bytes:
        inode = self._tree.inode(number)
        if inode is None:
            raise GuestDamaged(f"the log names inode {number}, which is not there")
        return inode
