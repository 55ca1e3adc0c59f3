# SPDX-License-Identifier: AGPL-3.0-or-later
"""Boot sector and folders of exFAT ("exFAT file system specification" 1.00, Microsoft). Little-endian.

Boot sector: `EXFAT   ` at 3, then from 72 on u64 sectors, u32 first sector of the table, u32 its sectors, u32 first sector of
the clusters, u32 clusters, u32 root's first cluster, u32 serial, u16 revision, u16 flags; at 108 u8 and u8: powers of two of a
sector's bytes and of a cluster's sectors.

A folder has records of 32 bytes; the first is the kind (0: no more; below 0x80: not in use). A file is a set:
0x85: u8 records that follow, u16 checksum, u16 attributes, 2 bytes, u32 times of creation, change, access, u8 10 ms of the
first two, u8 zones of all three. 0xC0: u8 flags (2: its clusters follow each other, the table says nothing), u8, u8 length
of the name, 4 bytes, u64 length that is valid (zeroes behind it), 4 bytes, u32 first cluster, u64 length.
0xC1: u8, 15 characters of the name (UTF-16). Alone in the root: 0x83: u8 length of the label, its characters.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import BadMagic, Corrupt, Truncated
from everywhen.formats.filesystems.fat import dos_time

RECORD: Final = 32
LABEL: Final = 0x83
FILE: Final = 0x85
STREAM: Final = 0xC0
NAME: Final = 0xC1
IN_USE: Final = 0x80
FOLDER: Final = 0x10
CONTIGUOUS: Final = 0x02
MOST_SECONDARY: Final = 18
_ZONE_KNOWN: Final = 0x80


@dataclass(frozen=True, slots=True)
class ExfatBoot:
    """Places and sizes in bytes; `root` is a cluster."""

    cluster_size: int
    clusters: int
    table_place: int
    table_size: int
    heap: int
    root: int
    serial: int


def decode_boot_sector(data: bytes) -> ExfatBoot:
    """Raises BadMagic, Truncated, Corrupt."""
    if len(data) < 512:
        raise Truncated("a boot sector of exFAT")
    if data[3:11] != b"EXFAT   ":
        raise BadMagic("not a boot sector of exFAT")
    table, table_sectors, heap, clusters, root, serial = struct.unpack_from("<IIIIII", data, 80)
    sector_shift, cluster_shift = data[108], data[109]
    if not 9 <= sector_shift <= 12 or sector_shift + cluster_shift > 25:
        raise Corrupt(f"exFAT with sectors of 2^{sector_shift} and clusters of 2^{cluster_shift} sectors")
    return ExfatBoot(
        cluster_size=1 << sector_shift + cluster_shift,
        clusters=min(clusters, (table_sectors << sector_shift) // 4 - 2),
        table_place=table << sector_shift,
        table_size=table_sectors << sector_shift,
        heap=heap << sector_shift,
        root=root,
        serial=serial,
    )


@dataclass(frozen=True, slots=True)
class ExfatFile:
    """A set of records. Times in ns since 1970."""

    name: str
    attributes: int
    contiguous: bool
    cluster: int
    size: int
    valid: int
    modified: int | None
    accessed: int | None
    created: int | None


def set_length(record: bytes) -> int:
    """Records in the set that a file's first one begins."""
    return 1 + min(record[1], MOST_SECONDARY)


def is_whole(data: bytes) -> bool:
    """Whether the checksum of a set of records is right. Drivers read those, too, whose is not."""
    total = 0
    for at, byte in enumerate(data):
        if at not in (2, 3):
            total = ((total & 1) << 15) + (total >> 1) + byte & 0xFFFF
    return total == int.from_bytes(data[2:4], "little") and len(data) == set_length(data) * RECORD


def decode_set(data: bytes) -> ExfatFile:
    """All records of a set. Raises Corrupt."""
    records = [data[at : at + RECORD] for at in range(0, len(data) - RECORD + 1, RECORD)]
    streams = [one for one in records[1:] if one[0] == STREAM]
    if not records or records[0][0] != FILE or not streams:
        raise Corrupt("a set of records of exFAT without its parts")
    flags, length = streams[0][1], streams[0][3]
    (valid,) = struct.unpack_from("<Q", streams[0], 8)
    cluster, size = struct.unpack_from("<IQ", streams[0], 20)
    raw = b"".join(one[2:32] for one in records[1:] if one[0] == NAME)[: 2 * length]
    if len(raw) < 2 * length:
        raise Corrupt("a set of records of exFAT without all of its name")
    (attributes,) = struct.unpack_from("<H", records[0], 4)
    created, modified, accessed = struct.unpack_from("<III", records[0], 8)
    tenths = (*records[0][20:22], 0)
    zones = records[0][22:25]
    if size > 1 << 62:
        raise Corrupt(f"a file of exFAT of {size} bytes")
    return ExfatFile(
        name=raw.decode("utf-16-le", "surrogatepass"),
        attributes=attributes,
        contiguous=bool(flags & CONTIGUOUS),
        cluster=cluster,
        size=size,
        valid=min(valid, size),
        modified=_time(modified, tenths[1], zones[1]),
        accessed=_time(accessed, 0, zones[2]),
        created=_time(created, tenths[0], zones[0]),
    )


def _time(stamp: int, tenth: int, zone: int) -> int | None:
    """UTC if the zone is stored (quarters of an hour, signed, 7 bits), else the guest's own."""
    local = dos_time(stamp >> 16, stamp & 0xFFFF, tenth)
    if local is None or not zone & _ZONE_KNOWN:
        return local
    quarters = (zone & 0x7F) - 128 if zone & 0x40 else zone & 0x7F
    return local - quarters * 15 * 60 * 1_000_000_000
