# SPDX-License-Identifier: AGPL-3.0-or-later
"""FAT12, FAT16 and FAT32, read by our own code.

dissect.fat 3.13 follows chains of clusters for ever where they go round, and takes pieces of long names without their checksum:
those that an older system left beside a short name that it had changed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from everywhen.formats.filesystems import fat
from everywhen.guest.chains import Chain, Clusters
from everywhen.guest.content import Inline, Stored
from everywhen.guest.errors import GuestDamaged, parsing
from everywhen.guest.listed_folders import ListedFolders, demand_file
from everywhen.guest.reading import piece
from everywhen.guest.tree import Content, Entry, Kind, Readable, Span, Times

_DOTS = (".", "..")
_Placed = tuple[int, fat.FatRecord]
"""A record, and before it where it is on the volume."""


class FatFileSystem(ListedFolders[_Placed]):
    """A FileSystem (guest/tree.py) of FAT.

    A folder's number is its first cluster (0: the root of FAT12 and FAT16), a file's the place of its record counted in
    records, behind all clusters. So two records of one folder are one folder, and a loop is seen as one.
    """

    local_times = True
    case_sensitive = False
    notes: tuple[str, ...] = ()

    def __init__(self, volume: Readable) -> None:
        super().__init__()
        with parsing("this FAT"):
            self._volume = volume
            boot = self._boot = fat.decode_boot_sector(piece(volume, 0, 512, "the boot sector"))
            mask = (1 << min(boot.bits, 28)) - 1
            self._clusters = Clusters(volume, boot.bits, mask, boot.table_place, boot.heap, boot.cluster_size, boot.clusters)
            self.kind = f"fat{boot.bits}"
            self.uuid = f"{boot.serial >> 16:04X}-{boot.serial & 0xFFFF:04X}" if boot.serial else ""
            self.root = Entry(name="", kind=Kind.FOLDER, number=boot.root, size=0)
            labels = (one.name for _place, one in self._all(self.root) if one.attributes & fat.LABEL)
            self.label = next(labels, "") or boot.label.decode("cp437").replace("NO NAME", "")

    def open(self, entry: Entry, stream: str = "") -> Content:
        demand_file(entry, stream)
        with parsing(entry.name):
            record = fat.decode_record(piece(self._volume, self._place(entry), fat.RECORD, "its record"))
            if not record.size:
                return Inline(b"")
            return Stored(self._volume, record.size, Chain(self._clusters, record.cluster), entry.name)

    def metadata(self, entry: Entry) -> tuple[Span, ...]:
        """Only the record: where the chain goes is all over the table, but whoever changes it changes the time of change."""
        return (Span(self._place(entry), fat.RECORD),) if entry.kind is Kind.FILE else ()

    def _name(self, record: _Placed) -> str:
        return record[1].name

    def _keys(self, record: _Placed) -> tuple[Hashable, ...]:
        return (record[1].name.upper(), record[1].short_name.upper())

    def _place(self, entry: Entry) -> int:
        return (entry.number - self._boot.clusters - 2) * fat.RECORD

    def _made(self, name: str, record: _Placed) -> Entry:
        place, found = record
        is_folder = bool(found.attributes & fat.FOLDER)
        number = place // fat.RECORD + self._boot.clusters + 2
        if is_folder:
            number = found.cluster or self._boot.root
        return Entry(
            name=name,
            kind=Kind.FOLDER if is_folder else Kind.FILE,
            number=number,
            size=0 if is_folder else found.size,
            times=Times(modified=found.modified, accessed=found.accessed, created=found.created),
        )

    def _records(self, folder: Entry) -> Iterator[_Placed]:
        """Those that are entries: no labels, and not the two that every folder but the root has."""
        for place, record in self._all(folder):
            if not record.attributes & fat.LABEL and record.name not in _DOTS:
                yield place, record

    def _all(self, folder: Entry) -> Iterator[_Placed]:
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
