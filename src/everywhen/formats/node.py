# SPDX-License-Identifier: AGPL-3.0-or-later
"""A node of a block map: up to 256 chunk names. Nodes are chunks themselves.

| offset | size | field | meaning |
|---|---|---|---|
| 0 | 4 | magic | `EWn1` |
| 4 | 1 | level | 0: entries name blocks; n: entries name nodes of level n - 1 |
| 5 | 3 | reserved | zeroes |
| 8 | 32 × 256 | entries | chunk names; all zeroes: absent, the whole range reads as zeroes |

A node of level n at index i covers blocks i × 256^(n+1) to (i + 1) × 256^(n+1) - 1, whatever the disk's size. The
root's level is the smallest that covers the disk (`root_level`). Canonical form (design 4.9.5): an all-zero node is absent,
entries beyond the end of the disk are absent, so equal disks have equal roots.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from everywhen.formats.errors import BadMagic, Corrupt, Truncated

FANOUT = 256
NODE_SIZE = 8 + 32 * FANOUT

_MAGIC = b"EWn1"

Names = npt.NDArray[np.uint8]
"""Chunk names, shape (n, 32)."""


def encode_node(level: int, names: Names) -> bytes:
    """`names` has shape (256, 32)."""
    return _MAGIC + bytes([level, 0, 0, 0]) + names.tobytes()


def decode_node(data: bytes, level: int) -> Names:
    """The (256, 32) names of a node that must be of that level. Raises BadMagic, Truncated, Corrupt."""
    if len(data) < NODE_SIZE:
        raise Truncated(f"block map node has {len(data)} of {NODE_SIZE} bytes")
    if data[:4] != _MAGIC:
        raise BadMagic("this chunk is not a block map node")
    if data[4] != level or any(data[5:8]) or len(data) > NODE_SIZE:
        raise Corrupt(f"block map node: level {data[4]} where {level} was expected, or stray bytes")
    return np.frombuffer(data, np.uint8, 32 * FANOUT, 8).reshape(FANOUT, 32)


def root_level(blocks: int) -> int:
    """The level of the root of a disk of so many blocks."""
    level = 0
    while FANOUT ** (level + 1) < blocks:
        level += 1
    return level
