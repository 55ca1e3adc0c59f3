# SPDX-License-Identifier: AGPL-3.0-or-later
"""Extended attributes of XFS (kernel: xfs_da_format.h, xfs_acl.h). All numbers are big-endian.

In the inode: u16 length, u8 count, u8, then entries: u8 name's length, u8 value's, u8 flags, name, value.
In blocks of their own, a tree by hash: u32, u32, u16 magic; version 5: 44 bytes more. A leaf: u16 count, 18 bytes (version 5:
22), entries of u32 hash, u16 place in the leaf, u8 flags, u8. There: u16 value's length, u8 name's, name, value; or, if the
flag "local" is not set, u32 block, u32 value's length, u8 name's, name: the value is in blocks of the attributes (version 5:
each with a header of 56 bytes). A node: u16 count, u16 level (version 5: u32), entries of u32 hash, u32 block.
Flags: 1 local, 2 trusted, 4 security, 0x80 not whole yet.

ACLs are `trusted.SGI_ACL_FILE` and `trusted.SGI_ACL_DEFAULT`: u32 count, then u32 tag, u32 id, u16 rights, u16; here they are
as programs get them (formats/filesystems/ext_attributes.py).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import BadMagic, Corrupt, Truncated

LEAF: Final = {0xFBEE: (12, 32), 0x3BEE: (56, 80)}
"""By magic: where the count is, and where entries begin."""
NODE: Final = {0xFEBE: (12, 16), 0x3EBE: (56, 64)}
REMOTE_HEADER: Final = 56
_TRUSTED: Final = 2
_SECURITY: Final = 4
_PARENT: Final = 8
_LOCAL: Final = 1
_INCOMPLETE: Final = 0x80
_ACLS: Final = {"trusted.SGI_ACL_FILE": "system.posix_acl_access", "trusted.SGI_ACL_DEFAULT": "system.posix_acl_default"}
_NAMED: Final = (2, 8)


@dataclass(frozen=True, slots=True)
class XfsAttribute:
    """`value`, or if `block` is not 0 the `length` bytes from that block of the attributes on."""

    name: str
    value: bytes
    block: int = 0
    length: int = 0


def decode_short(fork: bytes) -> list[XfsAttribute]:
    """Those in an inode. Raises Truncated."""
    if len(fork) < 4:
        return []
    found, at = [], 4
    for _ in range(fork[2]):
        if at + 3 > len(fork):
            raise Truncated("attributes in an inode of XFS")
        name_length, length, flags = fork[at : at + 3]
        name, at = fork[at + 3 : at + 3 + name_length], at + 3 + name_length
        if at + length > len(fork):
            raise Truncated("attributes in an inode of XFS")
        if not flags & _PARENT:
            found.append(_made(name, flags, fork[at : at + length]))
        at += length
    return found


def decode_block(block: bytes) -> tuple[list[XfsAttribute], list[int]]:
    """Attributes of a leaf, or the blocks below a node. Raises FormatError."""
    (magic,) = struct.unpack_from(">H", block, 8)
    if magic in NODE:
        count_at, at = NODE[magic]
        (count,) = struct.unpack_from(">H", block, count_at)
        if at + 8 * count > len(block):
            raise Corrupt("a node of attributes of XFS has more entries than room")
        return [], [struct.unpack_from(">I", block, at + 8 * index + 4)[0] for index in range(count)]
    if magic not in LEAF:
        raise BadMagic("a block of attributes of XFS without its magic")
    count_at, at = LEAF[magic]
    (count,) = struct.unpack_from(">H", block, count_at)
    if at + 8 * count > len(block):
        raise Corrupt("a leaf of attributes of XFS has more entries than room")
    found = []
    for index in range(count):
        _hash, place, flags = struct.unpack_from(">IHB", block, at + 8 * index)
        if not flags & (_INCOMPLETE | _PARENT):
            found.append(_in_leaf(block, place, flags))
    return found, []


def _in_leaf(block: bytes, place: int, flags: int) -> XfsAttribute:
    if place + (3 if flags & _LOCAL else 9) > len(block):
        raise Corrupt("an attribute of XFS outside of its leaf")
    if flags & _LOCAL:
        length, name_length = struct.unpack_from(">HB", block, place)
        begin = place + 3 + name_length
        if begin + length > len(block):
            raise Corrupt("an attribute of XFS outside of its leaf")
        return _made(block[place + 3 : begin], flags, block[begin : begin + length])
    first, length, name_length = struct.unpack_from(">IIB", block, place)
    made = _made(block[place + 9 : place + 9 + name_length], flags, b"")
    return XfsAttribute(made.name, b"", first, length)


def _made(name: bytes, flags: int, value: bytes) -> XfsAttribute:
    prefix = "trusted." if flags & _TRUSTED else "security." if flags & _SECURITY else "user."
    full = prefix + name.decode("utf-8", "surrogateescape")
    return XfsAttribute(_ACLS.get(full, full), acl(value) if full in _ACLS and value else value)


def acl(stored: bytes) -> bytes:
    """An ACL as programs get it. Raises Corrupt."""
    (count,) = struct.unpack_from(">I", stored) if len(stored) >= 4 else (0,)
    if 4 + 12 * count > len(stored):
        raise Corrupt("an ACL of XFS that ends too early")
    result = [struct.pack("<I", 2)]
    for at in range(4, 4 + 12 * count, 12):
        tag, identity, rights = struct.unpack_from(">IIH", stored, at)
        result.append(struct.pack("<HHI", tag & 0xFFFF, rights, identity if tag in _NAMED else 0xFFFFFFFF))
    return b"".join(result)
