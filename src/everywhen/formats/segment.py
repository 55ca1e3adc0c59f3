# SPDX-License-Identifier: AGPL-3.0-or-later
"""A journal segment: part of one VM's journal, in groups of records; the same bytes in a spool and in the repository.

    header | frame, sealed group | frame, sealed group | …

All integers are little-endian. A segment is only ever appended to. A group that is cut off, or that fails its checksum or tag,
ends it for its reader; that may happen in the last one of a spool only (a crash), and is damage anywhere else.

Header, 192 bytes:

| offset | size | field | meaning |
|---|---|---|---|
| 0 | 8 | magic | `EWJRNL1\\n` |
| 8 | 2 | version | 1 |
| 10 | 1 | cipher | 0 none (checksums only), 1 AES-256-GCM |
| 11 | 1 | reserved | zero |
| 12 | 4 | generation | which key generation of the repository the public key belongs to |
| 16 | 16 | repository | id of the repository |
| 32 | 16 | stream | random: which capture's journal this is; recovery points name it |
| 48 | 8 | epoch | of the capture: each one raises it |
| 56 | 8 | number | of the segment in its stream, from 0 |
| 64 | 8 | sequence | of the first record |
| 72 | 8 | time | of the first record, ns since 1970, by the host's clock |
| 80 | 32 | key | X25519 public key of this segment; its private half is forgotten at once |
| 112 | 76 | reserved | zeroes |
| 188 | 4 | crc | CRC-32 of bytes 0 to 187 |

Frame, 16 bytes: magic `EWg1`, ordinal u32 (0, 1, 2 …), length u32 of the sealed group, crc u32 of these 12 bytes.
Nonce of a group: u32 2 and u64 ordinal. Associated data: header and ordinal.

Group, once opened:

| offset | size | field | meaning |
|---|---|---|---|
| 0 | 8 | sequence | of the first record; the others follow without holes |
| 8 | 8 | time | ns since 1970; the records' times count from here |
| 16 | 4 | count | records |
| 20 | 4 | columns | bytes of the columns, compressed |
| 24 | 8 | data | bytes of the records' data, not compressed |
| 32 | | columns | zstd: kinds u8 × n · disks u8 × n · lengths u32 × n · times u32 × n (ns) · offsets u64 × n |
| | | data | zstd: what was written, and marks as JSON, in order |

Kinds: 1 write, 2 zeroes written, 3 mark (its JSON says what; `offset` is 0, `length` its bytes).

Marks: `{"mark": "tap opened"}` and `"tap closed"`, by the sink; `"complete"`: what the disk held when its tap was opened has
been read, so that from here on every record is a moment until the tap is closed; `"quiet"`: the guest was frozen here;
`"clock set"`: the host's clock was set, from what it would have said (`from_ns`) to what it said (`to_ns`, ns since 1970). What
comes after it is stamped by the new time, but never earlier than what stands before it. Marks that a reader does not know mean
nothing to it.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everywhen.formats import zstd
from everywhen.formats.errors import BadMagic, Corrupt, Truncated, UnsupportedVersion
from everywhen.formats.pack import CIPHER_AES_256_GCM, CIPHER_NONE

WRITE, ZERO, MARK = range(1, 4)
CLOCK_SET = "clock set"
_HAS_DATA = np.array([False, True, False, True])

_HEADER = struct.Struct("<8sHBxI16s16sQQQQ32s76xI")
_FRAME = struct.Struct("<4sIII")
_GROUP = struct.Struct("<QQIIQ")
_MAGIC, _FRAME_MAGIC = b"EWJRNL1\n", b"EWg1"
HEADER_SIZE, FRAME_SIZE = _HEADER.size, _FRAME.size
MAX_RECORDS = 1 << 20
MAX_DATA = 64 << 20
"""Bytes of data in a group: one request of 32 MiB over the 1 MiB after which a group is closed, and room."""
MAX_GROUP = MAX_DATA + (MAX_RECORDS << 5)
_COLUMN_BYTES = 18


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a reader must know before it can open a group; times in nanoseconds since 1970."""

    cipher: int
    generation: int
    repository: bytes
    stream: bytes
    epoch: int
    number: int
    sequence: int
    time_ns: int
    key: bytes

    def encode(self) -> bytes:
        """The 192 bytes of the header."""
        place = (self.stream, self.epoch, self.number, self.sequence, self.time_ns)
        identity = (self.generation, self.repository, *place, self.key)
        unsigned = _HEADER.pack(_MAGIC, 1, self.cipher, *identity, 0)[:-4]
        return unsigned + struct.pack("<I", zlib.crc32(unsigned))

    @classmethod
    def decode(cls, data: bytes) -> SegmentHeader:
        """Raises BadMagic, Truncated, Corrupt, UnsupportedVersion."""
        if len(data) < HEADER_SIZE:
            raise Truncated(f"segment header has {len(data)} of {HEADER_SIZE} bytes")
        magic, version, cipher, *identity, crc = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise BadMagic("this is no journal segment")
        if crc != zlib.crc32(data[: HEADER_SIZE - 4]):
            raise Corrupt("segment header: checksum wrong")
        if version != 1 or cipher not in (CIPHER_NONE, CIPHER_AES_256_GCM):
            raise UnsupportedVersion(f"segment version {version}, cipher {cipher}")
        return cls(cipher, *identity)


def encode_frame(ordinal: int, length: int) -> bytes:
    """The 16 bytes before a sealed group."""
    start = struct.pack("<4sII", _FRAME_MAGIC, ordinal, length)
    return start + struct.pack("<I", zlib.crc32(start))


def decode_frame(data: bytes | memoryview) -> tuple[int, int]:
    """(ordinal, length). Raises Truncated, BadMagic, Corrupt."""
    if len(data) < FRAME_SIZE:
        raise Truncated("segment frame is cut off")
    magic, ordinal, length, crc = _FRAME.unpack_from(data)
    if magic != _FRAME_MAGIC:
        raise BadMagic("no group begins here")
    if crc != zlib.crc32(data[: FRAME_SIZE - 4]) or length > MAX_GROUP:
        raise Corrupt("segment frame: checksum wrong")
    return ordinal, length


def group_nonce(ordinal: int) -> bytes:
    """The nonce of a group; unique because each segment has a key of its own."""
    return struct.pack("<IQ", 2, ordinal)


def group_aad(header: SegmentHeader, ordinal: int) -> bytes:
    """Associated data of a group."""
    return header.encode() + struct.pack("<I", ordinal)


@dataclass(frozen=True, slots=True)
class Group:
    """Records in columns, each (n,): kinds and disks uint8, lengths and times uint32, offsets uint64; and their data.

    `size`: bytes of the group before it was sealed.
    """

    sequence: int
    time_ns: int
    kinds: npt.NDArray[np.uint8]
    disks: npt.NDArray[np.uint8]
    lengths: npt.NDArray[np.uint32]
    times: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.uint64]
    packed_data: bytes | memoryview
    data_size: int
    size: int

    def __len__(self) -> int:
        return len(self.kinds)

    def data_ends(self) -> npt.NDArray[np.int64]:
        """(n,) int64: where each record's data ends in the data; it begins where the one before ended."""
        return np.cumsum(np.where(_HAS_DATA[self.kinds], self.lengths, 0), dtype=np.int64)

    def data(self) -> bytes:
        """The data of all records in order. Raises Corrupt."""
        data = zstd.decompress(self.packed_data, self.data_size) if self.data_size else b""
        if len(data) != self.data_size:
            raise Corrupt(f"journal group: {len(data)} bytes of data instead of {self.data_size}")
        return data


def encode_group(
    sequence: int, time_ns: int, records: list[tuple[int, int, int, int, int]], parts: list[bytes], level: int
) -> bytes:
    """The plaintext of a group: records (kind, disk, offset, length, ns after `time_ns`), and the data of all of them."""
    columns = np.array(records, np.uint64).reshape(-1, 5)
    packed = zstd.compress(
        b"".join(
            (
                columns[:, 0].astype(np.uint8).tobytes(),
                columns[:, 1].astype(np.uint8).tobytes(),
                columns[:, 3].astype(np.uint32).tobytes(),
                columns[:, 4].astype(np.uint32).tobytes(),
                np.ascontiguousarray(columns[:, 2]).tobytes(),
            )
        ),
        level,
    )
    data = b"".join(parts)
    head = _GROUP.pack(sequence, time_ns, len(records), len(packed), len(data))
    return b"".join((head, packed, zstd.compress(data, level) if data else b""))


def decode_group(plain: bytes) -> Group:
    """The records; their data stays packed until it is asked for. Raises Truncated, Corrupt."""
    if len(plain) < _GROUP.size:
        raise Truncated("journal group is cut off")
    sequence, time_ns, count, packed, data_size = _GROUP.unpack_from(plain)
    if not 0 < count <= MAX_RECORDS or data_size > MAX_DATA or _GROUP.size + packed > len(plain):
        raise Corrupt(f"journal group: {count} records, {data_size} bytes of data")
    columns = zstd.decompress(plain[_GROUP.size : _GROUP.size + packed], count * _COLUMN_BYTES)
    if len(columns) != count * _COLUMN_BYTES:
        raise Corrupt("journal group: columns of another length")
    kinds, disks = np.frombuffer(columns, np.uint8, count), np.frombuffer(columns, np.uint8, count, count)
    lengths = np.frombuffer(columns, np.uint32, count, 2 * count)
    times = np.frombuffer(columns, np.uint32, count, 6 * count)
    offsets = np.frombuffer(columns, np.uint64, count, 10 * count)
    packed_data = memoryview(plain)[_GROUP.size + packed :]
    group = Group(sequence, time_ns, kinds, disks, lengths, times, offsets, packed_data, data_size, len(plain))
    if int(kinds.min()) < WRITE or int(kinds.max()) > MARK or int(group.data_ends()[-1]) != data_size:
        raise Corrupt("journal group: a kind or a length is impossible")
    if int(offsets.max()) >= 1 << 63:
        raise Corrupt("journal group: an offset is impossible")
    return group
