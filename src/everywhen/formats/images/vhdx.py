# SPDX-License-Identifier: AGPL-3.0-or-later
"""Structures of a VHDX image ([MS-VHDX], sections 2.2 to 2.6). Little-endian; GUIDs as 16 bytes in Windows' order.

| where                 | what                                                                                           |
|-----------------------|------------------------------------------------------------------------------------------------|
| 0                     | `vhdxfile`, creator                                                                            |
| 64 KiB, 128 KiB       | two headers of 4 KiB: `head`, u32 crc32c, u64 sequence, 16s file_write, 16s data_write, 16s log |
|                       | guid, u16 log_version (0), u16 version (1), u32 log_length, u64 log_offset; the one with the    |
|                       | right sum and the higher sequence counts; log guid 0: nothing to replay                         |
| 192 KiB, 256 KiB      | two region tables of 64 KiB: `regi`, u32 crc32c, u32 count, u32 0; entries of 32 bytes:        |
|                       | 16s guid, u64 offset, u32 length, u32 flags (bit 0: must be known)                              |
| metadata region       | `metadata`, u16 0, u16 count, then at 32 entries of 32 bytes: 16s item, u32 offset in the       |
|                       | region, u32 length, u32 flags (bit 2: must be known), u32 0                                     |
| block allocation table| u64 per block: bits 0 to 2 state, bits 20 to 63 offset in MiB; after each `chunk_ratio`         |
|                       | payload entries one entry of a sector bitmap block                                              |
|                       | states: 0 not present (the parent's, or zeroes), 1 undefined, 2 zero, 3 unmapped (all three are |
|                       | read as zeroes), 6 fully present, 7 partially present (as the sector bitmap says)               |

Checksums are taken over the whole structure with the four bytes of the sum as zeroes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from everywhen.formats.errors import BadMagic, Corrupt, UnsupportedVersion
from everywhen.formats.images.crc32c import crc32c

MAGIC: Final = b"vhdxfile"
HEADER_OFFSETS: Final = (65536, 131072)
HEADER_BYTES: Final = 4096
REGION_TABLE_OFFSETS: Final = (196608, 262144)
REGION_TABLE_BYTES: Final = 65536
METADATA_TABLE_BYTES: Final = 65536
MIB: Final = 1 << 20

STATE_NOT_PRESENT: Final = 0
STATE_UNMAPPED: Final = 3
STATE_FULLY_PRESENT: Final = 6
STATE_PARTIALLY_PRESENT: Final = 7

NO_GUID: Final = bytes(16)
_BAT_REGION: Final = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
_METADATA_REGION: Final = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_FILE_PARAMETERS: Final = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_DISK_SIZE: Final = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_DISK_ID: Final = UUID("beca12ab-b2e6-4523-93ef-c309e000c746").bytes_le
_LOGICAL_SECTOR: Final = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le
_PHYSICAL_SECTOR: Final = UUID("cda348c7-445d-4471-9cc9-e9885251c556").bytes_le
_PARENT_LOCATOR: Final = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
_KNOWN_ITEMS: Final = {_FILE_PARAMETERS, _DISK_SIZE, _DISK_ID, _LOGICAL_SECTOR, _PHYSICAL_SECTOR, _PARENT_LOCATOR}
_VHDX_PARENT: Final = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913").bytes_le
_HEADER: Final = struct.Struct("<4sIQ16s16s16sHHIQ")
_LARGEST_DISK: Final = 64 << 40
_LONGEST_ITEM: Final = MIB


@dataclass(frozen=True, slots=True)
class VhdxHeader:
    """The header that counts. `log_guid` is NO_GUID when the log is empty."""

    sequence: int
    data_write_guid: bytes
    log_guid: bytes
    log_offset: int
    log_length: int


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the file, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class VhdxDisk:
    """What the metadata say of the disk; `parent` holds the parent locator's keys when there is a parent."""

    size: int
    block_size: int
    sector_size: int
    parent: dict[str, str] | None

    @property
    def chunk_ratio(self) -> int:
        """Payload blocks that share one sector bitmap block."""
        return (1 << 23) * self.sector_size // self.block_size


def _checked(raw: bytes, signature: bytes, size: int) -> bool:
    if len(raw) != size or raw[:4] != signature:
        return False
    expected: int = struct.unpack_from("<I", raw, 4)[0]
    return crc32c(raw[:4] + bytes(4) + raw[8:]) == expected


def choose_header(first: bytes, second: bytes) -> VhdxHeader:
    """The valid header with the higher sequence number."""
    found: list[VhdxHeader] = []
    for raw in (first, second):
        if not _checked(raw, b"head", HEADER_BYTES):
            continue
        _, _, sequence, _, data_write, log_guid, log_version, version, log_length, log_offset = _HEADER.unpack_from(raw)
        if version != 1 or (log_guid != NO_GUID and log_version != 0):
            raise UnsupportedVersion(f"VHDX version {version} with log version {log_version} is not known here")
        found.append(VhdxHeader(sequence, data_write, log_guid, log_offset, log_length))
    if not found:
        raise Corrupt("both headers of the VHDX are damaged")
    return max(found, key=lambda header: header.sequence)


def parse_regions(first: bytes, second: bytes) -> tuple[Region, Region]:
    """The block allocation table and the metadata region, from whichever copy of the region table is valid."""
    raw = next((copy for copy in (first, second) if _checked(copy, b"regi", REGION_TABLE_BYTES)), None)
    if raw is None:
        raise Corrupt("both region tables of the VHDX are damaged")
    (count,) = struct.unpack_from("<I", raw, 8)
    if count > 2047:
        raise Corrupt(f"the VHDX has {count} regions")
    found: dict[bytes, Region] = {}
    for i in range(count):
        guid, offset, length, flags = struct.unpack_from("<16sQII", raw, 16 + 32 * i)
        if guid not in (_BAT_REGION, _METADATA_REGION):
            if flags & 1:
                raise UnsupportedVersion(f"the VHDX needs a region that is not known here ({UUID(bytes_le=guid)})")
            continue
        if offset < MIB or offset % MIB or length % MIB or not length:
            raise Corrupt("a region of the VHDX is at an impossible place")
        found[guid] = Region(offset, length)
    if len(found) != 2:
        raise Corrupt("the VHDX has no block table or no metadata")
    return found[_BAT_REGION], found[_METADATA_REGION]


def parse_metadata(region: bytes) -> VhdxDisk:
    """The disk's parameters from the bytes of the metadata region (its first 2 MiB hold every item that is read)."""
    if region[:8] != b"metadata" or len(region) < METADATA_TABLE_BYTES:
        raise Corrupt("the metadata of the VHDX are missing")
    (count,) = struct.unpack_from("<H", region, 10)
    if count > 2047:
        raise Corrupt(f"the VHDX has {count} metadata items")
    items: dict[bytes, bytes] = {}
    for i in range(count):
        guid, offset, length, flags = struct.unpack_from("<16sIII", region, 32 + 32 * i)
        if guid not in _KNOWN_ITEMS:
            if flags & 4:
                raise UnsupportedVersion(f"the VHDX needs metadata that are not known here ({UUID(bytes_le=guid)})")
            continue
        if offset < METADATA_TABLE_BYTES or length > _LONGEST_ITEM or offset + length > len(region):
            raise Corrupt("a metadata item of the VHDX is at an impossible place")
        items[guid] = region[offset : offset + length]
    block_size, flags = struct.unpack("<II", _item(items, _FILE_PARAMETERS, 8))
    (size,) = struct.unpack("<Q", _item(items, _DISK_SIZE, 8))
    (sector_size,) = struct.unpack("<I", _item(items, _LOGICAL_SECTOR, 4))
    if not MIB <= block_size <= 256 * MIB or block_size & (block_size - 1):
        raise Corrupt(f"the VHDX's blocks have {block_size} bytes")
    if sector_size not in (512, 4096):
        raise Corrupt(f"the VHDX's sectors have {sector_size} bytes")
    if size > _LARGEST_DISK or size % sector_size:
        raise Corrupt(f"the VHDX's size is {size} bytes")
    parent = _parse_parent(items.get(_PARENT_LOCATOR, b"")) if flags & 2 else None
    return VhdxDisk(size, block_size, sector_size, parent)


def _item(items: dict[bytes, bytes], guid: bytes, size: int) -> bytes:
    value = items.get(guid, b"")
    if len(value) != size:
        raise Corrupt(f"metadata item {UUID(bytes_le=guid)} of the VHDX is missing or has the wrong size")
    return value


def _parse_parent(raw: bytes) -> dict[str, str]:
    """Keys and values of the parent locator ([MS-VHDX] 2.6.2.6)."""
    if len(raw) < 20:
        raise Corrupt("the VHDX has a parent and no parent locator")
    kind, _, count = struct.unpack_from("<16sHH", raw)
    if kind != _VHDX_PARENT:
        raise UnsupportedVersion("the VHDX's parent locator is of a kind that is not known here")
    if 20 + 12 * count > len(raw):
        raise Corrupt("the VHDX's parent locator is cut off")
    pairs: dict[str, str] = {}
    for i in range(count):
        key_at, value_at, key_length, value_length = struct.unpack_from("<IIHH", raw, 20 + 12 * i)
        key, value = raw[key_at : key_at + key_length], raw[value_at : value_at + value_length]
        if len(key) != key_length or len(value) != value_length:
            raise Corrupt("the VHDX's parent locator is cut off")
        pairs[key.decode("utf-16-le", "replace")] = value.decode("utf-16-le", "replace")
    return pairs


def check_identifier(head: bytes) -> None:
    """Raises BadMagic unless a VHDX begins here."""
    if head[:8] != MAGIC:
        raise BadMagic("this is not a VHDX image")
