# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether an XFS was unmounted: its log's last record says so ("XFS Algorithms & Data Structures", Journaling Log).

The log is a ring of blocks of 512 bytes. The first 4 bytes of each are the number of its turn (big-endian), in a header of a
record the 4 behind 0xFEEDBABE; so the newest record is before the first block with an older number. A header has at 40 the
number of operations; the record of an unmount has one, whose header is in the next block: at 9 its flags, with 0x20.
"""

from __future__ import annotations

import struct
from typing import Final

from everywhen.formats.filesystems.xfs import XfsSuperblock
from everywhen.guest.reading import piece
from everywhen.guest.tree import Readable

_BLOCK: Final = 512
_MAGIC: Final = 0xFEEDBABE
_UNMOUNT: Final = 0x20
_LONGEST_RECORD: Final = 1024
"""Blocks of a record with its headers: 256 KiB and some."""


def is_clean(volume: Readable, superblock: XfsSuperblock) -> bool:
    """True after an unmount; also where the log is on another device, and nothing can be known."""
    if not superblock.log:
        return True
    start = superblock.block_place(superblock.log)
    count = superblock.log_blocks * superblock.block_size // _BLOCK

    def words(block: int) -> tuple[int, ...]:
        return struct.unpack(">12I", piece(volume, start + block % count * _BLOCK, 48, "the log"))

    def turn(block: int) -> int:
        first, second = words(block)[:2]
        return second if first == _MAGIC else first

    newest = turn(0)
    low, high = 0, count  # the first block whose turn is older is in low + 1 … high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if turn(middle) == newest else (low, middle)
    for back in range(1, _LONGEST_RECORD):
        block = high - back
        if words(block)[0] == _MAGIC:
            operations = words(block)[10]
            flags = piece(volume, start + (block + 1) % count * _BLOCK, 16, "the log")[9]
            return operations == 1 and bool(flags & _UNMOUNT)
    return not newest
