# SPDX-License-Identifier: AGPL-3.0-or-later
"""exFAT, read by our own code: dissect.fat 3.13 knows no valid length, and gives what lies behind it."""

from __future__ import annotations

from collections.abc import Iterator

from everywhen.formats.filesystems import exfat
from everywhen.guest.chains import Chain, Clusters
from everywhen.guest.content import Inline, RunSource, Stored, valid_until
from everywhen.guest.errors import GuestDamaged, GuestError, parsing
from everywhen.guest.listed_folders import ListedFolders, demand_file
from everywhen.guest.reading import piece
from everywhen.guest.tree import Content, Entry, Kind, Readable, Run, Span, Times, Unreadable

_LARGEST_FOLDER = 256 << 20
"""As the specification has it."""
_Placed = tuple[int, exfat.ExfatFile]
"""A file, and before it where the first of its records is on the volume."""


class ExfatFileSystem(ListedFolders[_Placed]):
    """A FileSystem (guest/tree.py) of exFAT.

    A folder's number is twice its first cluster, and one more if its clusters follow each other; a file's the place of its
    first record counted in records, behind all of those. So two records of one folder are one folder.
    """

    kind = "exfat"
    local_times = False
    case_sensitive = False
    notes: tuple[str, ...] = ()

    def __init__(self, volume: Readable) -> None:
        super().__init__()
        with parsing("this exFAT"):
            self._volume = volume
            boot = exfat.decode_boot_sector(piece(volume, 0, 512, "the boot sector"))
            self._clusters = Clusters(volume, 32, 0xFFFFFFFF, boot.table_place, boot.heap, boot.cluster_size, boot.clusters)
            self._files_from = 2 * (boot.clusters + 2)
            self.uuid = f"{boot.serial >> 16:04X}-{boot.serial & 0xFFFF:04X}"
            self.root = Entry(name="", kind=Kind.FOLDER, number=2 * boot.root, size=0)
            self.label = self._label()

    def open(self, entry: Entry, stream: str = "") -> Content:
        demand_file(entry, stream)
        with parsing(entry.name):
            found = self._set_at((entry.number - self._files_from) * exfat.RECORD)
            if not found.size or not found.valid:
                # Nothing was ever written: Windows may not even have given it clusters.
                return Stored(self._volume, found.size, lambda _at: iter(()), entry.name) if found.size else Inline(b"")
            return Stored(self._volume, found.size, valid_until(self._source(found), found.valid), entry.name)

    def metadata(self, entry: Entry) -> tuple[Span, ...]:
        """Only the records: where a chain goes is all over the table, but whoever changes it changes the time of change."""
        if entry.kind is not Kind.FILE:
            return ()
        return (Span((entry.number - self._files_from) * exfat.RECORD, (1 + exfat.MOST_SECONDARY) * exfat.RECORD),)

    def _name(self, record: _Placed) -> str:
        return record[1].name

    def _made(self, name: str, record: _Placed) -> Entry:
        place, found = record
        is_folder = bool(found.attributes & exfat.FOLDER)
        return Entry(
            name=name,
            kind=Kind.FOLDER if is_folder else Kind.FILE,
            number=2 * found.cluster + found.contiguous if is_folder else place // exfat.RECORD + self._files_from,
            size=found.size,
            times=Times(modified=found.modified, accessed=found.accessed, created=found.created),
        )

    def _source(self, found: exfat.ExfatFile) -> RunSource:
        if found.contiguous:
            return self._contiguous(found.cluster, found.size)
        return Chain(self._clusters, found.cluster)

    def _contiguous(self, cluster: int, size: int) -> RunSource:
        count = -(-size // self._clusters.size)
        place = self._clusters.place(cluster)
        self._clusters.place(cluster + max(count, 1) - 1)
        length = count * self._clusters.size
        return lambda _at: iter((Run(0, length, zero=False, stored=Span(place, length)),))

    def _label(self) -> str:
        for _place, record in self._in_use(self.root):
            if record[0] == exfat.LABEL:
                return record[2 : 2 + 2 * min(record[1], 11)].decode("utf-16-le", "replace")
        return ""

    def _records(self, folder: Entry) -> Iterator[_Placed | Unreadable]:
        """The sets of records that are files."""
        records = self._in_use(folder)
        for place, record in records:
            if record[0] != exfat.FILE:
                continue
            found = [record]
            for _other, following in records:
                found.append(following)
                if len(found) >= exfat.set_length(record):
                    break
            try:
                with parsing(folder.name or "/"):
                    decoded = exfat.decode_set(b"".join(found))
            except GuestError as error:
                yield Unreadable("", error)
            else:
                yield place, decoded

    def _set_at(self, place: int) -> exfat.ExfatFile:
        """The file whose records begin at a place.

        They may go on in the next cluster of their folder. Which one that is, the table says, or (it may have old entries) they
        follow each other: their checksum tells.
        """
        found = self._set_bytes(place, by_table=True)
        if not exfat.is_whole(found):
            other = self._set_bytes(place, by_table=False)
            found = other if exfat.is_whole(other) else found
        return exfat.decode_set(found)

    def _set_bytes(self, place: int, *, by_table: bool) -> bytes:
        """As many records as the first one says."""
        size = self._clusters.size
        first = piece(self._volume, place, exfat.RECORD, "its records")
        length = exfat.set_length(first) * exfat.RECORD
        cluster = (place - self._clusters.heap) // size + 2
        here = min(length, self._clusters.place(cluster) + size - place)
        data = piece(self._volume, place, here, "its records")
        while len(data) < length:
            try:
                cluster = (self._clusters.after(cluster) if by_table else None) or cluster + 1
                begin = self._clusters.place(cluster)
            except GuestDamaged:
                break
            data += piece(self._volume, begin, min(size, length - len(data)), "its records")
        return data

    def _in_use(self, folder: Entry) -> Iterator[tuple[int, bytes]]:
        """The records in use of a folder, and where each is."""
        for place, data in self._pieces(folder):
            for at in range(0, len(data) - exfat.RECORD + 1, exfat.RECORD):
                if not data[at]:
                    return
                if data[at] & exfat.IN_USE:
                    yield place + at, data[at : at + exfat.RECORD]

    def _pieces(self, folder: Entry) -> Iterator[tuple[int, bytes]]:
        cluster, contiguous = divmod(folder.number, 2)
        if folder.size > _LARGEST_FOLDER:
            raise GuestDamaged(f"{folder.name}: a folder of {folder.size} bytes")
        source = self._contiguous(cluster, folder.size) if contiguous else Chain(self._clusters, cluster)
        left = _LARGEST_FOLDER
        for run in source(0):
            if run.stored is None:
                raise GuestDamaged("a folder in no place")
            for at in range(run.stored.place, run.stored.place + run.length, self._clusters.size):
                left -= self._clusters.size
                if left < 0:
                    raise GuestDamaged(f"{folder.name}: a folder larger than {_LARGEST_FOLDER} bytes")
                yield at, piece(self._volume, at, self._clusters.size, f"the folder {folder.name}")
