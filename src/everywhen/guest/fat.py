# SPDX-License-Identifier: AGPL-3.0-or-later
"""FAT12, FAT16 and FAT32, read by our own code.

dissect.fat 3.13 follows chains of clusters for ever where they go round, and takes pieces of long names without their checksum:
those that an older system left beside a short name that it had changed.
"""

from __future__ import annotations

from collections.abc import Iterator

from everywhen.formats.filesystems import fat
from everywhen.guest.chains import Chain, Clusters
from everywhen.guest.content import Inline, Stored
from everywhen.guest.errors import GuestDamaged, NoSuchPath, WrongKind, parsing
from everywhen.guest.lookups import Lookups
from everywhen.guest.names import name_error
from everywhen.guest.reading import piece
from everywhen.guest.tree import Content, Entry, Kind, Readable, Span, Stream, Times, Unreadable

_DOTS = (".", "..")


class FatFileSystem:
    """A FileSystem (guest/tree.py) of FAT.

    A folder's number is its first cluster (0: the root of FAT12 and FAT16), a file's the place of its record counted in
    records, behind all clusters. So two records of one folder are one folder, and a loop is seen as one.
    """

    local_times = True
    case_sensitive = False
    notes: tuple[str, ...] = ()

    def __init__(self, volume: Readable) -> None:
        with parsing("this FAT"):
            self._volume = volume
            boot = self._boot = fat.decode_boot_sector(piece(volume, 0, 512, "the boot sector"))
            mask = (1 << min(boot.bits, 28)) - 1
            self._clusters = Clusters(volume, boot.bits, mask, boot.table_place, boot.heap, boot.cluster_size, boot.clusters)
            self.kind = f"fat{boot.bits}"
            self.uuid = f"{boot.serial >> 16:04X}-{boot.serial & 0xFFFF:04X}" if boot.serial else ""
            self._lookups = Lookups(self._keyed)
            self.root = Entry(name="", kind=Kind.FOLDER, number=boot.root, size=0)
            labels = (one.name for _place, one in self._records(self.root) if one.attributes & fat.LABEL)
            self.label = next(labels, "") or boot.label.decode("cp437").replace("NO NAME", "")

    def entries(self, folder: Entry) -> Iterator[Entry | Unreadable]:
        with parsing(folder.name or "/"):
            for place, record in self._listed(folder):
                wrong = name_error(record.name)
                yield Unreadable(record.name, wrong) if wrong else self._entry(record, place)

    def child(self, folder: Entry, name: str) -> Entry:
        with parsing(name):
            found = self._lookups.find(folder, name.upper())
            if found is not None and not name_error(found[1].name):
                return self._entry(found[1], found[0])
        raise NoSuchPath(name, folder.name or "/")

    def open(self, entry: Entry, stream: str = "") -> Content:
        if stream or entry.kind is not Kind.FILE:
            raise WrongKind(f"{entry.name}: {'no such stream' if stream else f'a {entry.kind} has no content'}")
        with parsing(entry.name):
            record = fat.decode_record(piece(self._volume, self._place(entry), fat.RECORD, "its record"))
            if not record.size:
                return Inline(b"")
            return Stored(self._volume, record.size, Chain(self._clusters, record.cluster), entry.name)

    def streams(self, entry: Entry) -> tuple[Stream, ...]:
        del entry  # there are none in this file system
        return ()

    def attributes(self, entry: Entry) -> dict[str, bytes]:
        del entry  # there are none in this file system
        return {}

    def metadata(self, entry: Entry) -> tuple[Span, ...]:
        """Only the record: where the chain goes is all over the table, but whoever changes it changes the time of change."""
        return (Span(self._place(entry), fat.RECORD),) if entry.kind is Kind.FILE else ()

    def _keyed(self, folder: Entry) -> Iterator[tuple[tuple[str, str], tuple[int, fat.FatRecord]]]:
        for place, record in self._listed(folder):
            yield (record.name.upper(), record.short_name.upper()), (place, record)

    def _place(self, entry: Entry) -> int:
        return (entry.number - self._boot.clusters - 2) * fat.RECORD

    def _entry(self, record: fat.FatRecord, place: int) -> Entry:
        is_folder = bool(record.attributes & fat.FOLDER)
        number = place // fat.RECORD + self._boot.clusters + 2
        if is_folder:
            number = record.cluster or self._boot.root
        return Entry(
            name=record.name,
            kind=Kind.FOLDER if is_folder else Kind.FILE,
            number=number,
            size=0 if is_folder else record.size,
            times=Times(modified=record.modified, accessed=record.accessed, created=record.created),
        )

    def _listed(self, folder: Entry) -> Iterator[tuple[int, fat.FatRecord]]:
        """Those that are entries: no labels, and not the two that every folder but the root has."""
        if folder.kind is not Kind.FOLDER:
            raise WrongKind(f"{folder.name}: a {folder.kind}, not a folder")
        for place, record in self._records(folder):
            if not record.attributes & fat.LABEL and record.name not in _DOTS:
                yield place, record

    def _records(self, folder: Entry) -> Iterator[tuple[int, fat.FatRecord]]:
        """The records of a folder and where they are on the volume."""
        long_name = fat.LongName()
        for place, data in self._pieces(folder):
            for record in fat.decode_records(data, long_name):
                if record is None:
                    return
                yield place + record.at, record

    def _pieces(self, folder: Entry) -> Iterator[tuple[int, bytes]]:
        if not folder.number:
            boot = self._boot
            yield boot.root_place, piece(self._volume, boot.root_place, boot.root_size, "the root")
            return
        for run in Chain(self._clusters, folder.number)(0):
            if run.stored is None:
                raise GuestDamaged("a folder in no place")
            for at in range(run.stored.place, run.stored.place + run.length, self._clusters.size):
                yield at, piece(self._volume, at, self._clusters.size, f"the folder {folder.name}")
