# SPDX-License-Identifier: AGPL-3.0-or-later
"""Headers of VMDK extents ("Virtual Disk Format 5.0", VMware; seSparse: QEMU, block/vmdk.c). Little-endian, packed.

Hosted sparse extent, `KDMV`, units of 512 bytes where it says sectors:

| offset | type | name              | meaning, limits                                                      |
|--------|------|-------------------|----------------------------------------------------------------------|
| 4      | u32  | version           | 1 to 3                                                               |
| 8      | u32  | flags             | bit 2: entry 1 means zeroes; 16: compressed; 17: grains have markers |
| 12     | u64  | capacity          | sectors of the disk (of this extent)                                 |
| 20     | u64  | grain_size        | sectors, a power of two from 8                                       |
| 28     | u64  | descriptor_offset | sector of the embedded descriptor, 0: none                           |
| 36     | u64  | descriptor_size   | sectors                                                              |
| 44     | u32  | table_entries     | grains in a grain table: 512                                         |
| 48     | u64  | redundant_offset  | sector of the second grain directory, not needed                     |
| 56     | u64  | directory_offset  | sector of the grain directory; all ones: see the footer              |
| 72     | u8   | unclean           | not closed properly: harmless for reading                            |
| 73     | 4s   | newlines          | `\\n`, blank, `\\r\\n`: shows that nobody converted line ends           |
| 77     | u16  | compression       | 0 none, 1 deflate                                                    |

Stream-optimised images end in a footer, a copy of the header with the directory's place, 1024 bytes before the end.
ESX: `COWD` (VMFS sparse; tables of 4096 entries) and seSparse (64-bit entries), below.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import BadMagic, Corrupt, Truncated, UnsupportedVersion

SECTOR: Final = 512
MAGIC: Final = b"KDMV"
COWD_MAGIC: Final = b"COWD"
SESPARSE_MAGIC: Final = b"\xbe\xba\xfe\xca\0\0\0\0"
HEADER_BYTES: Final = 512
DIRECTORY_IN_FOOTER: Final = (1 << 64) - 1
GRAIN_ZERO: Final = 1
_HOSTED: Final = struct.Struct("<4sIIQQQQIQQQB4sH")
_COWD: Final = struct.Struct("<4sIIIIIII")
_SESPARSE: Final = struct.Struct("<26Q")
_MOST_TABLES: Final = 1 << 21  # 64 TiB with the usual 32 MiB a table
_LARGEST_DISK: Final = 64 << 40
_LONGEST_DESCRIPTOR: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SparseHeader:
    """A hosted or VMFS sparse extent. Sizes and offsets in bytes; `directory_offset` None: look in the footer."""

    size: int
    grain_size: int
    table_entries: int
    tables: int
    directory_offset: int | None
    descriptor_offset: int
    descriptor_size: int
    zero_grains: bool
    compressed: bool
    markers: bool


@dataclass(frozen=True, slots=True)
class SeSparseHeader:
    """An extent of ESXi's space-efficient sparse kind. Sizes and offsets in bytes."""

    size: int
    grain_size: int
    table_entries: int
    tables: int
    directory_offset: int
    tables_offset: int
    grains_offset: int
    volatile_offset: int


def parse_hosted(head: bytes) -> SparseHeader:
    """A `KDMV` header or footer."""
    if head[:4] != MAGIC:
        raise BadMagic("this is not a VMDK sparse extent")
    if len(head) < _HOSTED.size:
        raise Truncated("the VMDK header is cut off")
    fields = _HOSTED.unpack_from(head)
    _, version, flags, capacity, grain, desc_at, desc_size, entries, _, directory, _, _, newlines, compression = fields
    if version not in (1, 2, 3):
        raise UnsupportedVersion(f"VMDK version {version} is not known here")
    if flags & 1 and newlines != b"\n \r\n":
        raise Corrupt("the VMDK was damaged by a conversion of line ends")
    if flags & 0xFFFF0000 & ~0x30000:
        raise UnsupportedVersion(f"the VMDK needs features that are not known here (flags 0x{flags:x})")
    compressed = bool(flags & 0x10000)
    if compressed and compression != 1:
        raise UnsupportedVersion(f"VMDK compression {compression} is not known here")
    if not 8 <= grain <= 1 << 15 or grain & (grain - 1) or not 1 <= entries <= 4096:
        raise Corrupt(f"the VMDK has grains of {grain} sectors and tables of {entries} entries")
    if desc_size * SECTOR > _LONGEST_DESCRIPTOR:
        raise Corrupt("the VMDK's descriptor is too long")
    return SparseHeader(
        size=_size(capacity),
        grain_size=grain * SECTOR,
        table_entries=entries,
        tables=_tables(capacity, grain * entries),
        directory_offset=None if directory == DIRECTORY_IN_FOOTER else _bytes(directory),
        descriptor_offset=_bytes(desc_at),
        descriptor_size=desc_size * SECTOR,
        zero_grains=bool(flags & 4),
        compressed=compressed,
        markers=bool(flags & 0x20000),
    )


def parse_cowd(head: bytes) -> SparseHeader:
    """A `COWD` header: u32 version 1, flags 3, capacity, grain size, directory's sector, directory's entries, next free."""
    if head[:4] != COWD_MAGIC:
        raise BadMagic("this is not a VMFS sparse extent")
    if len(head) < _COWD.size:
        raise Truncated("the VMFS sparse header is cut off")
    _, version, _, capacity, grain, directory, tables, _ = _COWD.unpack_from(head)
    if version != 1:
        raise UnsupportedVersion(f"VMFS sparse version {version} is not known here")
    if not 1 <= grain <= 1 << 15 or grain & (grain - 1):
        raise Corrupt(f"the VMFS sparse extent has grains of {grain} sectors")
    if tables < (needed := _tables(capacity, grain * 4096)):
        raise Corrupt("the VMFS sparse extent's directory does not cover it")
    return SparseHeader(
        size=_size(capacity),
        grain_size=grain * SECTOR,
        table_entries=4096,
        tables=needed,
        directory_offset=_bytes(directory),
        descriptor_offset=0,
        descriptor_size=0,
        zero_grains=True,
        compressed=False,
        markers=False,
    )


def parse_sesparse(head: bytes) -> SeSparseHeader:
    """The constant header of a seSparse extent: 26 numbers, all in sectors but the version."""
    if head[:8] != SESPARSE_MAGIC:
        raise BadMagic("this is not a seSparse extent")
    if len(head) < _SESPARSE.size:
        raise Truncated("the seSparse header is cut off")
    fields = _SESPARSE.unpack_from(head)
    version, capacity, grain, table_size = fields[1:5]
    if version != 0x200000001:
        raise UnsupportedVersion(f"seSparse version 0x{version:x} is not known here")
    if grain != 8 or table_size != 64:
        raise UnsupportedVersion(f"seSparse with grains of {grain} and tables of {table_size} sectors is not known here")
    entries = table_size * SECTOR // 8
    tables = _tables(capacity, grain * entries)
    if tables * 8 > fields[17] * SECTOR:
        raise Corrupt("the seSparse extent's directory does not cover it")
    return SeSparseHeader(
        size=_size(capacity),
        grain_size=grain * SECTOR,
        table_entries=entries,
        tables=tables,
        directory_offset=_bytes(fields[16]),
        tables_offset=_bytes(fields[18]),
        grains_offset=_bytes(fields[24]),
        volatile_offset=_bytes(fields[10]),
    )


def _size(sectors: int) -> int:
    if sectors * SECTOR > _LARGEST_DISK:
        raise Corrupt(f"the VMDK's size is {sectors} sectors")
    return sectors * SECTOR


def _bytes(sector: int) -> int:
    if sector >= 1 << 52:
        raise Corrupt("the VMDK names a place outside any file")
    return sector * SECTOR


def _tables(capacity: int, coverage: int) -> int:
    tables = -(-capacity // coverage)
    if tables > _MOST_TABLES:
        raise Corrupt(f"the VMDK needs {tables} grain tables")
    return tables
