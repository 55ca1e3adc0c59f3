# SPDX-License-Identifier: AGPL-3.0-or-later
"""Hives of Windows' registry: keys, values and their lists (M. Suhanov, "Windows registry file format specification").

All numbers are little-endian. The file begins with a block of 4096 bytes; places in it are counted from behind that.

| offset | type | name      | meaning                                                             |
|--------|------|-----------|---------------------------------------------------------------------|
| 0      | 4s   | magic     | `regf`                                                              |
| 4      | 2u32 | sequences | not equal: it was being written, the rest is in the hive's logs     |
| 20     | 2u32 | version   | 1 and 3 to 6                                                        |
| 28     | u32  | kind      | 0: a hive, not a log                                                |
| 36     | u32  | root      | place of the root key's cell                                        |
| 40     | u32  | length    | bytes of all cells                                                  |
| 508    | u32  | checksum  | all u32 before it, one XOR the other                                |

A cell: i32 bytes with these four, negative where it is used. A key: `nk`, u16 flags, at 20 u32 subkeys, at 28 u32 place of
their list, at 36 u32 values, u32 place of their list, at 72 u16 bytes of the name, at 76 the name. A list of subkeys: `li`,
`lf`, `lh` or `ri` (of lists), u16 count, then u32 places, of `lf` and `lh` each with a u32 more. A list of values: u32 places.
A value: `vk`, u16 bytes of the name, u32 bytes (bit 31: they are in the place), u32 place, u32 type, u16 flags, at 20 the name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import BadMagic, Corrupt, Truncated, UnsupportedVersion

HEAD_BYTES: Final = 4096
LONGEST_CELL: Final = 1 << 20
"""Of those that are read here; a list of the 100,000 subkeys of one key takes 0.8 MB."""
LONGEST_VALUE: Final = 16344
"""What is longer is in several cells, which nothing here needs."""
_SUMMED: Final = 508
_IN_BYTES: Final = 0x20
_VALUE_IN_BYTES: Final = 0x1
_HERE: Final = 1 << 31
_ENTRY_BYTES: Final = {b"li": 4, b"lf": 8, b"lh": 8, b"ri": 4}


@dataclass(frozen=True, slots=True)
class HiveHead:
    """`whole`: nothing of it is in its logs alone."""

    root: int
    length: int
    whole: bool


@dataclass(frozen=True, slots=True)
class HiveKey:
    """A key: how many subkeys and values it has, and where their lists are."""

    name: str
    subkeys: int
    subkeys_place: int
    values: int
    values_place: int


@dataclass(frozen=True, slots=True)
class HiveValue:
    """A value: its bytes where they are here (four at most), else how many there are, and where."""

    name: str
    here: bytes | None
    length: int
    place: int


def decode_head(data: bytes) -> HiveHead:
    """Raises BadMagic, Truncated, UnsupportedVersion, Corrupt."""
    if len(data) < HEAD_BYTES:
        raise Truncated("the head of a hive")
    if data[:4] != b"regf":
        raise BadMagic("not a hive of a registry")
    total = 0
    for (word,) in struct.iter_unpack("<I", data[:_SUMMED]):
        total ^= word
    first, second = struct.unpack_from("<II", data, 4)
    major, minor, kind = struct.unpack_from("<III", data, 20)
    root, length = struct.unpack_from("<II", data, 36)
    if major != 1 or not 3 <= minor <= 6 or kind != 0:
        raise UnsupportedVersion(f"a hive of version {major}.{minor} and kind {kind}")
    # The format has no 0 and no -1 as a sum: 1 and -2 stand for them.
    if struct.unpack_from("<I", data, _SUMMED)[0] != {0: 1, 0xFFFFFFFF: 0xFFFFFFFE}.get(total, total):
        raise Corrupt("the head of a hive has a wrong checksum")
    return HiveHead(root, length, first == second)


def cell_bytes(head: bytes) -> int:
    """Of a used cell, by its first four: how many follow these. Raises Truncated, Corrupt."""
    if len(head) < 4:
        raise Truncated("a cell of a hive")
    (size,) = struct.unpack("<i", head[:4])
    if not 4 < -size <= LONGEST_CELL:
        raise Corrupt(f"a cell of a hive of {size} bytes")
    return -int(size) - 4


def decode_key(cell: bytes) -> HiveKey:
    """Raises Truncated, Corrupt."""
    if cell[:2] != b"nk" or len(cell) < 76:
        raise Corrupt("no key where a hive must have one")
    (flags,) = struct.unpack_from("<H", cell, 2)
    (subkeys,) = struct.unpack_from("<I", cell, 20)
    (subkeys_place,) = struct.unpack_from("<I", cell, 28)
    values, values_place = struct.unpack_from("<II", cell, 36)
    (length,) = struct.unpack_from("<H", cell, 72)
    return HiveKey(_name(cell, 76, length, in_bytes=bool(flags & _IN_BYTES)), subkeys, subkeys_place, values, values_place)


def decode_subkeys(cell: bytes) -> tuple[list[int], bool]:
    """The places in a list of subkeys, and whether they are those of other lists. Raises Truncated, Corrupt."""
    width = _ENTRY_BYTES.get(cell[:2])
    if width is None:
        raise Corrupt("no list of keys where a hive must have one")
    (count,) = struct.unpack_from("<H", cell, 2)
    if 4 + width * count > len(cell):
        raise Truncated("a list of keys of a hive")
    places = [struct.unpack_from("<I", cell, 4 + width * index)[0] for index in range(count)]
    return places, cell[:2] == b"ri"


def decode_places(cell: bytes, count: int) -> list[int]:
    """The places in a list of values. Raises Truncated."""
    if 4 * count > len(cell):
        raise Truncated("a list of values of a hive")
    return list(struct.unpack_from(f"<{count}I", cell))


def decode_value(cell: bytes) -> HiveValue:
    """Raises Truncated, Corrupt."""
    if cell[:2] != b"vk" or len(cell) < 20:
        raise Corrupt("no value where a hive must have one")
    name_length, size, place, _kind, flags = struct.unpack_from("<HIIIH", cell, 2)
    name = _name(cell, 20, name_length, in_bytes=bool(flags & _VALUE_IN_BYTES))
    if not size & _HERE:
        return HiveValue(name, None, size, place)
    if size - _HERE > 4:
        raise Corrupt("a value of a hive with too many bytes in its place")
    return HiveValue(name, cell[8 : 8 + size - _HERE], size - _HERE, 0)


def _name(cell: bytes, at: int, length: int, *, in_bytes: bool) -> str:
    if at + length > len(cell):
        raise Truncated("a name in a hive")
    return cell[at : at + length].decode("latin-1") if in_bytes else cell[at : at + length].decode("utf-16-le", "replace")
