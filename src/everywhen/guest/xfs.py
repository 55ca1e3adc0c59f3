# SPDX-License-Identifier: AGPL-3.0-or-later
"""XFS of versions 4 and 5, read by our own code.

dissect.xfs 3.13 gives what lies in extents that were never written, reads folders only where their blocks are the file
system's, has no attributes, and follows trees of extents wherever they lead.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from uuid import UUID

from everywhen.formats.errors import FormatError
from everywhen.formats.filesystems import xfs
from everywhen.guest.content import all_said
from everywhen.guest.errors import GuestDamaged, parsing
from everywhen.guest.listed_folders import ListedFolders, demand_file
from everywhen.guest.modes import kind_of
from everywhen.guest.names import from_bytes
from everywhen.guest.tree import Content, Entry, Kind, Readable, Span, Times, Unreadable
from everywhen.guest.xfs_inodes import XfsInodes


class XfsFileSystem(ListedFolders[tuple[int, bytes]]):
    """A FileSystem (guest/tree.py) of XFS."""

    kind = "xfs"
    local_times = False
    case_sensitive = True
    notes: tuple[str, ...] = ()

    def __init__(self, volume: Readable) -> None:
        super().__init__()
        with parsing("this XFS"):
            self._inodes = XfsInodes(volume)
            head = self._inodes.superblock
            self.label = from_bytes(head.label)
            self.uuid = str(UUID(bytes=head.uuid))
            self.root = self._entry("", head.root)

    def open(self, entry: Entry, stream: str = "") -> Content:
        demand_file(entry, stream)
        with parsing(entry.name):
            return self._inodes.content(entry.number, self._inodes.get(entry.number), entry.name)

    def attributes(self, entry: Entry) -> dict[str, bytes]:
        with parsing(f"the attributes of {entry.name or '/'}"):
            return self._inodes.attributes(self._inodes.get(entry.number))

    def metadata(self, entry: Entry) -> tuple[Span, ...]:
        with parsing(entry.name or "/"):
            head = self._inodes.superblock
            own = Span(head.inode_place(entry.number), head.inode_size)
            return (own, *all_said(self._inodes.nodes(self._inodes.get(entry.number)), entry.name))

    def _name(self, record: tuple[int, bytes]) -> str:
        return from_bytes(record[1])

    def _made(self, name: str, record: tuple[int, bytes]) -> Entry:
        return self._entry(name, record[0])

    def _entry(self, name: str, number: int) -> Entry:
        inode = self._inodes.get(number)
        kind = kind_of(inode.mode, number)
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
            allocated=inode.blocks * self._inodes.superblock.block_size,
            target=self._target(inode) if kind is Kind.LINK else None,
            device=_device(inode.fork) if is_device else None,
        )

    def _target(self, inode: xfs.XfsInode) -> str:
        if inode.format == xfs.LOCAL:
            return from_bytes(inode.fork[: inode.size])
        parts = self._inodes.link_parts(inode)
        if self._inodes.superblock.version == 5:
            return from_bytes(b"".join(xfs.decode_link_part(part) for part in parts)[: inode.size])
        return from_bytes(b"".join(parts)[: inode.size])

    def _records(self, folder: Entry) -> Iterator[tuple[int, bytes] | Unreadable]:
        """Inode and name of all in a folder but `.` and `..`; a block that makes no sense is an Unreadable without a name."""
        inode = self._inodes.get(folder.number)
        has_kinds = self._inodes.superblock.has_kinds
        if inode.format == xfs.LOCAL:
            yield from xfs.decode_short_folder(inode.fork, has_kinds=has_kinds)
            return
        for block in self._inodes.blocks(inode, inode.size):
            try:
                for number, name in xfs.decode_folder_block(block, has_kinds=has_kinds):
                    if name not in (b".", b".."):
                        yield number, name
            except FormatError as error:
                yield Unreadable("", GuestDamaged(f"{folder.name or '/'}: {error}; what follows it in its block is not listed"))


def _device(fork: bytes) -> tuple[int, int]:
    """Major and minor number, as System V has them: 14 and 18 bits."""
    number = int.from_bytes(fork[:4], "big")
    return number >> 18 & 0x3FFF, number & 0x3FFFF
