# SPDX-License-Identifier: AGPL-3.0-or-later
"""Boot sector, records, attributes and runs of NTFS (the Linux-NTFS project's documentation; ntfs-3g: layout.h). Little-endian.

Boot sector: `NTFS    ` at 3, u16 bytes of a sector at 11, u8 sectors of a cluster at 13 (above 128: 2 to the power of 256
less it), u64 sectors at 40, u64 first cluster of $MFT at 48, i8 clusters of a record at 64 (negative: 2 to the power of its
amount, in bytes), i8 the same of a block of an index at 68, u64 serial at 72.

Records (`FILE`) and blocks of indices (`INDX`) have a number in the last two bytes of each 512, whose right ones are in a list:
u16 its place at 4, u16 its length at 6. A record: u16 sequence number at 16, u16 names at 18, u16 first attribute at 20,
u16 flags at 22 (1 in use, 2 folder), u32 length in use at 24, u64 the record that this one continues at 32.

An attribute: u32 type, u32 length, u8 not here, u8 length and u16 place of its name (UTF-16), u16 flags, u16 id. Here: u32
length and u16 place of the value. Not here: u64 first and last cluster that this piece is of, u16 place of the runs, u8 power
of two of the clusters packed together, then u64 allocated, size, and valid size at 40 (in the first piece only).
Runs: a byte with the lengths of two numbers, u clusters, i how far the run is behind the last one; none: a hole.
References are 48 bits of a record's number and 16 of its sequence number. Times are 100 ns since 1601.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import BadMagic, Corrupt, Truncated

STANDARD: Final = 0x10
ATTRIBUTE_LIST: Final = 0x20
FILE_NAME: Final = 0x30
VOLUME_NAME: Final = 0x60
DATA: Final = 0x80
INDEX_ROOT: Final = 0x90
INDEX_ALLOCATION: Final = 0xA0
BITMAP: Final = 0xB0
REPARSE: Final = 0xC0
END: Final = 0xFFFFFFFF
MFT: Final = 0
LOG: Final = 2
VOLUME: Final = 3
ROOT: Final = 5
FIRST_USER: Final = 16
IN_USE: Final = 1
IS_FOLDER: Final = 2
COMPRESSED: Final = 0x00FF
ENCRYPTED: Final = 0x4000
_SECTOR: Final = 512
_EPOCH: Final = 116444736000000000
_LARGEST_RECORD: Final = 1 << 16
_NAMESPACE_DOS: Final = 2
_HAS_BRANCH: Final = 1
_LAST: Final = 2


@dataclass(frozen=True, slots=True)
class NtfsBoot:
    """Sizes and places in bytes."""

    cluster_size: int
    mft: int
    record_size: int
    serial: int


def decode_boot_sector(data: bytes) -> NtfsBoot:
    """Raises BadMagic, Truncated, Corrupt."""
    if len(data) < _SECTOR:
        raise Truncated("a boot sector of NTFS")
    if data[3:11] != b"NTFS    ":
        raise BadMagic("not a boot sector of NTFS")
    (sector,) = struct.unpack_from("<H", data, 11)
    per_cluster = data[13] if data[13] <= 128 else 1 << min(256 - data[13], 20)
    mft = struct.unpack_from("<Q", data, 48)[0]
    (in_clusters,) = struct.unpack_from("<b", data, 64)
    cluster = sector * per_cluster
    if sector not in (256, 512, 1024, 2048, 4096) or not cluster or cluster & (cluster - 1) or cluster > 1 << 21:
        raise Corrupt(f"NTFS with sectors of {sector} and clusters of {per_cluster} of them")
    record = in_clusters * cluster if in_clusters > 0 else 1 << min(-in_clusters, 31)
    if not _SECTOR <= record <= _LARGEST_RECORD or record & (record - 1):
        raise Corrupt(f"NTFS with records of {record} bytes")
    return NtfsBoot(cluster, mft * cluster, record, struct.unpack_from("<Q", data, 72)[0])


def repaired(block: bytes, magic: bytes) -> bytes:
    """A record or block with its sectors' right last bytes. Raises BadMagic, Corrupt where it was written only in part."""
    if block[:4] != magic:
        raise BadMagic(f"a record of NTFS that begins with {block[:4]!r}, not {magic!r}")
    place, count = struct.unpack_from("<HH", block, 4)
    if count < 1 or place + 2 * count > len(block) or (count - 1) * _SECTOR > len(block):
        raise Corrupt("a record of NTFS whose list of last bytes is impossible")
    fixed = bytearray(block)
    number = block[place : place + 2]
    for index in range(1, count):
        at = index * _SECTOR - 2
        if block[at : at + 2] != number:
            raise Corrupt("a record of NTFS that was written only in part")
        fixed[at : at + 2] = block[place + 2 * index : place + 2 * index + 2]
    return bytes(fixed)


@dataclass(frozen=True, slots=True)
class NtfsAttribute:
    """One attribute, or a piece of one: `value` if it is here, else runs. Sizes in bytes, `first` in clusters."""

    kind: int
    name: str
    flags: int
    value: bytes | None
    first: int = 0
    pairs: bytes = b""
    unit: int = 0
    allocated: int = 0
    size: int = 0
    valid: int = 0


@dataclass(frozen=True, slots=True)
class NtfsRecord:
    """A record of $MFT. `base` is the record that it continues, 0 for none."""

    sequence: int
    links: int
    flags: int
    base: int
    attributes: tuple[NtfsAttribute, ...]


def decode_record(block: bytes) -> NtfsRecord:
    """Raises BadMagic, Corrupt, Truncated."""
    data = repaired(block, b"FILE")
    sequence, links, first, flags = struct.unpack_from("<HHHH", data, 16)
    (used,) = struct.unpack_from("<I", data, 24)
    base = reference(data, 32)[0]
    return NtfsRecord(sequence, links, flags, base, tuple(_attributes(data[: min(used, len(data))], first)))


def reference(data: bytes, at: int) -> tuple[int, int]:
    """Number and sequence number of a record. Raises Truncated."""
    if at + 8 > len(data):
        raise Truncated("a reference of NTFS")
    (both,) = struct.unpack_from("<Q", data, at)
    return both & 0xFFFFFFFFFFFF, both >> 48


def _attributes(data: bytes, at: int) -> Iterator[NtfsAttribute]:
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<II", data, at)
        if kind == END:
            return
        if length < 24 or at + length > len(data):
            raise Corrupt(f"an attribute of NTFS of {length} bytes")
        yield _attribute(kind, data[at : at + length])
        at += length


def _attribute(kind: int, data: bytes) -> NtfsAttribute:
    elsewhere, name_length, name_at, flags = struct.unpack_from("<BBHH", data, 8)
    name = text(data[name_at : name_at + 2 * name_length])
    if not elsewhere:
        length, value_at = struct.unpack_from("<IH", data, 16)
        if value_at + length > len(data):
            raise Corrupt("an attribute of NTFS whose value lies outside of it")
        return NtfsAttribute(kind, name, flags, data[value_at : value_at + length], size=length, valid=length)
    if len(data) < 64:
        raise Truncated("an attribute of NTFS")
    first, _last, pairs_at, unit = struct.unpack_from("<QQHB", data, 16)
    allocated, size, valid = struct.unpack_from("<QQQ", data, 40)
    if size > 1 << 62:
        raise Corrupt(f"an attribute of NTFS of {size} bytes")
    pairs = data[pairs_at:]
    return NtfsAttribute(kind, name, flags, None, first, pairs, unit, allocated, size, min(valid, size))


def text(raw: bytes) -> str:
    """UTF-16 as NTFS has it: surrogates without a partner are kept."""
    return raw[: len(raw) & ~1].decode("utf-16-le", "surrogatepass")


def decode_runs(pairs: bytes) -> Iterator[tuple[int, int | None]]:
    """Length in clusters, and first cluster or None for a hole, of each run. Raises Corrupt, Truncated."""
    at, cluster, total = 0, 0, 0
    while at < len(pairs) and pairs[at]:
        width, offset_width = pairs[at] & 15, pairs[at] >> 4
        end = at + 1 + width + offset_width
        if not 0 < width <= 8 or offset_width > 8:
            raise Corrupt("a run of NTFS with an impossible length")
        if end > len(pairs):
            raise Truncated("a run of NTFS")
        length = int.from_bytes(pairs[at + 1 : at + 1 + width], "little")
        total += length
        if not length or total > 1 << 53:
            raise Corrupt(f"a run of NTFS of {length} clusters")
        place = None
        if offset_width:
            cluster += int.from_bytes(pairs[at + 1 + width : end], "little", signed=True)
            place = cluster
            if cluster < 0:
                raise Corrupt("a run of NTFS before the begin of the volume")
        yield length, place
        at = end


def decode_list(data: bytes) -> Iterator[int]:
    """The records that an attribute list names. Raises Corrupt."""
    at = 0
    while at + 26 <= len(data):
        (length,) = struct.unpack_from("<H", data, at + 4)
        yield reference(data, at + 16)[0]
        if length < 26:
            raise Corrupt(f"an entry of an attribute list of NTFS of {length} bytes")
        at += length


def time(stamp: int) -> int:
    """ns since 1970."""
    return (stamp - _EPOCH) * 100


@dataclass(frozen=True, slots=True)
class NtfsName:
    """An entry of a folder: the record that has this name."""

    record: int
    sequence: int
    name: str


def decode_index(data: bytes, header: int) -> Iterator[NtfsName]:
    """The names in a node of a folder's index, without those for DOS; `header` is where its header is. Raises FormatError."""
    if header + 16 > len(data):
        raise Truncated("a node of an index of NTFS")
    first, used = struct.unpack_from("<II", data, header)
    at, end = header + first, min(header + used, len(data))
    while at + 16 <= end:
        length, key_length, flags = struct.unpack_from("<HHH", data, at + 8)
        if length < 16 or at + length > end:
            raise Corrupt(f"an entry of an index of NTFS of {length} bytes")
        if flags & _LAST:
            return
        key = data[at + 16 : at + 16 + key_length]
        if len(key) < 66 or 66 + 2 * key[64] > len(key):
            raise Corrupt("an entry of an index of NTFS without a name")
        if key[65] != _NAMESPACE_DOS:
            yield NtfsName(*reference(data, at), text(key[66 : 66 + 2 * key[64]]))
        at += length
