# SPDX-License-Identifier: AGPL-3.0-or-later
"""NTFS, read by our own code; dissect.util unpacks.

dissect.ntfs 3.16 knows no valid length, lists names in blocks of folders that are free, leaves out silently what it cannot
read, and reads lists of attributes of whatever size they claim to be.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterator

from everywhen.formats.filesystems import ntfs, ntfs_reparse
from everywhen.guest.errors import GuestDamaged, GuestError, GuestUnsupported, WrongKind, parsing
from everywhen.guest.listed_folders import ListedFolders
from everywhen.guest.ntfs_log import is_clean
from everywhen.guest.ntfs_packed import OverlayContent
from everywhen.guest.ntfs_records import NtfsFile, NtfsRecords
from everywhen.guest.tree import Content, Entry, Kind, Readable, Span, Stream, Times, Unreadable


class NtfsFileSystem(ListedFolders[ntfs.NtfsName]):
    """A FileSystem (guest/tree.py) of NTFS. Its own files (such as $MFT) are found by name, but not listed.

    What it calls extended attributes is kept for OS/2 alone: there are none.
    """

    kind = "ntfs"
    local_times = False
    case_sensitive = False

    def __init__(self, volume: Readable) -> None:
        super().__init__()
        with parsing("this NTFS"):
            self._table = NtfsRecords(volume)
            self.uuid = f"{self._table.boot.serial:016X}"
            self.root = self._entry("", self._table.get(ntfs.ROOT))
        self.label, clean = "", False
        try:
            with parsing("what this NTFS says of itself"):
                self.label = ntfs.text(self._table.get(ntfs.VOLUME).value(ntfs.VOLUME_NAME))
                clean = is_clean(self._table.content(self._table.get(ntfs.LOG), "$LogFile"))
        except GuestError as error:
            self.notes: tuple[str, ...] = (f"Whether it was unmounted cannot be told: {error}.",)
        else:
            note = "It was not unmounted, and its log is not replayed: the last changes may be missing."
            self.notes = () if clean else (note,)

    def open(self, entry: Entry, stream: str = "") -> Content:
        with parsing(f"{entry.name}:{stream}" if stream else entry.name):
            file = self._table.get(entry.number)
            if not file.pieces(ntfs.DATA, stream) or (entry.kind is not Kind.FILE and not stream):
                raise WrongKind(f"{entry.name}: {'no such stream' if stream else f'a {entry.kind} has no content'}")
            reparse = _reparse(file)
            if stream or reparse is None:
                return self._table.content(file, entry.name, stream)
            if reparse.tag == ntfs_reparse.WOF:
                packed = self._table.content(file, entry.name, ntfs_reparse.WOF_STREAM)
                return OverlayContent(packed, entry.size, reparse.algorithm, entry.name)
            if reparse.tag == ntfs_reparse.DEDUPLICATED:
                raise GuestUnsupported(f"{entry.name}: its content is in Windows' deduplication store, which is not read here")
            return self._table.content(file, entry.name)

    def streams(self, entry: Entry) -> tuple[Stream, ...]:
        with parsing(entry.name or "/"):
            file = self._table.get(entry.number)
            hidden = ntfs_reparse.WOF_STREAM if _has_tag(file, ntfs_reparse.WOF) else ""
            found = [one for one in file.attributes if one.kind == ntfs.DATA and one.name not in ("", hidden) and not one.first]
            return tuple(Stream(one.name, one.size) for one in found)

    def metadata(self, entry: Entry) -> tuple[Span, ...]:
        with parsing(entry.name or "/"):
            file = self._table.get(entry.number)
            return tuple(span for number in file.records for span in self._table.place(number))

    def _records(self, folder: Entry) -> Iterator[ntfs.NtfsName | Unreadable]:
        """All names in a folder but the root's own."""
        what = folder.name or "/"
        for one in self._table.names(self._table.get(folder.number), what):
            if not isinstance(one, ntfs.NtfsName):
                yield Unreadable("", GuestDamaged(f"{what}: {one}; what this block of it has is not listed"))
            elif one.record != ntfs.ROOT:
                yield one

    def _is_listed(self, folder: Entry, record: ntfs.NtfsName) -> bool:
        return folder.number != ntfs.ROOT or record.record >= ntfs.FIRST_USER

    def _asked(self, name: str) -> tuple[Hashable, ...]:
        """The name as it is, or (a key of its own kind) in whatever case."""
        return (name, (name.upper(),))

    def _name(self, record: ntfs.NtfsName) -> str:
        return record.name

    def _made(self, name: str, record: ntfs.NtfsName) -> Entry:
        return self._entry(name, self._table.get(record.record, record.sequence))

    def _entry(self, name: str, file: NtfsFile) -> Entry:
        kind = Kind.FOLDER if file.record.flags & ntfs.IS_FOLDER else Kind.FILE
        reparse = _reparse(file)
        if reparse and reparse.target is not None:
            kind = Kind.LINK
        content = file.pieces(ntfs.DATA)
        return Entry(
            name=name,
            kind=kind,
            number=file.number,
            size=content[0].size if content and kind is Kind.FILE else 0,
            times=_times(file),
            links=_names_of(file),
            allocated=content[0].allocated if content else 0,
            target=reparse.target if reparse else None,
        )


def _reparse(file: NtfsFile) -> ntfs_reparse.Reparse | None:
    value = file.value(ntfs.REPARSE)
    return ntfs_reparse.decode_reparse(value) if value else None


def _has_tag(file: NtfsFile, tag: int) -> bool:
    found = _reparse(file)
    return found is not None and found.tag == tag


def _times(file: NtfsFile) -> Times:
    value = file.value(ntfs.STANDARD)
    if len(value) < 32:
        return Times()
    created, modified, changed, accessed = (ntfs.time(stamp) for stamp in struct.unpack_from("<QQQQ", value))
    return Times(modified, changed, accessed, created)


def _names_of(file: NtfsFile) -> int:
    """Names that the guest sees: those for DOS are second spellings."""
    names = [one.value for one in file.attributes if one.kind == ntfs.FILE_NAME and one.value]
    return max(1, len([value for value in names if len(value) > 65 and value[65] != 2]))
