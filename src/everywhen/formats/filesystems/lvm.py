# SPDX-License-Identifier: AGPL-3.0-or-later
"""LVM2's labels and metadata (lvm2: lib/format_text/layout.h, lib/label/label.h; the text: lib/config/config.c). Little-endian.

Label, in one of the first four sectors of 512 bytes: `LABELONE`, u64 sector, u32 CRC, u32 offset of the header, `LVM2 001`.
Header of a physical volume: 32s id, u64 size, then areas (u64 offset, u64 size) of contents up to one of zeroes, then those
of metadata up to one of zeroes. Metadata area: u32 CRC, 16s ` LVM2 x[5A%r0N*>`, u32 version, u64 start, u64 size, then
u64 offset, u64 size, u32 CRC, u32 flags of the text, which goes on behind the first 512 bytes when it reaches the area's end.

The text: `key = value` with numbers, "text" and [lists], and `key { … }`; `#` begins a comment.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any, Final

from everywhen.formats.errors import BadMagic, Corrupt, Truncated

SECTOR: Final = 512
LABEL_SECTORS: Final = 4
LONGEST_TEXT: Final = 4 << 20
MDA_HEADER_BYTES: Final = 512
_MDA_MAGIC: Final = b" LVM2 x[5A%r0N*>"
_MOST_AREAS: Final = 64
_DEEPEST: Final = 8
_TOKEN: Final = re.compile(
    r'\s+|#[^\n]*|(?P<text>"(?:[^"\\]|\\.)*")|(?P<number>-?\d+(?:\.\d+)?)|(?P<word>[A-Za-z0-9_.+\-]+)|(?P<mark>[={}\[\],])'
)
Section = dict[str, Any]
"""Keys to int, float, str, list or another Section."""


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """Its id without dashes, and the areas of metadata: offset and size in bytes."""

    identity: str
    metadata: tuple[tuple[int, int], ...]


def decode_label(sectors: bytes) -> PhysicalVolume:
    """From the first sectors of a volume (LABEL_SECTORS of them, and one more). Raises BadMagic, Truncated, Corrupt."""
    for start in range(0, LABEL_SECTORS * SECTOR, SECTOR):
        label = sectors[start : start + SECTOR]
        if label[:8] == b"LABELONE" and label[24:32] == b"LVM2 001":
            (offset,) = struct.unpack_from("<I", label, 20)
            header = label[offset:]
            if len(header) < 40:
                raise Truncated("the header of a physical volume of LVM")
            areas, at = _areas(header, 40)
            del areas  # where extents begin is in the metadata
            metadata, _ = _areas(header, at)
            return PhysicalVolume(header[:32].decode("ascii", "replace"), tuple(metadata))
    raise BadMagic("no label of LVM")


def _areas(header: bytes, at: int) -> tuple[list[tuple[int, int]], int]:
    found: list[tuple[int, int]] = []
    for _ in range(_MOST_AREAS):
        if at + 16 > len(header):
            raise Truncated("the areas of a physical volume of LVM")
        offset, size = struct.unpack_from("<QQ", header, at)
        at += 16
        if not offset and not size:
            return found, at
        found.append((offset, size))
    raise Corrupt("a physical volume of LVM has too many areas")


def text_places(header: bytes, area: tuple[int, int]) -> list[tuple[int, int]]:
    """Where the text of a metadata area is on the volume: one or two pieces, none if there is none yet. Raises FormatError."""
    if len(header) < 64:
        raise Truncated("a metadata area of LVM")
    if header[4:20] != _MDA_MAGIC:
        raise BadMagic("a metadata area of LVM without its magic")
    start, size = area
    offset, length = struct.unpack_from("<QQ", header, 40)
    if not length:
        return []
    if not MDA_HEADER_BYTES <= offset < size or length > min(size, LONGEST_TEXT):
        raise Corrupt("the text of a metadata area of LVM lies outside of it")
    here = min(length, size - offset)
    places = [(start + offset, here)]
    if here < length:
        places.append((start + MDA_HEADER_BYTES, length - here))
    return places


def decode_text(text: str) -> Section:
    """The outermost section. Raises Corrupt."""
    tokens = _tokens(text)
    section, end = _section(tokens, 0, 0)
    if end != len(tokens):
        raise Corrupt("the metadata of LVM have a bracket too many")
    return section


def _tokens(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    at = 0
    text = text.rstrip("\0 \n")
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match:
            raise Corrupt(f"the metadata of LVM have {text[at : at + 10]!r} at {at}")
        if match.lastgroup:
            found.append((match.lastgroup, match.group()))
        at = match.end()
    return found


def _section(tokens: list[tuple[str, str]], at: int, depth: int) -> tuple[Section, int]:
    section: Section = {}
    if depth > _DEEPEST:
        raise Corrupt("the metadata of LVM are nested too deeply")
    while at < len(tokens) and tokens[at] != ("mark", "}"):
        key, follows = tokens[at][1], tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if follows == "{":
            section[key], at = _section(tokens, at + 2, depth + 1)
            if at >= len(tokens):
                raise Corrupt("the metadata of LVM end within a section")
            at += 1
        elif follows == "=":
            section[key], at = _value(tokens, at + 2)
        else:
            raise Corrupt(f"the metadata of LVM have {follows!r} behind {key!r}")
    return section, at


def _value(tokens: list[tuple[str, str]], at: int) -> tuple[Any, int]:
    if at >= len(tokens):
        raise Corrupt("the metadata of LVM end within a value")
    kind, word = tokens[at]
    if kind == "text":
        return re.sub(r"\\(.)", r"\1", word[1:-1]), at + 1
    if kind == "number":
        return float(word) if "." in word else int(word), at + 1
    if word != "[":
        raise Corrupt(f"the metadata of LVM have {word!r} for a value")
    items: list[Any] = []
    at += 1
    while at < len(tokens) and tokens[at][1] != "]":
        if tokens[at] == ("mark", ","):
            at += 1
        elif tokens[at][1] == "[":
            raise Corrupt("the metadata of LVM have a list in a list")
        else:
            item, at = _value(tokens, at)
            items.append(item)
    if at >= len(tokens):
        raise Corrupt("the metadata of LVM end within a list")
    return items, at + 1
