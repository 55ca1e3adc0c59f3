# SPDX-License-Identifier: AGPL-3.0-or-later
"""Boot sector and folders of FAT12, FAT16 and FAT32 ("FAT: General Overview of On-Disk Format" 1.03, Microsoft). Little-endian.

| offset | type | name              | meaning                                                      |
|--------|------|-------------------|--------------------------------------------------------------|
| 11     | u16  | sector            | bytes: 512 to 4096                                           |
| 13     | u8   | cluster           | sectors: a power of two                                      |
| 14     | u16  | reserved          | sectors before the tables                                    |
| 16     | u8   | tables            |                                                              |
| 17     | u16  | root entries      | 0 for FAT32                                                  |
| 19, 32 | u16, u32 | sectors       | the second if the first is 0                                 |
| 21     | u8   | medium            | 0xF0, or 0xF8 and above                                      |
| 22, 36 | u16, u32 | table's sectors | the second, and FAT32, if the first is 0                   |
| 44     | u32  | root              | FAT32: first cluster of the root                             |
| 39, 67 | u32  | serial            | the second for FAT32                                         |
| 43, 71 | 11s  | label             | the same; the root's entry of a label counts more            |

A folder has entries of 32 bytes: 11s name, u8 attributes, u8 case, u8 creation's 10 ms, u16 time and u16 date of creation,
u16 date of access, u16 high half of the cluster, u16 time and u16 date of change, u16 cluster, u32 size. First byte 0: no
more; 0xE5: deleted; 5 stands for 0xE5. Attributes 0x0F: 13 characters of a long name (UTF-16 at 1, 14 and 28) with its place
in the order (0x40: the last) and, at 13, the checksum of the name that they belong to; they stand before it, last first.
"""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import BadMagic, Corrupt, Truncated

RECORD: Final = 32
FOLDER: Final = 0x10
LABEL: Final = 0x08
_LONG: Final = 0x0F
_ATTRIBUTES: Final = 0x3F
_FAT12_CLUSTERS: Final = 4084
_FAT16_CLUSTERS: Final = 65524
_LOWER_BASE: Final = 0x08
_LOWER_EXTENSION: Final = 0x10
_RECORD: Final = struct.Struct("<11sBBBHHHHHHHI")
_MOST_LONG: Final = 20
_CODE_PAGE: Final = "cp437"
"""Of short names; which one the guest uses is not stored. Windows in English, and Linux, take this one."""


@dataclass(frozen=True, slots=True)
class FatBoot:
    """Places and sizes in bytes. `root`: the first cluster (FAT32), or 0: `root_place` and `root_size` say where it is."""

    bits: int
    cluster_size: int
    clusters: int
    table_place: int
    table_size: int
    root: int
    root_place: int
    root_size: int
    heap: int
    serial: int
    label: bytes


def decode_boot_sector(data: bytes) -> FatBoot:
    """Raises BadMagic for what is no FAT, Corrupt."""
    if len(data) < 512:
        raise Truncated("a boot sector of FAT")
    sector, per_cluster, reserved, tables, root_entries = struct.unpack_from("<HBHBH", data, 11)
    small_count, medium, small_table = struct.unpack_from("<HBH", data, 19)
    (count,) = struct.unpack_from("<I", data, 32)
    jumps = data[0] == 0xE9 or (data[0] == 0xEB and data[2] == 0x90)
    if sector not in (512, 1024, 2048, 4096) or not per_cluster or per_cluster & (per_cluster - 1):
        raise BadMagic("not a boot sector of FAT")
    if not reserved or not tables or (medium != 0xF0 and medium < 0xF8) or not (jumps or data[510:512] == b"\x55\xaa"):
        raise BadMagic("not a boot sector of FAT")
    is_32 = not small_table
    table = struct.unpack_from("<I", data, 36)[0] if is_32 else small_table
    count = small_count or count
    root_sectors = -(-root_entries * RECORD // sector)
    heap = reserved + tables * table + root_sectors
    if not table or heap >= count:
        raise BadMagic("not a boot sector of FAT")
    clusters = (count - heap) // per_cluster
    bits = 32 if is_32 else 16 if clusters > _FAT12_CLUSTERS else 12
    if clusters > (_FAT16_CLUSTERS if bits == 16 else 0x0FFFFFF5):
        raise Corrupt(f"FAT{bits} with {clusters} clusters")
    tail = 66 if is_32 else 38
    has_label, has_serial = data[tail] == 0x29, data[tail] in (0x28, 0x29)
    return FatBoot(
        bits=bits,
        cluster_size=per_cluster * sector,
        clusters=min(clusters, table * sector * 8 // bits - 2),
        table_place=reserved * sector,
        table_size=table * sector,
        root=struct.unpack_from("<I", data, 44)[0] if is_32 else 0,
        root_place=(reserved + tables * table) * sector,
        root_size=root_entries * RECORD,
        heap=heap * sector,
        serial=struct.unpack_from("<I", data, tail + 1)[0] if has_serial else 0,
        label=data[tail + 5 : tail + 16].rstrip(b" \0") if has_label else b"",
    )


@dataclass(frozen=True, slots=True)
class FatRecord:
    """An entry of a folder; `at` is where it is in what was decoded. Times in ns since 1970 of the guest's own zone."""

    at: int
    name: str
    short_name: str
    attributes: int
    cluster: int
    size: int
    modified: int | None
    accessed: int | None
    created: int | None


class LongName:
    """Collects the pieces of a long name, which may lie in two clusters."""

    def __init__(self) -> None:
        self._pieces: dict[int, bytes] = {}
        self._last = 0
        self._checksum = -1

    def add(self, record: bytes) -> None:
        """A piece; one that does not continue the others begins anew."""
        order, checksum = record[0], record[13]
        if order & 0x40:
            self._pieces, self._last, self._checksum = {}, order & 0x3F, checksum
        if checksum == self._checksum and (order & 0x3F) <= min(self._last, _MOST_LONG):
            self._pieces[order & 0x3F] = record[1:11] + record[14:26] + record[28:32]

    def take(self, name: bytes) -> str:
        """The long name of the entry with this short one, or nothing; what was collected is forgotten."""
        pieces, last, checksum = self._pieces, self._last, self._checksum
        self._pieces, self._last, self._checksum = {}, 0, -1
        if not last or checksum != short_name_checksum(name) or set(pieces) != set(range(1, last + 1)):
            return ""
        joined = b"".join(pieces[index] for index in range(1, last + 1))
        return joined.decode("utf-16-le", "surrogatepass").partition("\0")[0]


def short_name_checksum(name: bytes) -> int:
    """By which pieces of a long name know the entry that they belong to."""
    total = 0
    for byte in name:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total


def decode_records(data: bytes, long_name: LongName) -> Iterator[FatRecord | None]:
    """The entries in a piece of a folder, labels among them; None where the folder ends."""
    for at in range(0, len(data) - RECORD + 1, RECORD):
        if not data[at]:
            yield None
            return
        if data[at] == 0xE5:
            continue
        record = data[at : at + RECORD]
        if record[11] & _ATTRIBUTES == _LONG:
            long_name.add(record)
        else:
            yield decode_record(record, at, long_name.take(record[:11]))


def decode_record(record: bytes, at: int = 0, long_name: str = "") -> FatRecord:
    """One entry; without a long name it has the short one."""
    raw, attributes, case, tenth, time, date, access, high, mtime, mdate, low, size = _RECORD.unpack(record)
    short = _short_name(raw, case)
    return FatRecord(
        at=at,
        name=long_name or short,
        short_name=short,
        attributes=attributes,
        cluster=high << 16 | low,
        size=size,
        modified=dos_time(mdate, mtime),
        accessed=dos_time(access, 0),
        created=dos_time(date, time, tenth),
    )


def _short_name(raw: bytes, case: int) -> str:
    if raw[:1] == b"\x05":
        raw = b"\xe5" + raw[1:]
    base, extension = (part.rstrip(b" \0").decode(_CODE_PAGE, "replace") for part in (raw[:8], raw[8:]))
    base = base.lower() if case & _LOWER_BASE else base
    extension = extension.lower() if case & _LOWER_EXTENSION else extension
    return f"{base}.{extension}" if extension else base


def dos_time(date: int, time: int, hundredths: int = 0) -> int | None:
    """ns since 1970, as if the guest's zone were UTC; None where nothing, or no time that exists, is stored."""
    try:
        moment = dt.datetime(
            1980 + (date >> 9), date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63, (time & 31) * 2, tzinfo=dt.UTC
        )
    except ValueError:
        return None
    return int(moment.timestamp()) * 1_000_000_000 + min(hundredths, 199) * 10_000_000
