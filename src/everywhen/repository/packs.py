# SPDX-License-Identifier: AGPL-3.0-or-later
"""Packs: built in memory, stored whole; read by their footer, or record by record when that is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from everywhen.formats import zstd
from everywhen.formats.errors import BadMagic, Corrupt, FormatError, Truncated
from everywhen.formats.ids import PackId, PointId, Randomness, pack_object
from everywhen.formats.pack import (
    FOOTER_SIZE,
    FRAME_SIZE,
    HEADER_SIZE,
    INDEX_NONCE,
    KIND_META,
    MAX_RECORDS,
    PackFooter,
    PackHeader,
    PackIndex,
    Record,
    decode_body,
    decode_frame,
    encode_body,
    encode_frame,
    find_frame,
    index_aad,
    record_aad,
    record_nonce,
)
from everywhen.repository.chunk import Encoded
from everywhen.repository.keys.cipher import Cipher, Ciphers
from everywhen.repository.once import put_once
from everywhen.repository.twins import twin_of
from everywhen.storage.base import ObjectReader, ObjectStore

PACK_SIZE = 32 << 20
"""Bytes after which a pack is closed: few objects on object stores, and little to copy when gc compacts one."""

_MAX_INDEX = 256 << 20


class PackBuilder:
    """Collects chunks for one pack. Belongs to one thread; never touched again after `finish`."""

    def __init__(self, ciphers: Ciphers, repository: bytes, kind: int, session: PointId | str, randomness: Randomness) -> None:
        pack, salt = PackId(randomness(16)), randomness(32)
        self.header = PackHeader(kind, ciphers.kind, ciphers.generation, repository, pack, session, salt)
        self._cipher = ciphers.cipher(ciphers.kind, ciphers.generation, salt, "pack")
        self._parts: list[bytes] = [self.header.encode()]
        self._rows: list[Encoded] = []
        self._lengths: list[int] = []
        self._fingerprints: list[list[int]] = []
        self.size = HEADER_SIZE

    @property
    def pack(self) -> PackId:
        return self.header.pack

    @property
    def stored_bytes(self) -> int:
        """Bytes of the object and of its twin, where it has one. Known when it is finished."""
        return self.size * (2 if self.header.kind == KIND_META else 1)

    @property
    def full(self) -> bool:
        return self.size >= PACK_SIZE or len(self._rows) >= MAX_RECORDS - 1

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, chunk: Encoded, fingerprints: list[int] | None = None) -> int:
        """Seal a chunk into the pack; gives the bytes it takes there. At most 255 page fingerprints (uint64)."""
        ordinal = len(self._rows)
        body = encode_body(chunk.form, chunk.raw_length, chunk.name, chunk.bases, chunk.payload)
        sealed = self._cipher.seal(record_nonce(ordinal), body, record_aad(self.header, ordinal))
        self._parts += (encode_frame(ordinal, len(sealed)), sealed)
        self._rows.append(Encoded(chunk.name, chunk.form, chunk.raw_length, chunk.bases, b""))
        self._lengths.append(len(sealed))
        self._fingerprints.append(fingerprints or [])
        self.size += FRAME_SIZE + len(sealed)
        return FRAME_SIZE + len(sealed)

    def finish(self) -> tuple[PackIndex, list[bytes]]:
        """The index, and the parts of the object in order."""
        index = self._index()
        # What is about to be stored is read back first: a fault of memory or of this program is found while the data
        # is still at hand, not at the restore.
        plain = index.encode()
        if PackIndex.decode(plain).encode() != plain:
            raise Corrupt("pack index does not survive encoding")
        sealed = self._cipher.seal(INDEX_NONCE, zstd.compress(plain, 3), index_aad(self.header))
        footer = PackFooter(self.header, self.size, len(sealed), len(self._rows)).encode()
        self.size += len(sealed) + len(footer)
        return index, [*self._parts, sealed, footer]

    def _index(self) -> PackIndex:
        count = len(self._rows)
        bases = b"".join(base for row in self._rows for base in row.bases)
        return PackIndex(
            names=np.frombuffer(b"".join(row.name for row in self._rows), np.uint8).reshape(count, 32),
            lengths=np.array(self._lengths, np.uint32),
            raw_lengths=np.array([row.raw_length for row in self._rows], np.uint32),
            forms=np.array([row.form for row in self._rows], np.uint8),
            base_names=np.frombuffer(bases, np.uint8).reshape(-1, 32),
            fingerprint_counts=np.array([len(row) for row in self._fingerprints], np.uint8),
            fingerprints=np.array([value for row in self._fingerprints for value in row], np.uint64),
        )


def store_pack(store: ObjectStore, builder: PackBuilder) -> PackIndex:
    """Put the pack (and its twin, for kind meta); durable on return."""
    index, parts = builder.finish()
    put_once(store, pack_object(builder.pack), parts)
    if builder.header.kind == KIND_META:
        store.put(twin_of(pack_object(builder.pack)), parts)
    return index


@dataclass(frozen=True, slots=True)
class OpenPack:
    """A pack whose header is known: opens records that were read from it. Safe to use from several threads."""

    header: PackHeader
    cipher: Cipher

    def open_record(self, data: bytes | memoryview) -> Record:
        """The record in `data` (frame and body). Raises FormatError."""
        ordinal, length = decode_frame(data)
        if len(data) < FRAME_SIZE + length:
            raise Truncated(f"record {ordinal} is cut off")
        sealed = memoryview(data)[FRAME_SIZE : FRAME_SIZE + length]
        return decode_body(self.cipher.open(record_nonce(ordinal), sealed, record_aad(self.header, ordinal)))


class PackReader:
    """Reads the packs of one repository from one store."""

    def __init__(self, store: ObjectReader, repository: bytes, ciphers: Ciphers) -> None:
        self.store = store
        self._repository = repository
        self._ciphers = ciphers

    def open(self, pack: PackId, *, twin: bool = False) -> OpenPack:
        """By the header, or by its copy in the footer. Raises ObjectNotFound, FormatError."""
        name = self._name(pack, twin=twin)
        try:
            header = PackHeader.decode(self.store.get_range(name, 0, HEADER_SIZE))
        except FormatError:
            size = self.store.size(name)
            header = PackFooter.decode(self.store.get_range(name, max(0, size - FOOTER_SIZE), FOOTER_SIZE)).header
        return self._opened(pack, header)

    def index(self, pack: PackId, size: int, *, twin: bool = False) -> tuple[OpenPack, PackIndex]:
        """The index at the end of a pack of `size` bytes. Raises ObjectNotFound, FormatError."""
        name = self._name(pack, twin=twin)
        # One read gets footer and index of nearly all packs: 1,000 records take about 60 KB.
        guess = min(size, 128 << 10)
        tail = self.store.get_range(name, size - guess, guess)
        if len(tail) < guess:
            raise Truncated(f"{name}: shorter than when it was listed")
        footer = PackFooter.decode(tail[-FOOTER_SIZE:])
        if footer.index_offset + footer.index_length + FOOTER_SIZE != size or footer.index_length > _MAX_INDEX:
            raise Corrupt(f"{name}: index and footer do not fit together")
        opened = self._opened(pack, footer.header)
        need = footer.index_length + FOOTER_SIZE
        sealed = tail[-need:-FOOTER_SIZE] if need <= guess else self.store.get_range(name, size - need, need - FOOTER_SIZE)
        try:
            packed = opened.cipher.open(INDEX_NONCE, sealed, index_aad(footer.header))
            index = PackIndex.decode(zstd.decompress(packed, _MAX_INDEX))
        except Corrupt as error:
            raise Corrupt(f"{name}: index: {error}") from error
        if len(index) != footer.count or self._end(index) != footer.index_offset:
            raise Corrupt(f"{name}: index and footer disagree")
        return opened, index

    def scan(self, pack: PackId, *, twin: bool = False) -> Iterator[tuple[int, Record | FormatError]]:
        """Every record with its offset, by reading the whole pack without its index; damaged ones as their error.

        Raises ObjectNotFound, and FormatError when neither header nor footer can be read.
        """
        opened = self.open(pack, twin=twin)
        data = self.store.get(self._name(pack, twin=twin))
        at = HEADER_SIZE
        while 0 <= at < len(data) - FRAME_SIZE:
            try:
                _, length = decode_frame(data, at)
            except FormatError as error:
                # The sealed index and the footer follow the last record: no more frames is the normal end.
                following = find_frame(data, at + 1)
                if following >= 0 and not isinstance(error, Truncated):
                    yield at, error
                at = following
                continue
            try:
                yield at, opened.open_record(memoryview(data)[at : at + FRAME_SIZE + length])
            except FormatError as error:
                yield at, error
            at += FRAME_SIZE + length

    def rebuild_index(self, pack: PackId, *, twin: bool = False) -> tuple[OpenPack, PackIndex, int]:
        """The index as the readable records tell it (without fingerprints), and how many records are damaged.

        Raises ObjectNotFound, FormatError.
        """
        opened = self.open(pack, twin=twin)
        found = list(self.scan(pack, twin=twin))
        good = [(at, record) for at, record in found if isinstance(record, Record)]
        if not good:
            raise BadMagic(f"{pack_object(pack)}: no readable record")
        rows = [record for _, record in good]
        index = PackIndex(
            names=np.frombuffer(b"".join(record.name for record in rows), np.uint8).reshape(len(rows), 32),
            lengths=np.array([self._body_length(record) for record in rows], np.uint32),
            raw_lengths=np.array([record.raw_length for record in rows], np.uint32),
            forms=np.array([record.form for record in rows], np.uint8),
            base_names=np.frombuffer(b"".join(b for r in rows for b in r.bases), np.uint8).reshape(-1, 32),
            fingerprint_counts=np.zeros(len(rows), np.uint8),
            starts=np.array([at for at, _ in good], np.uint32),
        )
        return opened, index, len(found) - len(good)

    def _opened(self, pack: PackId, header: PackHeader) -> OpenPack:
        if header.pack != pack or header.repository != self._repository:
            raise Corrupt(f"{pack_object(pack)}: holds another pack or one of another repository")
        return OpenPack(header, self._ciphers.cipher(header.cipher, header.generation, header.salt, "pack"))

    @staticmethod
    def _name(pack: PackId, *, twin: bool) -> str:
        return twin_of(pack_object(pack)) if twin else pack_object(pack)

    @staticmethod
    def _end(index: PackIndex) -> int:
        return HEADER_SIZE + int(index.lengths.sum(dtype=np.int64)) + FRAME_SIZE * len(index)

    @staticmethod
    def _body_length(record: Record) -> int:
        return 37 + 32 * len(record.bases) + len(record.payload) + 16
