# SPDX-License-Identifier: AGPL-3.0-or-later
"""VHD (Virtual PC, Hyper-V of the first generation), fixed and dynamic.

Source: Microsoft, "Virtual Hard Disk Image Format Specification" 1.0 (2006). All numbers are big-endian.

    fixed            content                     dynamic          content
    0                the disk                    0                copy of the footer
    end - 512        footer                      512              dynamic header, 1024 bytes
                                                 1536             BAT: u32 sector of each block of 2 MiB, or 0xffffffff
                                                 ...              allocated blocks: bitmap of 512 bytes (all ones), data
                                                 end - 512        footer

    footer offset    size  field               value
    0                8     cookie              "conectix"
    8                4     features            2 (a reserved bit that is always set)
    12               4     file format version 0x00010000
    16               8     data offset         dynamic: 512; fixed: all ones
    24               4     time stamp          seconds since 2000-01-01 UTC
    28               4     creator application "win "
    32               4     creator version     0x000a0000
    36               4     creator host        "Wi2k"
    40               16    original, current size   bytes
    56               4     geometry            u16 cylinders, u8 heads, u8 sectors per track
    60               4     disk type           2 fixed, 3 dynamic
    64               4     checksum            one's complement of the sum of the footer's bytes, this field as 0
    68               16    unique id
    84               1     saved state         0
    85               427   reserved            0

    dynamic header   size  field               value
    0                8     cookie              "cxsparse"
    8                8     data offset         all ones
    16               8     table offset        1536
    24               4     header version      0x00010000
    28               4     max table entries   number of blocks
    32               4     block size          2 MiB
    36               4     checksum            as above, over these 1024 bytes
    40               984   parent, reserved    0

Why "win ": QEMU (block/vpc.c) takes the disk's size from the geometry, which is smaller by up to a cylinder, unless the
creator is one that it knows to mean the current size: "win ", "qem2", "d2v ", "tap\\0", "CTXS". Hyper-V and Windows
always take the current size. The bytes were tried with QEMU and dissect, never with Windows.
Bits of the bitmaps are all set: a block is here whole or not at all, and sectors without data read as zeroes.
"""

from __future__ import annotations

import struct

import numpy as np

from everywhen.formats.layouts.layout import SECTOR, Composer, Identity, Layout, LayoutError
from everywhen.formats.layouts.runs import Runs
from everywhen.formats.layouts.sources import Repeat, Table

BLOCK = 2 << 20
MAX_SIZE = 2040 << 30
"""Hyper-V's limit: block numbers count sectors in 32 bits, and the bitmaps need room too."""

_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
_HEADER = struct.Struct(">8sQQIIII984x")
_EPOCH = 946_684_800  # 2000-01-01 UTC in seconds since 1970
_FIXED, _DYNAMIC = 2, 3
_NOWHERE = 0xFFFF_FFFF_FFFF_FFFF
_TABLE_AT = 1536


def lay_out_fixed(disk_size: int, allocated: Runs, identity: Identity) -> Layout:
    """A fixed VHD file: the disk and a footer. Raises LayoutError above 2040 GiB."""
    composer = _composer(disk_size, allocated)
    composer.place_disk_flat()
    composer.write(composer.virtual_size, _footer(composer.virtual_size, _FIXED, identity))
    return composer.layout("vhd-fixed", composer.virtual_size + SECTOR)


def lay_out(disk_size: int, allocated: Runs, identity: Identity) -> Layout:
    """A dynamic VHD file. Raises LayoutError above 2040 GiB."""
    composer = _composer(disk_size, allocated)
    entries = -(-disk_size // BLOCK)
    table_size = -(-entries * 4 // SECTOR) * SECTOR
    blocks_at = _TABLE_AT + table_size
    stride = SECTOR + BLOCK
    used = composer.place_disk(blocks_at + SECTOR, BLOCK, stride=stride)
    footer = _footer(composer.virtual_size, _DYNAMIC, identity)
    composer.write(0, footer)
    composer.write(SECTOR, _dynamic_header(entries))
    table = Table(used, ">u4", blocks_at // SECTOR, stride // SECTOR, empty=0xFFFF_FFFF)
    composer.place(_TABLE_AT, table_size, table)
    bitmaps = blocks_at + stride * np.arange(used.count, dtype=np.int64)
    composer.scatter(bitmaps, np.full_like(bitmaps, SECTOR), np.zeros_like(bitmaps), Repeat(b"\xff"))
    end = blocks_at + stride * used.count
    composer.write(end, footer)
    return composer.layout("vhd", end + SECTOR)


def geometry(size: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track for a disk of `size` bytes (specification, appendix "CHS Calculation")."""
    sectors = min(size // SECTOR, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    per_track, tracks = 17, sectors // 17
    heads = max((tracks + 1023) // 1024, 4)
    if tracks >= heads * 1024 or heads > 16:
        per_track, heads, tracks = 31, 16, sectors // 31
    if tracks >= heads * 1024:
        per_track, heads, tracks = 63, 16, sectors // 63
    return tracks // heads, heads, per_track


def checksum(block: bytes) -> int:
    """One's complement of the sum of all bytes; the checksum's own field must be 0 in `block`."""
    return ~sum(block) & 0xFFFF_FFFF


def _composer(disk_size: int, allocated: Runs) -> Composer:
    if disk_size > MAX_SIZE:
        raise LayoutError(f"A VHD file holds at most 2040 GiB; this disk has {disk_size} bytes. Use vhdx.")
    return Composer(disk_size, allocated)


def _footer(size: int, disk_type: int, identity: Identity) -> bytes:
    def pack(total: int) -> bytes:
        return _FOOTER.pack(
            *(b"conectix", 2, 0x0001_0000, _NOWHERE if disk_type == _FIXED else SECTOR),
            *(max(identity.created - _EPOCH, 0) & 0xFFFF_FFFF, b"win ", 0x000A_0000, b"Wi2k", size, size),
            *(*geometry(size), disk_type, total, identity.uuid.bytes, 0),
        )

    return pack(checksum(pack(0)))


def _dynamic_header(entries: int) -> bytes:
    def pack(total: int) -> bytes:
        return _HEADER.pack(b"cxsparse", _NOWHERE, _TABLE_AT, 0x0001_0000, entries, BLOCK, total)

    return pack(checksum(pack(0)))
