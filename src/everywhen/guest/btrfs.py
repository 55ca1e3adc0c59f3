# SPDX-License-Identifier: AGPL-3.0-or-later
"""Btrfs, read by our own code: its root is the top of all subvolumes, which are folders in it.

dissect.btrfs 1.10 follows trees wherever their branches lead, unpacks zlib to whatever size it comes to, takes the first of
several names with the same hash, and has no attributes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from uuid import UUID

from everywhen.formats.filesystems import btrfs
from everywhen.formats.filesystems.btrfs import BtrfsEntry, BtrfsInode, Key
from everywhen.guest.btrfs_changes import Changes
from everywhen.guest.btrfs_content import BtrfsContent
from everywhen.guest.btrfs_replay import replay
from everywhen.guest.btrfs_trees import BtrfsDevices, Tree
from everywhen.guest.errors import GuestDamaged, GuestError, NoSuchPath, parsing
from everywhen.guest.listed_folders import demand_file, demand_folder
from everywhen.guest.modes import kind_of
from everywhen.guest.names import from_bytes, name_error, shown, to_bytes
from everywhen.guest.tree import Content, Entry, Kind, Readable, Span, Stream, Times, Unreadable

_LONGEST_TARGET = 4096
_FIRST_INDEX = 2
_DEFAULT = b"default"


class BtrfsFileSystem:
    """A FileSystem (guest/tree.py) of Btrfs, over the devices of it that are here."""

    kind = "btrfs"
    local_times = False
    case_sensitive = True

    def __init__(self, volume: Readable, others: list[Readable]) -> None:
        with parsing("this Btrfs"):
            self._devices = BtrfsDevices([volume, *others])
            head = self._devices.superblock
            self._trees: dict[int, tuple[Tree, int]] = {}
            self._changes, problem = _replayed(self._devices)
            self.label = from_bytes(head.label)
            self.uuid = str(UUID(bytes=head.uuid))
            self.root = self._entry("", btrfs.TOP_LEVEL, self._subvolume(btrfs.TOP_LEVEL)[1])
        notes = list(problem)
        if len(self._devices.devices) < head.devices:
            here = len(self._devices.devices)
            notes.append(f"Of its {head.devices} devices {here} are here: what is on others is not to be had.")
        self.notes = tuple(notes)

    def entries(self, folder: Entry) -> Iterator[Entry | Unreadable]:
        with parsing(folder.name or "/"):
            tree = self._folder(folder)
            for _key, data in self._devices.of(tree, folder.number, btrfs.DIR_INDEX, _FIRST_INDEX):
                for one in btrfs.decode_entries(data):
                    yield self._shown(one, folder.subvolume)

    def child(self, folder: Entry, name: str) -> Entry:
        with parsing(name):
            tree, wanted = self._folder(folder), to_bytes(name)
            if wanted is not None and not name_error(name):
                key = Key(folder.number, btrfs.DIR_ITEM, btrfs.name_hash(wanted))
                for one in btrfs.decode_entries(self._devices.get(tree, key) or b""):
                    if one.name == wanted:
                        return self._named(one, folder.subvolume)
        raise NoSuchPath(name, folder.name or "/")

    def open(self, entry: Entry, stream: str = "") -> Content:
        demand_file(entry, stream)
        with parsing(entry.name):
            return self._content(entry.subvolume, entry.number, entry.name)

    def streams(self, entry: Entry) -> tuple[Stream, ...]:
        del entry  # there are none in this file system
        return ()

    def attributes(self, entry: Entry) -> dict[str, bytes]:
        with parsing(f"the attributes of {entry.name or '/'}"):
            tree = self._subvolume(entry.subvolume)[0]
            found: dict[str, bytes] = {}
            for _key, data in self._devices.of(tree, entry.number, btrfs.XATTR):
                found |= {from_bytes(one.name): one.value for one in btrfs.decode_entries(data)}
            return found

    def metadata(self, entry: Entry) -> tuple[Span, ...]:
        del entry  # they are copied with every change
        return ()

    def subvolume(self, number: int | None) -> Entry:
        with parsing("the subvolumes of this Btrfs"):
            number = self._default() if number is None else number
            if number in (0, btrfs.TOP_LEVEL):
                return self.root
            return self._entry("", number, self._subvolume(number)[1])

    def _default(self) -> int:
        """The subvolume that is mounted when none is said: an entry of a folder that only the tree of roots has."""
        head = self._devices.superblock
        key = Key(btrfs.ROOTS_FOLDER, btrfs.DIR_ITEM, btrfs.name_hash(_DEFAULT))
        found = btrfs.decode_entries(self._devices.get(Tree(head.root, head.root_level), key) or b"")
        return next((one.key.object for one in found if one.name == _DEFAULT), btrfs.TOP_LEVEL)

    def _subvolume(self, number: int) -> tuple[Tree, int]:
        """The tree of a subvolume, and the inode of its folder."""
        found = self._trees.get(number)
        if found is None:
            head = self._devices.superblock
            roots = self._devices.of(Tree(head.root, head.root_level), number, btrfs.ROOT)
            data = next((data for _key, data in roots), None)
            if data is None:
                raise GuestDamaged(f"the subvolume {number} is not there")
            folder, address, level = btrfs.decode_root(data)
            found = self._trees[number] = Tree(address, level, self._changes.get(number)), folder
        return found

    def _folder(self, folder: Entry) -> Tree:
        demand_folder(folder)
        return self._subvolume(folder.subvolume)[0]

    def _shown(self, one: BtrfsEntry, subvolume: int) -> Entry | Unreadable:
        return shown(from_bytes(one.name), lambda: self._named(one, subvolume))

    def _named(self, one: BtrfsEntry, subvolume: int) -> Entry:
        if one.key.kind == btrfs.ROOT:
            return self._of_subvolume(from_bytes(one.name), subvolume, one.key.object)
        return self._entry(from_bytes(one.name), subvolume, one.key.object)

    def _of_subvolume(self, name: str, parent: int, number: int) -> Entry:
        """A subvolume within another one; in a snapshot of that one an empty folder stands in its place, as in Linux."""
        head = self._devices.superblock
        if self._devices.get(Tree(head.root, head.root_level), Key(parent, btrfs.ROOT_REF, number)) is None:
            return Entry(name=name, kind=Kind.FOLDER, number=-number, size=0, mode=0o755, uid=0, gid=0, subvolume=parent)
        return self._entry(name, number, self._subvolume(number)[1])

    def _inode(self, subvolume: int, number: int) -> BtrfsInode:
        data = self._devices.get(self._subvolume(subvolume)[0], Key(number, btrfs.INODE, 0))
        if data is None:
            raise GuestDamaged(f"inode {number} of subvolume {subvolume} is not there")
        return btrfs.decode_inode(data)

    def _content(self, subvolume: int, number: int, what: str) -> Content:
        inode = self._inode(subvolume, number)
        if inode.size >= 1 << 63:
            raise GuestDamaged(f"{what}: {inode.size} bytes")
        return BtrfsContent(self._devices, self._subvolume(subvolume)[0], number, inode.size, what)

    def _entry(self, name: str, subvolume: int, number: int) -> Entry:
        inode = self._inode(subvolume, number)
        kind = kind_of(inode.mode, number)
        target = None
        if kind is Kind.LINK:
            target = from_bytes(self._content(subvolume, number, name).read(0, min(inode.size, _LONGEST_TARGET)))
        is_device = kind in (Kind.BLOCK_DEVICE, Kind.CHARACTER_DEVICE)
        return Entry(
            name=name,
            kind=kind,
            number=number,
            size=inode.size if kind in (Kind.FILE, Kind.FOLDER, Kind.LINK) else 0,
            times=Times(inode.modified, inode.changed, inode.accessed, inode.created),
            mode=stat.S_IMODE(inode.mode),
            uid=inode.uid,
            gid=inode.gid,
            links=inode.links,
            allocated=inode.bytes,
            target=target,
            device=(inode.device >> 20 & 0xFFF, inode.device & 0xFFFFF) if is_device else None,
            subvolume=subvolume,
        )


def _replayed(devices: BtrfsDevices) -> tuple[dict[int, Changes], tuple[str, ...]]:
    """What the log lays over each subvolume, or why nothing."""
    if not devices.superblock.log_root:
        return {}, ()
    try:
        with parsing("its log"):
            return replay(devices), ()
    except GuestError as error:
        return {}, (f"Its log cannot be replayed: {error}. The last files that were synced may be missing.",)
