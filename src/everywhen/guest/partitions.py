# SPDX-License-Identifier: AGPL-3.0-or-later
"""The partitions of a disk: MBR with logical ones, GPT, sectors of 512 and 4096 bytes. Damage is told, the rest is listed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from everywhen.formats.errors import FormatError
from everywhen.formats.filesystems.partitions import (
    EXTENDED,
    GPT_MAGIC,
    MBR_BYTES,
    PROTECTIVE,
    GptEntry,
    GptHeader,
    MbrEntry,
    decode_gpt_entries,
    decode_gpt_header,
    decode_mbr,
    disk_signature,
)
from everywhen.guest.errors import GuestDamaged
from everywhen.guest.tree import Readable

_SECTORS = (512, 4096)
_MOST_LOGICAL = 256
"""Linux has at most 60 or so; a chain that goes on is damaged."""


@dataclass(frozen=True, slots=True)
class Partition:
    """`number` as Linux has it; in bytes. `uuid` and `label`: of the partition, as mount tables write them, or empty.

    `problem` if it does not fit on the disk: then only what fits can be read.
    """

    number: int
    start: int
    size: int
    uuid: str = ""
    label: str = ""
    problem: GuestDamaged | None = None


@dataclass(slots=True)
class Table:
    """What a disk's table says, `kind` "mbr", "gpt" or "" for none; what is wrong with it."""

    kind: str
    signature: int = 0
    """Of an MBR."""
    partitions: list[Partition] = field(default_factory=list)
    problems: list[GuestDamaged] = field(default_factory=list)

    def add(self, disk: Readable, number: int, start: int, end: int, entry: GptEntry | None = None) -> None:
        """A partition from byte `start` to `end`, cut to what the disk has; `entry`: of a GPT."""
        problem = None
        if start >= end or start <= 0:
            self.problems.append(GuestDamaged(f"partition {number} begins at {start} and ends at {end}: not shown"))
            return
        if end > disk.size:
            problem = GuestDamaged(f"partition {number} ends at {end}, the disk at {disk.size}")
        uuid = str(entry.unique) if entry else f"{self.signature:08x}-{number:02x}" if self.signature else ""
        size = max(0, min(end, disk.size) - start)
        self.partitions.append(Partition(number, start, size, uuid, entry.name if entry else "", problem))


def read_table(disk: Readable, is_known: Callable[[int], bool]) -> Table:
    """The table of a disk. `is_known` says whether something known begins at an offset: it decides between sectors of 512 and
    4096 bytes, which an MBR does not tell."""
    try:
        entries = decode_mbr(_read(disk, 0, MBR_BYTES))
    except FormatError:
        entries = ()
    protective = any(entry.kind == PROTECTIVE for entry in entries)
    for sector in _SECTORS:
        table = _gpt(disk, sector)
        if table:
            return table
    if not any(entry.kind for entry in entries):
        return Table("")
    if protective and len([entry for entry in entries if entry.kind]) == 1:
        return Table(
            "gpt", problems=[GuestDamaged("the disk had a GPT, but neither its header nor the copy of it can be read")]
        )
    return _mbr(disk, entries, _sector_size(disk, entries, is_known))


def _read(disk: Readable, offset: int, length: int) -> bytes:
    """What there is of these bytes."""
    return disk.read(offset, max(0, min(length, disk.size - offset))) if 0 <= offset < disk.size else b""


def _sector_size(disk: Readable, entries: tuple[MbrEntry, ...], is_known: Callable[[int], bool]) -> int:
    def fitting(sector: int) -> int:
        used = [entry for entry in entries if entry.kind]
        fits = 0
        for entry in used:
            start = entry.first * sector
            if entry.kind in EXTENDED:
                fits += _read(disk, start + 510, 2) == b"\x55\xaa"
            else:
                fits += is_known(start)
        return fits

    return 4096 if fitting(4096) > fitting(512) else 512


def _mbr(disk: Readable, entries: tuple[MbrEntry, ...], sector: int) -> Table:
    table = Table("mbr", disk_signature(_read(disk, 0, MBR_BYTES)))
    for number, entry in enumerate(entries, 1):
        if entry.kind and entry.kind not in EXTENDED:
            table.add(disk, number, entry.first * sector, (entry.first + entry.count) * sector)
    number = 5
    for entry in entries:
        if entry.kind in EXTENDED:
            number = _logical(disk, table, entry.first, sector, number)
    return table


def _logical(disk: Readable, table: Table, extended: int, sector: int, number: int) -> int:
    """Adds the logical partitions of one extended one; returns the next number."""
    at, seen = extended, set[int]()
    while True:
        if at in seen or len(seen) >= _MOST_LOGICAL:
            table.problems.append(GuestDamaged("the chain of logical partitions goes round: the rest is not shown"))
            return number
        seen.add(at)
        try:
            own, following, *_ = decode_mbr(_read(disk, at * sector, MBR_BYTES))
        except FormatError as error:
            table.problems.append(GuestDamaged(f"the chain of logical partitions breaks at sector {at}: {error}"))
            return number
        if own.kind:
            table.add(disk, number, (at + own.first) * sector, (at + own.first + own.count) * sector)
            number += 1
        if following.kind not in EXTENDED:
            return number
        at = extended + following.first


def _gpt(disk: Readable, sector: int) -> Table | None:
    """The GPT with sectors of this size, by its header or the copy; None if there is none."""
    table = Table("gpt")
    best: tuple[GptHeader, bytes] | None = None
    for place in (sector, disk.size // sector * sector - sector):
        # By itself: where there is none, lies what changes with every write, and would count as read (footprint.py).
        if _read(disk, place, len(GPT_MAGIC)) != GPT_MAGIC:
            if place == sector:
                table.problems.append(GuestDamaged("the first header of the GPT is not there: its copy is used"))
            continue
        try:
            header = decode_gpt_header(_read(disk, place, sector))
            entries = _read(disk, header.entries * sector, header.count * header.entry_size)
        except FormatError as error:
            table.problems.append(GuestDamaged(str(error)))
            continue
        whole = header.whole and zlib.crc32(entries) == header.entries_checksum
        if whole:
            best = header, entries
            break
        table.problems.append(GuestDamaged(f"a checksum of the GPT at {place} is wrong"))
        best = best or (header, entries)
    if not best:
        return None
    for entry in decode_gpt_entries(*best):
        table.add(disk, entry.number, entry.first * sector, (entry.last + 1) * sector, entry)
    return table
