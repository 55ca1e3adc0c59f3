# SPDX-License-Identifier: AGPL-3.0-or-later
"""Extended attributes of ext2, ext3 and ext4 (kernel: fs/ext4/xattr.h, fs/ext4/acl.h).

In the room behind an inode's fields: u32 0xEA020000, then entries; places of values count from the first entry.
In a block of their own: u32 0xEA020000, 28 bytes, then entries; places of values count from the begin of the block.
An entry: u8 name's length, u8 prefix, u16 place of the value, u32 inode that has the value or 0, u32 its length, u32 hash,
name; padded to 4 bytes. Four zeroes end them.

ACLs are kept shorter than programs get them (u32 version 1; then u16 tag, u16 rights, for named users and groups u32 id);
here they are as programs get them (u32 version 2; u16 tag, u16 rights, u32 id, all ones where there is none).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import Corrupt

_MAGIC: Final = 0xEA020000
_BLOCK_HEADER: Final = 32
_ENTRY: Final = struct.Struct("<BBHIII")
_PREFIXES: Final = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    6: "security.",
    7: "system.",
    8: "system.richacl",
    9: "encryption.",
}
_ACLS: Final = ("system.posix_acl_access", "system.posix_acl_default")
_NAMED: Final = (2, 8)  # tags of a user and of a group with an id
DATA: Final = "system.data"
"""Continues the content that is in the inode itself."""


@dataclass(frozen=True, slots=True)
class ExtAttribute:
    """`value`, or `length` bytes that are the content of the inode `elsewhere`."""

    name: str
    value: bytes
    elsewhere: int
    length: int


def decode_in_inode(tail: bytes) -> list[ExtAttribute]:
    """Those behind an inode's fields. Raises Corrupt."""
    if len(tail) < 8 or struct.unpack_from("<I", tail)[0] != _MAGIC:
        return []
    return _entries(tail, 4, 4)


def decode_block(block: bytes) -> list[ExtAttribute]:
    """Those in a block of their own. Raises Corrupt."""
    if struct.unpack_from("<I", block)[0] != _MAGIC:
        raise Corrupt("a block of attributes of ext without its magic")
    return _entries(block, _BLOCK_HEADER, 0)


def _entries(data: bytes, at: int, base: int) -> list[ExtAttribute]:
    found = []
    while at + 4 <= len(data) and data[at : at + 4] != bytes(4):
        if at + _ENTRY.size > len(data):
            raise Corrupt("an attribute of ext reaches beyond its block")
        name_length, prefix, place, elsewhere, length, _hash = _ENTRY.unpack_from(data, at)
        name = data[at + _ENTRY.size : at + _ENTRY.size + name_length].decode("utf-8", "surrogateescape")
        full = _PREFIXES.get(prefix, f"unknown-{prefix}.") + name
        value = b""
        if not elsewhere:
            value = data[base + place : base + place + length]
            if len(value) != length:
                raise Corrupt(f"the attribute {full} of ext reaches beyond its block")
        found.append(ExtAttribute(full, acl(value) if full in _ACLS else value, elsewhere, length))
        at += (_ENTRY.size + name_length + 3) & ~3
    return found


def acl(stored: bytes) -> bytes:
    """An ACL as programs get it. Raises Corrupt."""
    try:
        (version,) = struct.unpack_from("<I", stored)
        result, at = [struct.pack("<I", 2)], 4
        while version == 1 and at < len(stored):
            tag, rights = struct.unpack_from("<HH", stored, at)
            at += 4
            identity = 0xFFFFFFFF
            if tag in _NAMED:
                (identity,) = struct.unpack_from("<I", stored, at)
                at += 4
            result.append(struct.pack("<HHI", tag, rights, identity))
    except struct.error as error:
        raise Corrupt("an ACL of ext that ends too early") from error
    if version != 1:
        raise Corrupt(f"an ACL of ext of version {version}")
    return b"".join(result)
