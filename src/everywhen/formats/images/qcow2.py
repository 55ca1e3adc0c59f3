# SPDX-License-Identifier: AGPL-3.0-or-later
"""Header of a qcow2 image, versions 2 and 3 (QEMU, docs/interop/qcow2.txt). All numbers are big-endian.

| offset | type | name                | meaning, limits                                          |
|--------|------|---------------------|----------------------------------------------------------|
| 0      | 4s   | magic               | `QFI\\xfb`                                                |
| 4      | u32  | version             | 2 or 3                                                   |
| 8      | u64  | backing_offset      | of the backing file's name, 0: none                      |
| 16     | u32  | backing_length      | at most 1023                                             |
| 20     | u32  | cluster_bits        | 9 to 21                                                  |
| 24     | u64  | size                | of the disk in bytes                                     |
| 32     | u32  | crypt_method        | 0: none; others are refused                              |
| 36     | u32  | l1_size             | entries of the active L1 table, at most 32 MiB of them   |
| 40     | u64  | l1_offset           | a multiple of the cluster size                           |
| 48     | u64  | refcount_offset     | not needed for reading                                   |
| 56     | u32  | refcount_clusters   | not needed for reading                                   |
| 60     | u32  | snapshots           | internal snapshots: ignored, the active state is read    |
| 64     | u64  | snapshots_offset    |                                                          |
| 72     | u64  | incompatible        | version 3: feature bits, below                           |
| 80     | u64  | compatible          | version 3                                                |
| 88     | u64  | autoclear           | version 3                                                |
| 96     | u32  | refcount_order      | version 3                                                |
| 100    | u32  | header_length       | version 3: at least 104, a multiple of 8                 |
| 104    | u8   | compression         | if header_length allows: 0 deflate, 1 zstd               |

Extensions follow the header: u32 type, u32 length, the bytes, padded to 8; type 0 ends them. Read are the format of
the backing file (0xe2792aca) and the name of the external data file (0x44415441).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from everywhen.formats.errors import BadMagic, Corrupt, Truncated, UnsupportedVersion

MAGIC: Final = b"QFI\xfb"
INCOMPATIBLE_CORRUPT: Final = 1 << 1
INCOMPATIBLE_DATA_FILE: Final = 1 << 2
INCOMPATIBLE_COMPRESSION: Final = 1 << 3
INCOMPATIBLE_EXTENDED_L2: Final = 1 << 4
_KNOWN_INCOMPATIBLE: Final = 0x1F  # the four above, and bit 0, "dirty": see `_features`
_EXTENSION_BACKING_FORMAT: Final = 0xE2792ACA
_EXTENSION_DATA_FILE: Final = 0x44415441
_EXTENSION_ENCRYPTION: Final = 0x0537BE77
_V2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_V3: Final = struct.Struct(">QQQII")
_MOST_L1_BYTES: Final = 32 << 20
_LARGEST_DISK: Final = 1 << 56
_LONGEST_NAME: Final = 1023

HEADER_BYTES: Final = 65536
"""Enough for the header, its extensions and the backing file's name: all lie in the first cluster, the name in 1023 bytes."""


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """What is needed to read the active state of an image. Offsets and sizes in bytes, `l1_size` in entries."""

    version: int
    size: int
    cluster_bits: int
    l1_size: int
    l1_offset: int
    incompatible: int
    zstd: bool
    backing_name: str | None
    backing_format: str | None
    data_file_name: str | None

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def extended_l2(self) -> bool:
        """Entries of 16 bytes with 32 subclusters each."""
        return bool(self.incompatible & INCOMPATIBLE_EXTENDED_L2)

    @property
    def external_data(self) -> bool:
        """Clusters are in another file."""
        return bool(self.incompatible & INCOMPATIBLE_DATA_FILE)

    @property
    def l2_entries(self) -> int:
        """Entries in an L2 table, which is one cluster."""
        return self.cluster_size // (16 if self.extended_l2 else 8)


def parse_header(head: bytes) -> Qcow2Header:
    """The header from the first HEADER_BYTES of a file (fewer when it is shorter)."""
    if head[:4] != MAGIC:
        raise BadMagic("this is not a qcow2 image")
    if len(head) < _V2.size:
        raise Truncated("the qcow2 header is cut off")
    (_, version, backing_offset, backing_length, cluster_bits, size, crypt, l1_size, l1_offset, *_) = _V2.unpack_from(head)
    if version not in (2, 3):
        raise UnsupportedVersion(f"qcow version {version} is not supported; convert the image with qemu-img convert -O qcow2")
    if crypt:
        raise UnsupportedVersion("the qcow2 image is encrypted")
    incompatible, header_length, zstd = _features(head) if version == 3 else (0, _V2.size, False)
    if not 9 <= cluster_bits <= 21:
        raise Corrupt(f"qcow2 cluster_bits is {cluster_bits}, not 9 to 21")
    if size > _LARGEST_DISK:
        raise Corrupt(f"qcow2 size is {size} bytes")
    if incompatible & INCOMPATIBLE_EXTENDED_L2 and cluster_bits < 14:
        raise Corrupt("qcow2 clusters are too small for subclusters")
    if l1_size * 8 > _MOST_L1_BYTES:
        raise Corrupt(f"the qcow2 L1 table has {l1_size} entries")
    if l1_offset % (1 << cluster_bits):
        raise Corrupt("the qcow2 L1 table is not at a cluster boundary")
    backing_format, data_file = _extensions(head, header_length, min(1 << cluster_bits, backing_offset or 1 << cluster_bits))
    header = Qcow2Header(
        version=version,
        size=size,
        cluster_bits=cluster_bits,
        l1_size=l1_size,
        l1_offset=l1_offset,
        incompatible=incompatible,
        zstd=zstd,
        backing_name=_backing_name(head, backing_offset, backing_length),
        backing_format=backing_format,
        data_file_name=data_file,
    )
    if l1_size * header.l2_entries << cluster_bits < size:
        raise Corrupt("the qcow2 L1 table does not cover the disk")
    return header


def _features(head: bytes) -> tuple[int, int, bool]:
    """Incompatible features, the header's length, and whether clusters are compressed with zstd."""
    if len(head) < _V2.size + _V3.size:
        raise Truncated("the qcow2 header is cut off")
    incompatible, _, _, _, length = _V3.unpack_from(head, _V2.size)
    # Bit 0, "dirty", is let pass: with lazy refcounts the writer did not close the image, so reference counts may be
    # behind. Reading never looks at those; L1 and L2 tables are as valid as in a clean image.
    if unknown := incompatible & ~_KNOWN_INCOMPATIBLE:
        raise UnsupportedVersion(f"the qcow2 image needs features that are not known here (bits 0x{unknown:x})")
    if incompatible & INCOMPATIBLE_CORRUPT:
        raise Corrupt("the qcow2 image is marked as corrupt by QEMU; repair a copy of it with qemu-img check -r all")
    if length < _V2.size + _V3.size or length % 8 or length > len(head):
        raise Corrupt(f"the qcow2 header's length is {length}")
    compression = head[104] if length > 104 else 0
    if compression > 1:
        raise UnsupportedVersion(f"qcow2 compression {compression} is not known here")
    if bool(compression) != bool(incompatible & INCOMPATIBLE_COMPRESSION):
        raise Corrupt("the qcow2 compression type contradicts the feature bits")
    return incompatible, length, compression == 1


def _extensions(head: bytes, at: int, end: int) -> tuple[str | None, str | None]:
    """Format of the backing file, name of the data file."""
    backing_format = data_file = None
    end = min(end, len(head))
    while at + 8 <= end:
        kind, length = struct.unpack_from(">II", head, at)
        at += 8
        if kind == 0:
            break
        if length > end - at:
            raise Corrupt("a qcow2 header extension is longer than its cluster")
        if kind == _EXTENSION_ENCRYPTION:
            raise UnsupportedVersion("the qcow2 image is encrypted")
        if kind == _EXTENSION_BACKING_FORMAT:
            backing_format = _text(head[at : at + length])
        if kind == _EXTENSION_DATA_FILE:
            data_file = _text(head[at : at + length])
        at += (length + 7) & ~7
    return backing_format, data_file


def _backing_name(head: bytes, offset: int, length: int) -> str | None:
    if not offset:
        return None
    if not 0 < length <= _LONGEST_NAME or offset + length > len(head):
        raise Corrupt("the name of the qcow2 backing file is outside the header")
    return _text(head[offset : offset + length])


def _text(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Corrupt("a name in the qcow2 header is not UTF-8") from error
    if not text or "\0" in text:
        raise Corrupt("a name in the qcow2 header is empty or has a zero byte")
    return text
