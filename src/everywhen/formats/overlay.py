# SPDX-License-Identifier: AGPL-3.0-or-later
"""The map of a kept overlay: where each page of a disk that was written to is. Little-endian.

| offset | size | field | meaning |
|---|---|---|---|
| 0 | 4 | magic | `EWo1` |
| 4 | 4 | page | bytes of a page: 4096 |
| 8 | 8 | size | bytes of the disk |
| 16 | 2 | length | bytes of `over` |
| 18 | length | over | what it lies over, UTF-8: `VM/DISK@POINT`, `+` and writes after the point where there are any |
| | to 4096 | reserved | zeroes |
| 4096 | one each | states | of each page: 0 as underneath, 1 in the content file at the same place, 2 zeroes |

The file may end before the last page's state: what is missing is 0. It belongs to a repository's moment, but is no part of the
repository.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import BadMagic, Corrupt, Truncated

PAGE: Final = 4096
UNDERNEATH, CONTENT, ZEROES = 0, 1, 2
HEADER_SIZE: Final = 4096

_MAGIC = b"EWo1"
_FIXED = struct.Struct("<4sIQH")


@dataclass(frozen=True, slots=True)
class OverlayHeader:
    """Bytes of the disk, and what the overlay lies over."""

    size: int
    over: str

    def encode(self) -> bytes:
        """4,096 bytes."""
        over = self.over.encode()
        if len(over) > HEADER_SIZE - _FIXED.size:
            raise ValueError(f"{len(over)} bytes of names")
        return (_FIXED.pack(_MAGIC, PAGE, self.size, len(over)) + over).ljust(HEADER_SIZE, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> OverlayHeader:
        """Raises BadMagic, Truncated, Corrupt."""
        if len(data) < HEADER_SIZE:
            raise Truncated(f"an overlay's map has {len(data)} of at least {HEADER_SIZE} bytes")
        magic, page, size, length = _FIXED.unpack_from(data)
        if magic != _MAGIC:
            raise BadMagic("this is not an overlay's map")
        over, rest = data[_FIXED.size : _FIXED.size + length], data[_FIXED.size + length : HEADER_SIZE]
        if page != PAGE or len(over) < length or any(rest):
            raise Corrupt(f"an overlay's map with pages of {page} bytes, or stray bytes")
        try:
            return cls(size, over.decode())
        except UnicodeDecodeError as error:
            raise Corrupt("an overlay's map: what it lies over is not UTF-8") from error
