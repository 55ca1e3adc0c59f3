# SPDX-License-Identifier: AGPL-3.0-or-later
"""A pack: many chunks in one immutable object, with its index at the end, and readable without the index.

    header | record 0 | record 1 | … | sealed index | footer

All integers are little-endian.

Header, 128 bytes:

| offset | size | field | meaning |
|---|---|---|---|
| 0 | 8 | magic | `EWPACK1\\n` |
| 8 | 2 | version | 1 |
| 10 | 1 | kind | 1 data (blocks of disks), 2 meta (block map nodes, files; has a twin) |
| 11 | 1 | cipher | 0 none (checksums only), 1 AES-256-GCM |
| 12 | 4 | generation | which encryption key of the keyset |
| 16 | 16 | repository | id of the repository |
| 32 | 16 | pack | id of this pack |
| 48 | 16 | session | point id of the writer, ASCII, zero-padded |
| 64 | 32 | salt | random, fresh for each pack: the pack's key is derived from it |
| 96 | 28 | reserved | zeroes |
| 124 | 4 | crc | CRC-32 of bytes 0 to 123 |

Record: a frame in the clear, then the sealed body (ciphertext and 16 bytes of tag):

| offset | size | field | meaning |
|---|---|---|---|
| 0 | 4 | magic | `EWr1`, so that a scan finds the next record after damage |
| 4 | 4 | ordinal | 0, 1, 2 …: position in the pack, part of nonce and associated data |
| 8 | 4 | length | bytes of the sealed body, at most 131,072 |
| 12 | 4 | crc | CRC-32 of bytes 0 to 11 |

Body, once opened:

| offset | size | field | meaning |
|---|---|---|---|
| 0 | 1 | form | 0 full, as is; 1 full, zstd; 2 delta against one base; 3 delta against two |
| 1 | 4 | raw length | bytes of content, at most 65,536 |
| 5 | 32 | name | the chunk's name: the tag binds content and name |
| 37 | 32 × bases | base names | full chunks; their contents in this order are the zstd raw dictionary |
| … | | payload | content or zstd frame |

Index, once opened and decompressed (columns, for `count` records): names 32 × n · body lengths u32 × n ·
raw lengths u32 × n · forms u8 × n · fingerprint counts u8 × n · base names 32 × (sum of bases) · fingerprints u64 (hints:
of a block's pages, or of a node's smallest entries; how they are made may change with any version).

Footer, 160 bytes: a copy of the header (128), then index offset u64, index length u32, record count u32,
crc u32 of these 16 bytes, magic `EWPACKX1` and 4 zero bytes.

Nonces (12 bytes): u32 0 and u64 ordinal for a record, u32 1 and u64 0 for the index. Associated data: repository, pack,
and ordinal or `index`. A damaged header is replaced by its copy in the footer; a damaged index or footer by a scan.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from everywhen.formats.errors import BadMagic, Corrupt, Truncated, UnsupportedVersion
from everywhen.formats.ids import CHUNK_NAME_SIZE, PackId

KIND_DATA, KIND_META = 1, 2
CIPHER_NONE, CIPHER_AES_256_GCM = 0, 1
FULL_RAW, FULL_ZSTD, DELTA_ONE, DELTA_TWO = range(4)
TAG_SIZE = 16
MAX_CONTENT = 65536
MAX_BODY = 131072
MAX_RECORDS = 1 << 20

_HEADER = struct.Struct("<8sHBBI16s16s16s32s28xI")
_FRAME = struct.Struct("<4sIII")
_BODY = struct.Struct("<BI32s")
_TAIL = struct.Struct("<QIII8s4x")
_MAGIC, _RECORD_MAGIC, _FOOTER_MAGIC = b"EWPACK1\n", b"EWr1", b"EWPACKX1"
HEADER_SIZE, FRAME_SIZE, FOOTER_SIZE = _HEADER.size, _FRAME.size, _HEADER.size + _TAIL.size


@dataclass(frozen=True, slots=True)
class PackHeader:
    """What a reader must know before it can open anything of the pack."""

    kind: int
    cipher: int
    generation: int
    repository: bytes
    pack: PackId
    session: str
    salt: bytes

    def encode(self) -> bytes:
        """The 128 bytes of the header."""
        session = self.session.encode("ascii")
        fields = (_MAGIC, 1, self.kind, self.cipher, self.generation, self.repository, self.pack, session, self.salt)
        unsigned = _HEADER.pack(*fields, 0)
        return unsigned[:-4] + struct.pack("<I", zlib.crc32(unsigned[:-4]))

    @classmethod
    def decode(cls, data: bytes) -> PackHeader:
        """Raises BadMagic, Truncated, Corrupt, UnsupportedVersion."""
        if len(data) < HEADER_SIZE:
            raise Truncated(f"pack header has {len(data)} of {HEADER_SIZE} bytes")
        magic, version, kind, cipher, generation, repository, pack, session, salt, crc = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise BadMagic("this is not a pack")
        if crc != zlib.crc32(data[: HEADER_SIZE - 4]):
            raise Corrupt("pack header: checksum wrong")
        if version != 1 or kind not in (KIND_DATA, KIND_META) or cipher not in (CIPHER_NONE, CIPHER_AES_256_GCM):
            raise UnsupportedVersion(f"pack version {version}, kind {kind}, cipher {cipher}")
        try:
            word = session.rstrip(b"\0").decode("ascii")
        except UnicodeDecodeError as error:
            raise Corrupt("pack header: the session is not text") from error
        return cls(kind, cipher, generation, repository, PackId(pack), word, salt)


def record_nonce(ordinal: int) -> bytes:
    """The nonce of record `ordinal`; unique because each pack has a key of its own."""
    return struct.pack("<IQ", 0, ordinal)


INDEX_NONCE = struct.pack("<IQ", 1, 0)


def record_aad(header: PackHeader, ordinal: int) -> bytes:
    """Associated data of record `ordinal`."""
    return header.repository + header.pack + struct.pack("<I", ordinal)


def index_aad(header: PackHeader) -> bytes:
    """Associated data of the index."""
    return header.repository + header.pack + b"index"


def encode_frame(ordinal: int, body_length: int) -> bytes:
    """The 16 bytes before a sealed body."""
    start = struct.pack("<4sII", _RECORD_MAGIC, ordinal, body_length)
    return start + struct.pack("<I", zlib.crc32(start))


def decode_frame(data: bytes | memoryview, offset: int = 0) -> tuple[int, int]:
    """(ordinal, body length) of the frame at `offset`. Raises Truncated, BadMagic, Corrupt."""
    if len(data) - offset < FRAME_SIZE:
        raise Truncated("record frame is cut off")
    magic, ordinal, length, crc = _FRAME.unpack_from(data, offset)
    if magic != _RECORD_MAGIC:
        raise BadMagic("no record begins here")
    if crc != zlib.crc32(data[offset : offset + FRAME_SIZE - 4]) or length > MAX_BODY:
        raise Corrupt("record frame: checksum wrong")
    return ordinal, length


def find_frame(data: bytes, start: int) -> int:
    """Offset of the next thing that looks like a frame at or after `start`, or -1: how a scan goes on after damage."""
    return data.find(_RECORD_MAGIC, start)


def encode_body(form: int, raw_length: int, name: bytes, bases: tuple[bytes, ...], payload: bytes | memoryview) -> bytes:
    """The plaintext of a record."""
    return b"".join((_BODY.pack(form, raw_length, name), *bases, payload))


@dataclass(frozen=True, slots=True)
class Record:
    """One chunk as it is stored: `payload` still compressed, against the contents of `bases` if there are any."""

    form: int
    raw_length: int
    name: bytes
    bases: tuple[bytes, ...]
    payload: memoryview


def decode_body(body: bytes) -> Record:
    """Raises Truncated, Corrupt."""
    if len(body) < _BODY.size:
        raise Truncated("record body is cut off")
    form, raw_length, name = _BODY.unpack_from(body)
    if form > DELTA_TWO or raw_length > MAX_CONTENT:
        raise Corrupt(f"record body: form {form}, {raw_length} bytes of content")
    start = _BODY.size
    end = start + CHUNK_NAME_SIZE * bases_of(form)
    if end > len(body):
        raise Truncated("record body ends within its base names")
    bases = tuple(body[at : at + CHUNK_NAME_SIZE] for at in range(start, end, CHUNK_NAME_SIZE))
    return Record(form, raw_length, name, bases, memoryview(body)[end:])


def bases_of(form: int) -> int:
    """How many bases a form has."""
    return max(0, form - FULL_ZSTD)


@dataclass(slots=True)
class PackIndex:
    """The columns of a pack's index, one row a record, in the order of the records.

    names (n, 32) uint8 · lengths (n,) uint32 bytes of the sealed body · raw_lengths (n,) uint32 bytes of content ·
    forms (n,) uint8 · base_names (sum of bases, 32) uint8 · fingerprint_counts (n,) uint8 · fingerprints uint64.
    """

    names: npt.NDArray[np.uint8]
    lengths: npt.NDArray[np.uint32]
    raw_lengths: npt.NDArray[np.uint32]
    forms: npt.NDArray[np.uint8]
    base_names: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 32), np.uint8))
    fingerprint_counts: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    fingerprints: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    starts: npt.NDArray[np.uint32] | None = None
    """(n,) uint32: only in an index rebuilt by a scan, where damage leaves holes between the records."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def base_counts(self) -> npt.NDArray[np.uint8]:
        """(n,) uint8: how many bases each record has."""
        return np.where(self.forms > FULL_ZSTD, self.forms - FULL_ZSTD, 0).astype(np.uint8)

    @property
    def offsets(self) -> npt.NDArray[np.uint32]:
        """(n,) uint32: where each record's frame begins in the pack, bytes."""
        if self.starts is not None:
            return self.starts
        sizes = self.lengths.astype(np.uint64) + FRAME_SIZE
        return (HEADER_SIZE + np.cumsum(sizes) - sizes).astype(np.uint32)

    def encode(self) -> bytes:
        """The plaintext of the index, uncompressed."""
        columns = (self.names, self.lengths, self.raw_lengths, self.forms, self.fingerprint_counts)
        parts = [struct.pack("<I", len(self)), *(np.ascontiguousarray(column).tobytes() for column in columns)]
        return b"".join([*parts, self.base_names.tobytes(), self.fingerprints.tobytes()])

    @classmethod
    def decode(cls, data: bytes) -> PackIndex:
        """Raises Truncated, Corrupt."""
        if len(data) < 4:
            raise Truncated("pack index is cut off")
        count = int.from_bytes(data[:4], "little")
        if count > MAX_RECORDS or len(data) < 4 + count * 42:
            raise Corrupt(f"pack index: {count} records do not fit in {len(data)} bytes")
        at = 4

        def column(dtype: type, size: int) -> npt.NDArray[Any]:
            nonlocal at
            length = size * np.dtype(dtype).itemsize
            if at + length > len(data):
                raise Truncated("pack index is cut off within a column")
            values: npt.NDArray[Any] = np.frombuffer(data, dtype, size, at)
            at += length
            return values

        names = column(np.uint8, count * 32).reshape(count, 32)
        lengths, raw_lengths = column(np.uint32, count), column(np.uint32, count)
        forms, fingerprint_counts = column(np.uint8, count), column(np.uint8, count)
        if count and (int(forms.max()) > DELTA_TWO or int(lengths.max()) > MAX_BODY or int(raw_lengths.max()) > MAX_CONTENT):
            raise Corrupt("pack index: a form or a length is impossible")
        index = cls(names, lengths, raw_lengths, forms, fingerprint_counts=fingerprint_counts)
        bases = int(index.base_counts.sum(dtype=np.int64))
        index.base_names = column(np.uint8, bases * 32).reshape(bases, 32)
        index.fingerprints = column(np.uint64, int(fingerprint_counts.sum(dtype=np.int64)))
        if at != len(data):
            raise Corrupt(f"pack index: {len(data) - at} bytes too many")
        return index


@dataclass(frozen=True, slots=True)
class PackFooter:
    """Where the index is, and a second copy of the header."""

    header: PackHeader
    index_offset: int
    index_length: int
    count: int

    def encode(self) -> bytes:
        """The 160 bytes of the footer."""
        place = struct.pack("<QII", self.index_offset, self.index_length, self.count)
        tail = _TAIL.pack(self.index_offset, self.index_length, self.count, zlib.crc32(place), _FOOTER_MAGIC)
        return self.header.encode() + tail

    @classmethod
    def decode(cls, data: bytes) -> PackFooter:
        """From the last 160 bytes of a pack. Raises BadMagic, Truncated, Corrupt, UnsupportedVersion."""
        if len(data) < FOOTER_SIZE:
            raise Truncated(f"pack footer has {len(data)} of {FOOTER_SIZE} bytes")
        offset, length, count, crc, magic = _TAIL.unpack_from(data, HEADER_SIZE)
        if magic != _FOOTER_MAGIC:
            raise BadMagic("this pack has no footer: it was cut off")
        if crc != zlib.crc32(data[HEADER_SIZE : HEADER_SIZE + 16]):
            raise Corrupt("pack footer: checksum wrong")
        return cls(PackHeader.decode(data), offset, length, count)
