# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reparse points of NTFS: links, and contents that are elsewhere or packed ([MS-FSCC] 2.1.2; wofapi.h). Little-endian.

u32 tag, u16 length, u16. Links and junctions: u16 place and length of the target, u16 the same of how it is shown, (links:
u32 flags, 1: relative), then both (UTF-16). Links of WSL: u32 2, target (UTF-8). Packed by the Windows overlay filter: u32 1,
u32 2, u32 1, u32 algorithm; the content is in the stream `WofCompressedData`: u32 (of contents above 4 GiB u64) places of all
pieces but the first, counted from behind this table, then the pieces; one as long as what it stands for is not packed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import Truncated

SYMLINK: Final = 0xA000000C
JUNCTION: Final = 0xA0000003
WSL_LINK: Final = 0xA000001D
WOF: Final = 0x80000017
DEDUPLICATED: Final = 0x80000013
WOF_STREAM: Final = "WofCompressedData"
XPRESS: Final = {0: 4096, 2: 8192, 3: 16384}
"""Algorithm to the bytes of a piece."""
LZX: Final = 1


@dataclass(frozen=True, slots=True)
class Reparse:
    """`target` of a link as it is shown; `algorithm` of a packed content."""

    tag: int
    target: str | None = None
    algorithm: int = -1


def decode_reparse(data: bytes) -> Reparse:
    """Raises Truncated."""
    if len(data) < 8:
        raise Truncated("a reparse point of NTFS")
    (tag,) = struct.unpack_from("<I", data)
    if tag in (SYMLINK, JUNCTION):
        names = 20 if tag == SYMLINK else 16
        if len(data) < names:
            raise Truncated("a link of NTFS")
        target_at, target_length, shown_at, shown_length = struct.unpack_from("<HHHH", data, 8)
        shown = data[names + shown_at : names + shown_at + shown_length]
        raw = data[names + target_at : names + target_at + target_length]
        target = (shown or raw).decode("utf-16-le", "replace").rstrip("\0")
        return Reparse(tag, target.removeprefix("\\??\\"))
    if tag == WSL_LINK:
        return Reparse(tag, data[12:].decode("utf-8", "surrogateescape"))
    if tag == WOF:
        if len(data) < 24:
            raise Truncated("a reparse point of the Windows overlay filter")
        return Reparse(tag, None, struct.unpack_from("<I", data, 20)[0])
    return Reparse(tag)
