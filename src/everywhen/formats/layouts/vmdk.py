# SPDX-License-Identifier: AGPL-3.0-or-later
"""VMDK "monolithicSparse": one hosted sparse extent with its descriptor inside.

Source: VMware, "Virtual Disk Format 1.1" (2007), "Hosted Sparse Extents". Little-endian; offsets in sectors.

    sector           content
    0                sparse extent header
    1                descriptor, 20 sectors of text
    21               redundant grain directory and tables, as the following
    ...              grain directory: u32 sector of each grain table; then the tables: u32 sector of each grain, or 0
    overHead         allocated grains of 64 KiB, aligned to grains

    header offset    size  field                 value
    0                4     magicNumber           "KDMV"
    4                4     version               1
    8                4     flags                 3: newline test valid, redundant grain directory used
    12               8     capacity              sectors of the disk
    20               8     grainSize             128
    28               16    descriptor offset, size   1, 20
    44               4     numGTEsPerGT          512: one grain table covers 32 MiB
    48               16    rgdOffset, gdOffset
    64               8     overHead              where the grains begin
    72               1     uncleanShutdown       0
    73               4     newline test          "\\n", " ", "\\r", "\\n"
    77               2     compressAlgorithm     0
    79               433   padding

Grain tables exist for the whole disk, also where nothing is allocated, as the specification demands (they are holes of
the file there). The capacity is the disk's size in sectors; the specification says that it "should" be whole grains,
but then the guest's disk would change its size. Tried with QEMU and dissect, never with VMware's own programs.
"""

from __future__ import annotations

import struct

import numpy as np

from everywhen.formats.layouts.layout import SECTOR, Composer, Identity, Layout, LayoutError
from everywhen.formats.layouts.runs import Runs
from everywhen.formats.layouts.sources import Table

GRAIN = 65536
_GRAIN_SECTORS = GRAIN // SECTOR
_TABLE_ENTRIES = 512
_TABLE_SIZE = _TABLE_ENTRIES * 4
_DESCRIPTOR_AT, _DESCRIPTOR_SECTORS = 1, 20
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
_MAX_FILE = SECTOR << 32

_DESCRIPTOR = """\
# Disk DescriptorFile
version=1
encoding="UTF-8"
CID={cid:08x}
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW {sectors} SPARSE "{name}"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "{heads}"
ddb.geometry.sectors = "63"
ddb.adapterType = "lsilogic"
"""


def lay_out(disk_size: int, allocated: Runs, identity: Identity) -> Layout:
    """A monolithicSparse VMDK file. Raises LayoutError when the file would pass 2 TiB (offsets have 32 bits)."""
    composer = Composer(disk_size, allocated)
    tables = -(-disk_size // (_TABLE_ENTRIES * GRAIN))
    directory_size = -(-tables * 4 // SECTOR) * SECTOR
    directories = [SECTOR * (_DESCRIPTOR_AT + _DESCRIPTOR_SECTORS)]
    directories.append(directories[0] + directory_size + tables * _TABLE_SIZE)
    grains_at = -(-(directories[1] + directory_size + tables * _TABLE_SIZE) // GRAIN) * GRAIN
    used = composer.place_disk(grains_at, GRAIN)
    file_size = grains_at + used.count * GRAIN
    if file_size > _MAX_FILE:
        raise LayoutError(f"A VMDK file holds at most 2 TiB; this one would have {file_size} bytes. Use qcow2 or vhdx.")
    in_use = used.units(_TABLE_ENTRIES)
    for directory in directories:
        tables_at = directory + directory_size
        entries = Table(Runs.whole(tables), "<u4", tables_at // SECTOR, _TABLE_SIZE // SECTOR)
        composer.place(directory, directory_size, entries)
        composer.scatter(
            tables_at + in_use.starts * _TABLE_SIZE,
            (in_use.ends - in_use.starts) * _TABLE_SIZE,
            np.asarray(in_use.starts * _TABLE_SIZE),
            Table(used, "<u4", grains_at // SECTOR, _GRAIN_SECTORS),
        )
    composer.write(0, _header(composer.virtual_size, directories, grains_at))
    composer.write(_DESCRIPTOR_AT * SECTOR, _descriptor(composer.virtual_size, identity))
    return composer.layout("vmdk", file_size)


def _header(size: int, directories: list[int], grains_at: int) -> bytes:
    return _HEADER.pack(
        *(b"KDMV", 1, 3, size // SECTOR, _GRAIN_SECTORS, _DESCRIPTOR_AT, _DESCRIPTOR_SECTORS, _TABLE_ENTRIES),
        *(*(directory // SECTOR for directory in directories), grains_at // SECTOR, 0, b"\n \r\n", 0),
    )


def _descriptor(size: int, identity: Identity) -> bytes:
    """The descriptor's text. Raises LayoutError for a file name that would break out of its quotes."""
    name = identity.file_name
    if '"' in name or "\n" in name or not name.isprintable() or len(name.encode()) > 4096:
        raise LayoutError(f"{name!r} cannot be the name of a VMDK file: quotes or control characters, or too long.")
    sectors = size // SECTOR
    heads = 255 if sectors > 1024 * 16 * 63 else 16
    cid = int.from_bytes(identity.uuid.bytes[:4], "big") & 0xFFFF_FFFE  # ffffffff would mean "no parent"
    cylinders = max(sectors // (heads * 63), 1)
    return _DESCRIPTOR.format(cid=cid, sectors=sectors, name=name, cylinders=cylinders, heads=heads).encode()
