# SPDX-License-Identifier: AGPL-3.0-or-later
"""Header of a VirtualBox disk image, version 1.1 (VirtualBox, src/VBox/Storage/VDICore.h). Little-endian.

| offset | type | name          | meaning, limits                                                 |
|--------|------|---------------|-----------------------------------------------------------------|
| 0      | 64s  | text          | for eyes only                                                   |
| 64     | u32  | signature     | 0xbeda107f                                                      |
| 68     | u32  | version       | 0x00010001                                                      |
| 72     | u32  | header_size   | at least 0x180                                                  |
| 76     | u32  | image_type    | 1 dynamic, 2 fixed; 3 undo and 4 differencing are refused       |
| 340    | u32  | table_offset  | of the block table                                              |
| 344    | u32  | data_offset   | of block 0 of the file                                          |
| 368    | u64  | size          | of the disk                                                     |
| 376    | u32  | block_size    | a power of two                                                  |
| 380    | u32  | block_extra   | 0; others are refused                                           |
| 384    | u32  | blocks        | entries of the table                                            |

The table has a u32 per block: its index in the file, 0xffffffff: never written, 0xfffffffe: zeroes.
A differencing image names its parent by UUID only, so the file cannot be found without VirtualBox's registry: refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import BadMagic, Corrupt, Truncated, UnsupportedVersion

SIGNATURE: Final = b"\x7f\x10\xda\xbe"
SIGNATURE_OFFSET: Final = 64
HEADER_BYTES: Final = 512
UNALLOCATED: Final = 0xFFFFFFFF
ZERO: Final = 0xFFFFFFFE
_FIELDS: Final = struct.Struct("<4sIII")
_MOST_ENTRIES: Final = 1 << 24  # 16 TiB with the usual blocks of 1 MiB


@dataclass(frozen=True, slots=True)
class VdiHeader:
    """Offsets and sizes in bytes."""

    size: int
    block_size: int
    blocks: int
    table_offset: int
    data_offset: int


def parse_header(head: bytes) -> VdiHeader:
    """The header from the first 512 bytes."""
    if head[SIGNATURE_OFFSET : SIGNATURE_OFFSET + 4] != SIGNATURE:
        raise BadMagic("this is not a VDI image")
    if len(head) < 388:
        raise Truncated("the VDI header is cut off")
    _, version, header_size, image_type = _FIELDS.unpack_from(head, SIGNATURE_OFFSET)
    if version != 0x00010001:
        raise UnsupportedVersion(f"VDI version 0x{version:x} is not supported")
    if image_type not in (1, 2):
        raise UnsupportedVersion("VDI differencing images do not name their parent; merge it with VBoxManage clonemedium")
    table_offset, data_offset = struct.unpack_from("<II", head, 340)
    size, block_size, block_extra, blocks = struct.unpack_from("<QIII", head, 368)
    if header_size < 0x180 or block_extra:
        raise UnsupportedVersion("the VDI header has a form that is not supported")
    if not 4096 <= block_size <= 1 << 28 or block_size & (block_size - 1):
        raise Corrupt(f"the VDI's blocks have {block_size} bytes")
    if blocks > _MOST_ENTRIES or blocks * block_size < size:
        raise Corrupt(f"the VDI's block table has {blocks} entries, which does not fit its size")
    return VdiHeader(size, block_size, blocks, table_offset, data_offset)
