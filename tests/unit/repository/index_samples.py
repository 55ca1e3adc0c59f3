# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pack indexes made up for tests of the index, of marking and of the fingerprint table."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from everywhen.formats.ids import PackId
from everywhen.formats.node import Names
from everywhen.formats.pack import DELTA_ONE, FULL_ZSTD, PackIndex

Chunk = tuple[bytes, tuple[bytes, ...]]
"""A name and the names of its bases."""


def pack_id(number: int) -> PackId:
    """A pack's id that sorts and reads easily."""
    return PackId(number.to_bytes(16, "big"))


def names_of(*names: bytes) -> Names:
    """(n, 32) uint8."""
    return np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, 32)


def name(number: int, *, key: int | None = None) -> bytes:
    """A name; with `key` one that shares its first 8 bytes with others."""
    first = (number * 0x9E3779B97F4A7C15) % 2**64 if key is None else key
    return first.to_bytes(8, "big") + number.to_bytes(24, "little")


def pack_of(chunks: list[Chunk], prints: list[list[int]] | None = None) -> PackIndex:
    """The index of a pack of these chunks; stored lengths are 100, 101, …"""
    count = len(chunks)
    return PackIndex(
        names_of(*(chunk for chunk, _ in chunks)),
        np.arange(100, 100 + count, dtype=np.uint32),
        np.full(count, 65536, dtype=np.uint32),
        np.array([DELTA_ONE + len(bases) - 1 if bases else FULL_ZSTD for _, bases in chunks], dtype=np.uint8),
        names_of(*(base for _, bases in chunks for base in bases)),
        np.array([len(row) for row in prints] if prints else [0] * count, dtype=np.uint8),
        np.array([value for row in prints or [] for value in row], dtype=np.uint64),
    )


def random_pack(rng: np.random.Generator, count: int) -> PackIndex:
    """Full chunks with random names."""
    return pack_of([(row.tobytes(), ()) for row in rng.integers(0, 256, (count, 32), dtype=np.uint8)])


def random_names(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Names that nobody has."""
    return rng.integers(0, 256, (count, 32), dtype=np.uint8)
