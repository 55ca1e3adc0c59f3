# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files of NTFS by the number of their record, with all attributes put together (layouts: formats/filesystems/ntfs.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from everywhen.formats.errors import FormatError
from everywhen.formats.filesystems import ntfs
from everywhen.formats.filesystems.ntfs import NtfsAttribute, NtfsRecord
from everywhen.guest.content import Inline, Stored, listed, valid_until
from everywhen.guest.errors import GuestDamaged, GuestUnsupported
from everywhen.guest.ntfs_packed import PackedContent
from everywhen.guest.reading import piece
from everywhen.guest.tree import Content, Readable, Run, Span

_LARGEST_LIST = 1 << 18
"""Bytes of an attribute list, as Windows has it."""
_MOST_RECORDS = 1 << 14


@dataclass(frozen=True, slots=True)
class NtfsFile:
    """A file or folder: its first record, the numbers of all its records, and its attributes."""

    number: int
    record: NtfsRecord
    records: tuple[int, ...]
    attributes: tuple[NtfsAttribute, ...]

    def pieces(self, kind: int, name: str = "") -> list[NtfsAttribute]:
        """The pieces of one attribute in order; none if it is not there."""
        found = [one for one in self.attributes if one.kind == kind and one.name.lower() == name.lower()]
        return sorted(found, key=lambda one: one.first)

    def value(self, kind: int) -> bytes:
        """The value of an attribute that is always in its record; empty if it is not there."""
        return next((one.value for one in self.attributes if one.kind == kind and one.value is not None), b"")


class NtfsRecords:
    """Reads records and attributes. Raises GuestError, FormatError."""

    def __init__(self, volume: Readable) -> None:
        self.volume = volume
        self.boot = ntfs.decode_boot_sector(piece(volume, 0, 512, "the boot sector"))
        head = ntfs.decode_record(piece(volume, self.boot.mft, self.boot.record_size, "the first record of $MFT"))
        self._mft: Content = self.content(NtfsFile(ntfs.MFT, head, (ntfs.MFT,), head.attributes), "$MFT")
        self._follow_mft(head)

    def _follow_mft(self, head: NtfsRecord) -> None:
        """$MFT by its list of attributes: each record that it names lies in what those before it say, as Windows sees to it."""
        attributes = list(head.attributes)
        for one in head.attributes:
            if one.kind == ntfs.ATTRIBUTE_LIST:
                for other in self._continued(ntfs.MFT, one):
                    attributes += self._continuing(other, ntfs.MFT)
                    file = NtfsFile(ntfs.MFT, head, (ntfs.MFT,), tuple(attributes))
                    self._mft = self.content(file, "$MFT")

    def record(self, number: int) -> NtfsRecord:
        """One record."""
        size = self.boot.record_size
        block = self._mft.read(number * size, size)
        if len(block) < size:
            raise GuestDamaged(f"record {number} of {self._mft.size // size}")
        return ntfs.decode_record(block)

    def get(self, number: int, sequence: int = 0) -> NtfsFile:
        """The file with this record; with a sequence number other than 0 only if it still is that file."""
        record = self.record(number)
        if not record.flags & ntfs.IN_USE or (sequence and record.sequence != sequence):
            raise GuestDamaged(f"record {number} is another file's by now")
        if record.base:
            raise GuestDamaged(f"record {number} continues record {record.base}, it is no file")
        attributes, numbers = list(record.attributes), [number]
        for one in record.attributes:
            if one.kind == ntfs.ATTRIBUTE_LIST:
                for other in self._continued(number, one):
                    numbers.append(other)
                    attributes += self._continuing(other, number)
        return NtfsFile(number, record, tuple(numbers), tuple(attributes))

    def _continued(self, number: int, attribute: NtfsAttribute) -> list[int]:
        if attribute.size > _LARGEST_LIST:
            raise GuestDamaged(f"record {number} has a list of attributes of {attribute.size} bytes")
        data = self._content([attribute], "a list of attributes").read(0, attribute.size)
        others = dict.fromkeys(other for other in ntfs.decode_list(data) if other != number)
        if len(others) > _MOST_RECORDS:
            raise GuestDamaged(f"record {number} is continued in {len(others)} others")
        return list(others)

    def _continuing(self, number: int, base: int) -> tuple[NtfsAttribute, ...]:
        record = self.record(number)
        if record.base != base:
            raise GuestDamaged(f"record {number} does not continue record {base}, as that one says")
        return record.attributes

    def content(self, file: NtfsFile, what: str, stream: str = "", kind: int = ntfs.DATA) -> Content:
        """The content of an attribute. Raises GuestDamaged if there is none, GuestUnsupported if it is encrypted."""
        pieces = file.pieces(kind, stream)
        if not pieces:
            raise GuestDamaged(f"{what}: nothing says where its content is")
        return self._content(pieces, what)

    def _content(self, pieces: list[NtfsAttribute], what: str) -> Content:
        head = pieces[0]
        if head.flags & ntfs.ENCRYPTED:
            raise GuestUnsupported(f"{what}: encrypted by the guest (EFS)")
        if head.value is not None:
            return Inline(head.value)
        if head.first:
            raise GuestDamaged(f"{what}: the first piece of its content is missing")
        runs = list(self._runs(pieces, what))
        if head.flags & ntfs.COMPRESSED and head.unit:
            return PackedContent(self.volume, runs, head.size, head.valid, self.boot.cluster_size << min(head.unit, 8), what)
        # dissect.ntfs 3.16 gives stale bytes behind the valid length; Windows and ntfs-3g give zeroes.
        return Stored(self.volume, head.size, valid_until(listed(runs), head.valid), what)

    def _runs(self, pieces: list[NtfsAttribute], what: str) -> Iterator[Run]:
        size, at = self.boot.cluster_size, 0
        for one in pieces:
            if one.first != at:
                raise GuestDamaged(f"{what}: a piece of its content is missing or there twice")
            for length, place in ntfs.decode_runs(one.pairs):
                stored = None if place is None else Span(place * size, length * size)
                yield Run(at * size, length * size, zero=place is None, stored=stored)
                at += length

    def place(self, number: int) -> Iterator[Span]:
        """Where a record is on the volume."""
        start, end = number * self.boot.record_size, (number + 1) * self.boot.record_size
        for run in self._mft.runs():
            if run.stored and run.start < end and run.end > start:
                first, last = max(start, run.start), min(end, run.end)
                yield Span(run.stored.place + first - run.start, last - first)

    def names(self, file: NtfsFile, what: str) -> Iterator[ntfs.NtfsName | FormatError]:
        """The names in a folder, an error for each block of its index that makes no sense.

        By the blocks in use, not along the tree: so damage to one hides only what is in it. dissect.ntfs 3.16 takes all blocks,
        also those that are free, with names of files that are gone.
        """
        roots = file.pieces(ntfs.INDEX_ROOT, "$I30")
        if not roots or roots[0].value is None or len(roots[0].value) < 32:
            raise GuestDamaged(f"{what}: a folder without an index")
        root = roots[0].value
        yield from ntfs.decode_index(root, 16)
        block_size = int.from_bytes(root[8:12], "little")
        if not file.pieces(ntfs.INDEX_ALLOCATION, "$I30"):
            return
        if not 512 <= block_size <= 1 << 16:
            raise GuestDamaged(f"{what}: an index with blocks of {block_size} bytes")
        blocks = self.content(file, what, "$I30", ntfs.INDEX_ALLOCATION)
        used = self.content(file, what, "$I30", ntfs.BITMAP)
        if blocks.size > self.volume.size:
            raise GuestDamaged(f"{what}: a folder larger than its volume")
        for index in range(blocks.size // block_size):
            if used.read(index // 8, 1)[:1] and used.read(index // 8, 1)[0] >> index % 8 & 1:
                try:
                    block = ntfs.repaired(blocks.read(index * block_size, block_size), b"INDX")
                    yield from ntfs.decode_index(block, 24)
                except FormatError as error:
                    yield error
