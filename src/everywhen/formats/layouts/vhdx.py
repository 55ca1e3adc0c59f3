# SPDX-License-Identifier: AGPL-3.0-or-later
"""VHDX (Hyper-V since 2012), dynamic, without parent, with an empty log.

Source: Microsoft, [MS-VHDX] Virtual Hard Disk v2 File Format, sections 2.2 to 2.6. All numbers are little-endian; GUIDs
have their first three fields little-endian. Everything from 1 MiB on is aligned to 1 MiB.

    offset           content
    0                file identifier: "vhdxfile", creator in UTF-16 (512 bytes)
    64, 128 KiB      header 1 and 2; the one with the higher sequence number counts
    192, 256 KiB     region table, twice
    1 MiB            log, 1 MiB, empty
    2 MiB            metadata region, 1 MiB: table, and the items from 64 KiB on
    3 MiB            BAT: u64 for each block of the disk, MiB offset << 20 | 6 (fully present), or 0 (absent: zeroes);
                     after each `chunk ratio` entries one for a sector bitmap, which a disk without parent does not have
    ...              allocated blocks

    header           size  field                   region table     size  field
    0                4     "head"                  0                4     "regi"
    4                4     CRC-32C of 4 KiB        4                4     CRC-32C of 64 KiB
    8                8     sequence number         8                4     entries; 4 reserved bytes
    16               16    file write GUID         16 + 32 i        16    GUID of the region
    32               16    data write GUID                          8     offset in the file
    48               16    log GUID: 0, no log                      4     length
    64               4     log version 0, version 1                 4     1: required
    68               12    log length, log offset

    metadata table   size  field
    0                8     "metadata"; then u16 reserved, u16 entries, 20 reserved bytes
    32 + 32 i        16    GUID of the item
                     12    offset in the region, length, flags: 2 about the virtual disk, 4 required
    item             size  value
    file parameters  8     block size, 0 (not fixed, no parent)
    disk size        8     bytes
    disk id          16    GUID (page 83 of SCSI)
    logical sector   4     512
    physical sector  4     512, as QEMU shows it to its guests

The block size is 1 MiB up to a disk of 2 TiB, so that little of a scattered disk is stored, and grows with the disk
above that, so that the BAT stays below 17 MiB. The bytes were tried with QEMU and dissect, never with Windows.
"""

from __future__ import annotations

import struct
import uuid

from everywhen.formats.images.crc32c import crc32c
from everywhen.formats.layouts.layout import SECTOR, Composer, Identity, Layout, LayoutError
from everywhen.formats.layouts.runs import Runs
from everywhen.formats.layouts.sources import Table

MIB = 1 << 20
MAX_SIZE = 64 << 40

_HEADERS = (64 << 10, 128 << 10)
_REGION_TABLES = (192 << 10, 256 << 10)
_LOG, _METADATA, _BAT = MIB, 2 * MIB, 3 * MIB
_ITEMS = 64 << 10
_MAX_BLOCKS = 2 << 20
_PRESENT = 6

_BAT_REGION = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
_METADATA_REGION = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_DISK_ID = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
_LOGICAL_SECTOR = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
_PHYSICAL_SECTOR = uuid.UUID("cda348c7-445d-4471-9cc9-e9885251c556")


def lay_out(disk_size: int, allocated: Runs, identity: Identity) -> Layout:
    """A dynamic VHDX file. Raises LayoutError above 64 TiB."""
    if disk_size > MAX_SIZE:
        raise LayoutError(f"A VHDX file holds at most 64 TiB; this disk has {disk_size} bytes. Use qcow2.")
    composer = Composer(disk_size, allocated)
    block = block_size(disk_size)
    chunk_ratio = (SECTOR << 23) // block  # blocks whose sectors fill one bitmap of 1 MiB
    blocks = -(-disk_size // block)
    entries = blocks + (blocks - 1) // chunk_ratio
    bat_size = -(-entries * 8 // MIB) * MIB
    blocks_at = _BAT + bat_size
    used = composer.place_disk(blocks_at, block)
    composer.write(0, b"vhdxfile" + "Everywhen".encode("utf-16-le"))
    for sequence, offset in enumerate(_HEADERS):
        composer.write(offset, _header(sequence, identity))
    regions = _region_table(bat_size)
    for offset in _REGION_TABLES:
        composer.write(offset, regions)
    composer.write(_METADATA, _metadata(composer.virtual_size, block, identity))
    composer.place(_BAT, bat_size, Table(used, "<u8", blocks_at, block, _PRESENT, group=chunk_ratio))
    return composer.layout("vhdx", blocks_at + used.count * block)


def block_size(disk_size: int) -> int:
    """The smallest power of two, at least 1 MiB, that makes at most 2,097,152 blocks of the disk."""
    size = MIB
    while size * _MAX_BLOCKS < disk_size:
        size *= 2
    return size


def _with_checksum(block: bytes) -> bytes:
    """`block` with the CRC-32C over it (these four bytes being 0) in bytes 4 to 8."""
    return block[:4] + struct.pack("<I", crc32c(block)) + block[8:]


def _header(sequence: int, identity: Identity) -> bytes:
    writes = (uuid.uuid5(identity.uuid, "file write").bytes_le, uuid.uuid5(identity.uuid, "data write").bytes_le)
    fields = struct.pack("<4sIQ16s16s16sHHIQ", b"head", 0, sequence, *writes, bytes(16), 0, 1, MIB, _LOG)
    return _with_checksum(fields.ljust(4096, b"\0"))


def _region_table(bat_size: int) -> bytes:
    fields = struct.pack("<4sIII", b"regi", 0, 2, 0)
    fields += struct.pack("<16sQII", _BAT_REGION.bytes_le, _BAT, bat_size, 1)
    fields += struct.pack("<16sQII", _METADATA_REGION.bytes_le, _METADATA, MIB, 1)
    return _with_checksum(fields.ljust(65536, b"\0"))


def _metadata(disk_size: int, block: int, identity: Identity) -> bytes:
    required, about_disk = 4, 2
    items = (
        (_FILE_PARAMETERS, struct.pack("<II", block, 0), required),
        (_DISK_SIZE, struct.pack("<Q", disk_size), required | about_disk),
        (_DISK_ID, identity.uuid.bytes_le, required | about_disk),
        (_LOGICAL_SECTOR, struct.pack("<I", SECTOR), required | about_disk),
        (_PHYSICAL_SECTOR, struct.pack("<I", SECTOR), required | about_disk),
    )
    table = struct.pack("<8sHH20x", b"metadata", 0, len(items))
    content = b""
    for guid, value, flags in items:
        table += struct.pack("<16sIIIxxxx", guid.bytes_le, _ITEMS + len(content), len(value), flags)
        content += value
    return table.ljust(_ITEMS, b"\0") + content
