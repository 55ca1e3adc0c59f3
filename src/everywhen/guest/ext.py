# SPDX-License-Identifier: AGPL-3.0-or-later
"""ext2, ext3 and ext4, read by our own code.

dissect.extfs 3.15 refuses bigalloc and does not know meta_bg nor folders and contents that go on behind their inode (inline
data); it keeps whole folders and maps of blocks in memory, of whatever size they claim to be, and follows trees of extents
wherever they lead.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from uuid import UUID

from everywhen.formats.errors import FormatError
from everywhen.formats.filesystems import ext, ext_attributes
from everywhen.guest.content import all_said
from everywhen.guest.errors import GuestDamaged, GuestLimit, parsing
from everywhen.guest.ext_inodes import ExtInodes, refuse_encrypted
from everywhen.guest.listed_folders import ListedFolders, demand_file
from everywhen.guest.modes import kind_of
from everywhen.guest.names import from_bytes
from everywhen.guest.tree import Content, Entry, Kind, Readable, Span, Times, Unreadable

_LONGEST_TARGET = 4096
_FAST_TARGET = 60


class ExtFileSystem(ListedFolders[tuple[int, bytes]]):
    """A FileSystem (guest/tree.py) of ext2, ext3 or ext4."""

    local_times = False
    case_sensitive = True

    def __init__(self, volume: Readable) -> None:
        super().__init__()
        with parsing("this file system of ext"):
            self._inodes = ExtInodes(volume)
            head = self._inodes.superblock
            self.kind = head.kind
            self.label = from_bytes(head.label)
            self.uuid = str(UUID(bytes=head.uuid)) if any(head.uuid) else ""
            self.root = self._entry("", ext.ROOT)
        self.notes: tuple[str, ...] = ()
        if head.incompatible & ext.RECOVER:
            self.notes = ("It was not unmounted, and its journal is not replayed: the last changes may be missing.",)

    def open(self, entry: Entry, stream: str = "") -> Content:
        demand_file(entry, stream)
        with parsing(entry.name):
            inode = self._inodes.get(entry.number)
            refuse_encrypted(inode, entry.name)
            return self._inodes.content(entry.number, inode, entry.name)

    def attributes(self, entry: Entry) -> dict[str, bytes]:
        with parsing(f"the attributes of {entry.name or '/'}"):
            found = self._inodes.attributes(entry.number, self._inodes.get(entry.number))
            return {name: value for name, value in found.items() if name != ext_attributes.DATA}

    def metadata(self, entry: Entry) -> tuple[Span, ...]:
        with parsing(entry.name or "/"):
            own = Span(self._inodes.place(entry.number), self._inodes.superblock.inode_size)
            inode = self._inodes.get(entry.number)
            if entry.kind is not Kind.FILE and entry.kind is not Kind.FOLDER:
                return (own,)
            return (own, *all_said(self._inodes.map_blocks(inode), entry.name))

    def _name(self, record: tuple[int, bytes]) -> str:
        return from_bytes(record[1])

    def _made(self, name: str, record: tuple[int, bytes]) -> Entry:
        return self._entry(name, record[0])

    def _entry(self, name: str, number: int) -> Entry:
        inode = self._inodes.get(number)
        kind = kind_of(inode.mode, number)
        target = self._target(number, inode, name) if kind is Kind.LINK else None
        has_high_size = kind is Kind.FILE or self._inodes.superblock.incompatible & ext.LARGE_DIR
        size = inode.size if has_high_size else inode.size & 0xFFFFFFFF
        unit = self._inodes.superblock.block_size if inode.flags & ext.HUGE else 512
        return Entry(
            name=name,
            kind=kind,
            number=number,
            size=size if kind in (Kind.FILE, Kind.FOLDER, Kind.LINK) else 0,
            times=Times(inode.modified, inode.changed, inode.accessed, inode.created),
            mode=stat.S_IMODE(inode.mode),
            uid=inode.uid,
            gid=inode.gid,
            links=inode.links,
            allocated=inode.blocks * unit,
            target=target,
            device=_device(inode.block_map) if kind in (Kind.BLOCK_DEVICE, Kind.CHARACTER_DEVICE) else None,
        )

    def _target(self, number: int, inode: ext.ExtInode, name: str) -> str:
        refuse_encrypted(inode, name)
        if inode.size > _LONGEST_TARGET:
            raise GuestDamaged(f"a link with a target of {inode.size} bytes")
        if inode.size < _FAST_TARGET and not inode.flags & (ext.EXTENTS | ext.INLINE):
            return from_bytes(inode.block_map[: inode.size])
        return from_bytes(self._inodes.content(number, inode, name).read(0, inode.size).rstrip(b"\0"))

    def _records(self, folder: Entry) -> Iterator[tuple[int, bytes] | Unreadable]:
        """Inode and name of all in a folder but `.` and `..`; a block that makes no sense is an Unreadable without a name."""
        inode = self._inodes.get(folder.number)
        refuse_encrypted(inode, folder.name)
        for block in self._blocks(folder, inode):
            try:
                for number, name in ext.decode_folder(block, with_kind=self._with_kind):
                    if name not in (b".", b".."):
                        yield number, name
            except FormatError as error:
                yield Unreadable("", GuestDamaged(f"{folder.name or '/'}: {error}; what follows it in its block is not listed"))

    @property
    def _with_kind(self) -> bool:
        return bool(self._inodes.superblock.incompatible & ext.FILETYPE)

    def _blocks(self, folder: Entry, inode: ext.ExtInode) -> Iterator[bytes]:
        """The blocks of a folder that are stored. The index (htree) looks empty to who reads them in order."""
        content = self._inodes.content(folder.number, inode, folder.name or "/")
        if inode.flags & ext.INLINE:
            # The first four bytes are the parent's inode; what is beyond the inode's map is a second block.
            yield content.read(4, len(inode.block_map) - 4)
            yield content.read(len(inode.block_map), content.size)
            return
        size, room = self._inodes.superblock.block_size, self._inodes.volume.size
        for run in content.runs():
            if run.zero or run.start >= folder.size:
                continue
            room -= run.length
            if room < 0:
                raise GuestLimit(f"{folder.name or '/'}: a folder larger than its volume")
            for at in range(run.start, min(run.end, folder.size), size):
                yield content.read(at, size)


def _device(block_map: bytes) -> tuple[int, int]:
    """Major and minor number, in the old spelling or the new one."""
    old = int.from_bytes(block_map[0:4], "little")
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    new = int.from_bytes(block_map[4:8], "little")
    return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00
