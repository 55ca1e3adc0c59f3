# SPDX-License-Identifier: AGPL-3.0-or-later
"""Content of one block ↔ its stored form: named, compressed, possibly as a delta against one or two full chunks.

A delta is a zstd frame with the bases' contents as raw dictionary (design 4.2): a 64 KiB block with one new 4 KiB page
costs about 4.2 KB instead of 26 KB.
"""

from __future__ import annotations

from typing import NamedTuple

from blake3 import blake3

from everywhen.formats import zstd
from everywhen.formats.errors import Corrupt
from everywhen.formats.ids import ChunkName
from everywhen.formats.pack import DELTA_ONE, DELTA_TWO, FULL_RAW, FULL_ZSTD, Record, bases_of

Content = bytes | memoryview
"""What a block holds; a view into the buffer that it was read in where copying it would be a waste."""


class Encoded(NamedTuple):
    """A chunk ready to be sealed into a pack: `form` and `payload` as in `formats/pack.py`."""

    name: ChunkName
    form: int
    raw_length: int
    bases: tuple[bytes, ...]
    payload: Content


class ChunkCodec:
    """Encoding and decoding. `level` is zstd's (negative: faster, 19: smallest). Safe to use from several threads."""

    def __init__(self, naming_key: bytes, level: int) -> None:
        self._naming_key = naming_key
        self._level = level

    def name(self, content: Content) -> ChunkName:
        """The keyed BLAKE3 hash that names `content`."""
        return ChunkName(blake3(content, key=self._naming_key).digest())

    def encode_full(self, name: ChunkName, content: Content) -> Encoded:
        """Stored by itself: compressed, or as it is where compression gains nothing."""
        packed = zstd.compress(content, self._level)
        if len(packed) < len(content):
            return Encoded(name, FULL_ZSTD, len(content), (), packed)
        return Encoded(name, FULL_RAW, len(content), (), content)

    def encode_delta(self, name: ChunkName, content: Content, bases: list[tuple[bytes, bytes]], level: int) -> Encoded:
        """Stored against one or two bases, given as (name, content)."""
        form = DELTA_ONE if len(bases) == 1 else DELTA_TWO
        packed = zstd.compress(content, level, b"".join(base for _, base in bases))
        return Encoded(name, form, len(content), tuple(base for base, _ in bases), packed)

    def decode(self, record: Record, bases: list[bytes]) -> bytes:
        """The content of a record, given its bases' contents in order. Raises Corrupt."""
        if bases_of(record.form) != len(bases):
            raise Corrupt(f"chunk {record.name.hex()}: {len(bases)} bases for form {record.form}")
        if record.form == FULL_RAW:
            content = bytes(record.payload)
        else:
            try:
                content = zstd.decompress(record.payload, record.raw_length, b"".join(bases))
            except Corrupt as error:
                raise Corrupt(f"chunk {record.name.hex()}: {error}") from error
        if len(content) != record.raw_length:
            raise Corrupt(f"chunk {record.name.hex()}: {len(content)} bytes instead of {record.raw_length}")
        return content
