# SPDX-License-Identifier: AGPL-3.0-or-later
"""Footer and dynamic header of a VHD image ("Virtual Hard Disk Image Format Specification" 1.0, Microsoft, 2006).

All numbers are big-endian. Footer, 512 bytes, last in the file; dynamic and differencing images have a copy at 0:

| offset | type | name          | meaning, limits                                                   |
|--------|------|---------------|-------------------------------------------------------------------|
| 0      | 8s   | cookie        | `conectix`                                                        |
| 8      | u32  | features      | not needed                                                        |
| 12     | u32  | version       | 0x00010000                                                        |
| 16     | u64  | header_offset | of the dynamic header; all ones for fixed images                  |
| 24     | u32  | timestamp     | seconds since 2000                                                |
| 28     | 4s   | creator       | application                                                       |
| 40     | u64  | original_size |                                                                   |
| 48     | u64  | current_size  | the disk's size: it counts, not the geometry (cylinders at 56)    |
| 60     | u32  | disk_type     | 2 fixed, 3 dynamic, 4 differencing                                |
| 64     | u32  | checksum      | complement of the sum of all other bytes                          |
| 68     | 16s  | unique_id     | named by children                                                 |

Dynamic header, 1024 bytes: `cxsparse`, u64 unused, u64 table_offset, u32 version, u32 table_entries, u32 block_size,
u32 checksum, 16s parent_id, u32 parent's timestamp, u32 reserved, 512 bytes name of the parent (UTF-16, big-endian),
then eight locators of 24 bytes: 4s platform, u32 room, u32 length, u32 reserved, u64 offset.
The table has a u32 per block: the sector of the block's bitmap (padded to whole sectors), its data follow; all ones: none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import BadMagic, Corrupt, Truncated, UnsupportedVersion

COOKIE: Final = b"conectix"
SECTOR: Final = 512
FOOTER_BYTES: Final = 512
DYNAMIC_HEADER_BYTES: Final = 1024
UNALLOCATED: Final = 0xFFFFFFFF
FIXED: Final = 2
DYNAMIC: Final = 3
DIFFERENCING: Final = 4
_FOOTER: Final = struct.Struct(">8sIIQI4sI4sQQIII16s")
_DYNAMIC: Final = struct.Struct(">8sQQIIII16sII")
_LOCATOR: Final = struct.Struct(">4sIIIQ")
_LARGEST_DISK: Final = 1 << 46
_MOST_ENTRIES: Final = 1 << 22  # the largest disk of 2 TiB in blocks of 512 KiB
_LONGEST_NAME: Final = 4096


@dataclass(frozen=True, slots=True)
class VhdFooter:
    """Sizes and offsets in bytes."""

    size: int
    disk_type: int
    header_offset: int
    unique_id: bytes


@dataclass(frozen=True, slots=True)
class ParentLocator:
    """Where one spelling of the parent's name is: `platform` is b"W2ru" for relative, b"W2ku" for absolute UTF-16 names."""

    platform: bytes
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class VhdDynamicHeader:
    """The block table's place and form. `parent_id` and what follows mean something in differencing images only."""

    table_offset: int
    table_entries: int
    block_size: int
    parent_id: bytes
    parent_name: str
    locators: tuple[ParentLocator, ...]

    @property
    def bitmap_size(self) -> int:
        """Bytes of a block's bitmap, a bit per sector, padded to whole sectors."""
        return -(-self.block_size // SECTOR // 8 // SECTOR) * SECTOR


def parse_footer(raw: bytes) -> VhdFooter:
    """A footer of 512 bytes, or of 511 as early versions of Virtual PC wrote it."""
    if raw[:8] != COOKIE:
        raise BadMagic("this is not a VHD footer")
    if len(raw) < FOOTER_BYTES - 1:
        raise Truncated("the VHD footer is cut off")
    fields = _FOOTER.unpack_from(raw)
    version, header_offset, size, disk_type, checksum = fields[2], fields[3], fields[9], fields[11], fields[12]
    if checksum != _checksum(raw[:FOOTER_BYTES], 64):
        raise Corrupt("the checksum of the VHD footer is wrong")
    if version != 0x00010000:
        raise UnsupportedVersion(f"VHD version 0x{version:x} is not known here")
    if disk_type not in (FIXED, DYNAMIC, DIFFERENCING):
        raise UnsupportedVersion(f"VHD disk type {disk_type} is not known here")
    if size > _LARGEST_DISK:
        raise Corrupt(f"the VHD's size is {size} bytes")
    return VhdFooter(size=size, disk_type=disk_type, header_offset=header_offset, unique_id=fields[13])


def parse_dynamic_header(raw: bytes, disk_size: int) -> VhdDynamicHeader:
    """The header of a dynamic or differencing image, checked against the disk's size."""
    if len(raw) < DYNAMIC_HEADER_BYTES:
        raise Truncated("the VHD dynamic header is cut off")
    cookie, _, table, version, entries, block_size, checksum, parent_id, _, _ = _DYNAMIC.unpack_from(raw)
    if cookie != b"cxsparse":
        raise Corrupt("the VHD dynamic header is missing")
    if checksum != _checksum(raw, 36):
        raise Corrupt("the checksum of the VHD dynamic header is wrong")
    if version != 0x00010000:
        raise UnsupportedVersion(f"VHD dynamic header version 0x{version:x} is not known here")
    if not 1 << 16 <= block_size <= 1 << 28 or block_size & (block_size - 1):
        raise Corrupt(f"the VHD's blocks have {block_size} bytes")
    if entries > _MOST_ENTRIES or entries * block_size < disk_size:
        raise Corrupt(f"the VHD's block table has {entries} entries, which does not fit its size")
    locators = [_LOCATOR.unpack_from(raw, 576 + 24 * i) for i in range(8)]
    return VhdDynamicHeader(
        table_offset=table,
        table_entries=entries,
        block_size=block_size,
        parent_id=parent_id,
        parent_name=raw[64:576].decode("utf-16-be", "replace").partition("\0")[0],
        locators=tuple(
            ParentLocator(platform, offset, length)
            for platform, _, length, _, offset in locators
            if platform in (b"W2ru", b"W2ku") and 0 < length <= _LONGEST_NAME
        ),
    )


def _checksum(raw: bytes, at: int) -> int:
    """The complement of the sum of all bytes but the four of the checksum itself."""
    return ~(sum(raw) - sum(raw[at : at + 4])) & 0xFFFFFFFF
