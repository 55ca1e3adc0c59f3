# SPDX-License-Identifier: AGPL-3.0-or-later
"""Content of one block ↔ its stored form: named, compressed, possibly as a delta against one or two full chunks.

A delta is a zstd frame with the bases' contents as raw dictionary (design 4.2): a 64 KiB block with one new 4 KiB page
costs about 4.2 KB instead of 26 KB. Contexts are per codec and a codec is per thread: zstandard's are not thread-safe.
"""

from __future__ import annotations

from typing import NamedTuple

import zstandard
from blake3 import blake3

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
    """Encoding and decoding for one thread. `level` is zstd's (negative: faster, 19: smallest)."""

    def __init__(self, naming_key: bytes, level: int) -> None:
        self._naming_key = naming_key
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._decompressor = zstandard.ZstdDecompressor()

    def name(self, content: Content) -> ChunkName:
        """The keyed BLAKE3 hash that names `content`."""
        return ChunkName(blake3(content, key=self._naming_key).digest())

    def encode_full(self, name: ChunkName, content: Content) -> Encoded:
        """Stored by itself: compressed, or as it is where compression gains nothing."""
        packed = self._compressor.compress(content)
        if len(packed) < len(content):
            return Encoded(name, FULL_ZSTD, len(content), (), packed)
        return Encoded(name, FULL_RAW, len(content), (), content)

    def encode_delta(self, name: ChunkName, content: Content, bases: list[tuple[bytes, bytes]]) -> Encoded:
        """Stored against one or two bases, given as (name, content)."""
        form = DELTA_ONE if len(bases) == 1 else DELTA_TWO
        dictionary = zstandard.ZstdCompressionDict(
            b"".join(base for _, base in bases), dict_type=zstandard.DICT_TYPE_RAWCONTENT
        )
        # Level 1 always: against a good dictionary higher levels gain under 1 % and cost three times as much.
        packed = zstandard.ZstdCompressor(level=1, dict_data=dictionary).compress(content)
        return Encoded(name, form, len(content), tuple(base for base, _ in bases), packed)

    def decode(self, record: Record, bases: list[bytes]) -> bytes:
        """The content of a record, given its bases' contents in order. Raises Corrupt."""
        content = bytes(record.payload) if record.form == FULL_RAW else self._decompress(record, bases)
        if len(content) != record.raw_length:
            raise Corrupt(f"chunk {record.name.hex()}: {len(content)} bytes instead of {record.raw_length}")
        return content

    def _decompress(self, record: Record, bases: list[bytes]) -> bytes:
        decompressor = self._decompressor
        if bases_of(record.form) != len(bases):
            raise Corrupt(f"chunk {record.name.hex()}: {len(bases)} bases for form {record.form}")
        if bases:
            raw = zstandard.ZstdCompressionDict(b"".join(bases), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            decompressor = zstandard.ZstdDecompressor(dict_data=raw)
        try:
            # A frame that claims more than raw_length is refused before anything is allocated.
            if zstandard.frame_content_size(record.payload) != record.raw_length:
                raise Corrupt(f"chunk {record.name.hex()}: frame of another size than the record says")
            return decompressor.decompress(record.payload, max_output_size=record.raw_length)
        except zstandard.ZstdError as error:
            raise Corrupt(f"chunk {record.name.hex()}: {error}") from error
