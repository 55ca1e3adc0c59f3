# SPDX-License-Identifier: AGPL-3.0-or-later
"""Partition tables: MBR with its chain of extended ones, and GPT (UEFI Specification 2.10, section 5). Little-endian.

MBR, in the first sector: at 446 four entries of 16 bytes (u8 0 or 0x80, 3 bytes, u8 type, 3 bytes, u32 first sector, u32
sectors), at 510 the bytes 55 AA. Types 5, 0xF and 0x85 hold a chain: each of its sectors has one logical partition (counted
from that sector) and the place of the next sector (counted from the begin of the extended partition).

GPT header, in sector 1 and again in the last one:

| offset | type | name          | meaning                                    |
|--------|------|---------------|--------------------------------------------|
| 0      | 8s   | signature     | `EFI PART`                                 |
| 12     | u32  | header_size   | 92 to the sector's size                    |
| 16     | u32  | checksum      | CRC-32 of the header, with this field zero |
| 32     | u64  | alternate     | the sector of the other header             |
| 72     | u64  | entries       | the first sector of the table              |
| 80     | u32  | count         | of entries                                 |
| 84     | u32  | entry_size    | 128, or that times a power of two          |
| 88     | u32  | entries' CRC  | CRC-32 of the table                        |

An entry: 16s type (all zeroes: unused), 16s id, u64 first and u64 last sector, u64 flags, 72 bytes name (UTF-16).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from everywhen.formats.errors import BadMagic, Corrupt, Truncated

MBR_BYTES: Final = 512
PROTECTIVE: Final = 0xEE
EXTENDED: Final = (0x05, 0x0F, 0x85)
GPT_MAGIC: Final = b"EFI PART"
GPT_HEADER_BYTES: Final = 92
MOST_ENTRIES: Final = 1024  # Windows and Linux make 128
_LARGEST_ENTRY: Final = 4096


@dataclass(frozen=True, slots=True)
class MbrEntry:
    """One of four; in sectors."""

    kind: int
    first: int
    count: int


def decode_mbr(sector: bytes) -> tuple[MbrEntry, ...]:
    """All four entries, empty ones with kind 0. Raises BadMagic where it is none, or a boot sector with code in its place."""
    if len(sector) < MBR_BYTES:
        raise Truncated("a partition table")
    if sector[510:512] != b"\x55\xaa":
        raise BadMagic("no partition table: the signature 55 AA is not there")
    entries = []
    for at in range(446, 510, 16):
        active, kind, first, count = struct.unpack_from("<B3xB3xII", sector, at)
        if active & 0x7F:
            raise BadMagic("no partition table: the bytes in its place are something else")
        entries.append(MbrEntry(kind if count else 0, first, count))
    return tuple(entries)


def disk_signature(sector: bytes) -> int:
    """By which an MBR is told from others; 0: it has none."""
    return int.from_bytes(sector[440:444], "little")


@dataclass(frozen=True, slots=True)
class GptHeader:
    """In sectors; `whole` when its own checksum is right."""

    alternate: int
    entries: int
    count: int
    entry_size: int
    entries_checksum: int
    whole: bool


def decode_gpt_header(sector: bytes) -> GptHeader:
    """Raises BadMagic, Truncated, Corrupt."""
    if len(sector) < GPT_HEADER_BYTES:
        raise Truncated("a GPT header")
    if sector[: len(GPT_MAGIC)] != GPT_MAGIC:
        raise BadMagic("not a GPT header")
    size, checksum = struct.unpack_from("<II", sector, 12)
    alternate = struct.unpack_from("<Q", sector, 32)[0]
    entries, count, entry_size, entries_checksum = struct.unpack_from("<QIII", sector, 72)
    if count > MOST_ENTRIES or not 128 <= entry_size <= _LARGEST_ENTRY:
        raise Corrupt(f"a GPT of {count} entries of {entry_size} bytes")
    whole = False
    if GPT_HEADER_BYTES <= size <= len(sector):
        whole = zlib.crc32(sector[:16] + bytes(4) + sector[20:size]) == checksum
    return GptHeader(alternate, entries, count, entry_size, entries_checksum, whole)


@dataclass(frozen=True, slots=True)
class GptEntry:
    """In sectors, `last` inclusive; `number` counts from 1, with the unused ones."""

    number: int
    kind: UUID
    unique: UUID
    first: int
    last: int
    name: str


def decode_gpt_entries(header: GptHeader, table: bytes) -> list[GptEntry]:
    """Those in use."""
    found = []
    for index in range(min(header.count, len(table) // header.entry_size)):
        at = index * header.entry_size
        kind = table[at : at + 16]
        if any(kind):
            first, last = struct.unpack_from("<QQ", table, at + 32)
            name = table[at + 56 : at + 128].decode("utf-16-le", "replace").partition("\0")[0]
            unique = UUID(bytes_le=table[at + 16 : at + 32])
            found.append(GptEntry(index + 1, UUID(bytes_le=kind), unique, first, last, name))
    return found
