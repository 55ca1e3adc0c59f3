# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names that the repository gives: random, so that they tell nothing (I-8), and made of what every store can hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NewType

ChunkName = NewType("ChunkName", bytes)
"""32 bytes: keyed BLAKE3 of the chunk's content. All zeroes stand for "no chunk: reads as zeroes"."""

PackId = NewType("PackId", bytes)
"""16 random bytes; the object is `packs/<first 2 hex digits>/<32 hex digits>`."""

PointId = NewType("PointId", str)
"""`p-` and 12 random characters of Crockford's base32 (60 bits); also the name of the session that makes it."""

Randomness = Callable[[int], bytes]
"""Gives that many random bytes, fit for keys."""

CHUNK_NAME_SIZE = 32
NO_CHUNK = ChunkName(bytes(CHUNK_NAME_SIZE))

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"
_POINT = re.compile(rf"p-[{_BASE32}]{{12}}")


def random_word(randomness: Randomness, length: int) -> str:
    """`length` random characters of Crockford's base32, 5 bits each."""
    return "".join(_BASE32[byte & 31] for byte in randomness(length))


def new_point_id(randomness: Randomness) -> PointId:
    """A fresh point id."""
    return PointId("p-" + random_word(randomness, 12))


def is_point_id(text: str) -> bool:
    """Whether `text` is a whole point id (a prefix of one is not)."""
    return _POINT.fullmatch(text) is not None


def pack_object(pack: PackId) -> str:
    """The object name of a pack."""
    word = pack.hex()
    return f"packs/{word[:2]}/{word}"


def pack_of_object(name: str) -> PackId | None:
    """The pack whose object name this is, or None for any other name."""
    match = re.fullmatch(r"packs/([0-9a-f]{2})/(\1[0-9a-f]{30})", name)
    return PackId(bytes.fromhex(match[2])) if match else None
