# SPDX-License-Identifier: AGPL-3.0-or-later
"""One entry of the chunk index: where one copy of a chunk is. 64 bytes with its key (design 4.9.8).

The key is the number that the first 8 bytes of the name make, big-endian, so that keys sort like names. The record:

| size | field | meaning |
|---|---|---|
| 24 | rest | the other bytes of the name |
| 4 | pack | number of the pack, in the table of the cache or of the process |
| 4 | offset | of the stored record in the pack, bytes |
| 8 | shape | bits 0-17 length of the stored record, 18-34 of the content, 35-36 number of bases, 37-56 row in the pack |
| 16 | bases | keys of the names of up to two bases; for marking only: who reads a delta finds whole names in the record |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from everywhen.formats.node import Names
from everywhen.formats.pack import FRAME_SIZE, MAX_BODY, MAX_CONTENT, MAX_RECORDS, PackIndex
from everywhen.repository.index.runs import Keys, Records

ENTRY = np.dtype(
    [("rest", np.uint64, (3,)), ("pack", np.uint32), ("offset", np.uint32), ("shape", np.uint64), ("bases", np.uint64, (2,))]
)
_LENGTH_BITS, _RAW_BITS, _BASES_BITS, _ROW_BITS = 18, 17, 2, 20
_RAW_AT, _BASES_AT = _LENGTH_BITS, _LENGTH_BITS + _RAW_BITS
_ROW_AT = _BASES_AT + _BASES_BITS

Shapes = NDArray[np.uint64]


def split_names(names: Names) -> tuple[Keys, Keys]:
    """Names (n, 32) as keys (n,) and the other three numbers (n, 3), in machine order: good for comparing only."""
    words = np.ascontiguousarray(names).view(np.uint64).reshape(-1, 4)
    return words[:, 0].astype(np.uint64).view(">u8").astype(np.uint64), words[:, 1:]


def join_names(keys: Keys, rest: Keys) -> Names:
    """The opposite of `split_names`."""
    first = keys.astype(">u8").view(np.uint64).reshape(-1, 1)
    return np.ascontiguousarray(np.concatenate((first, rest), axis=1)).view(np.uint8).reshape(-1, 32)


def entries_of(index: PackIndex) -> tuple[Keys, Records]:
    """The entries of a pack, `pack` still 0. Raises ValueError when a number does not fit its field."""
    if len(index) > MAX_RECORDS or (
        len(index) and (int(index.lengths.max()) > MAX_BODY or int(index.raw_lengths.max()) > MAX_CONTENT)
    ):
        raise ValueError("a pack's index is beyond the limits of the format")
    keys, rest = split_names(index.names)
    records = np.zeros(len(index), dtype=ENTRY)
    records["rest"], records["offset"] = rest, index.offsets
    counts = index.base_counts.astype(np.uint64)
    rows = np.arange(len(index), dtype=np.uint64)
    lengths = index.lengths.astype(np.uint64) + np.uint64(FRAME_SIZE)
    raw = index.raw_lengths.astype(np.uint64) << np.uint64(_RAW_AT)
    records["shape"] = lengths | raw | (counts << np.uint64(_BASES_AT)) | (rows << np.uint64(_ROW_AT))
    if len(index.base_names):
        base_keys, _ = split_names(index.base_names)
        ends = np.cumsum(counts.astype(np.int64))
        one, two = np.nonzero(counts >= 1)[0], np.nonzero(counts == 2)[0]
        records["bases"][one, 0] = base_keys[ends[one] - counts[one].astype(np.int64)]
        records["bases"][two, 1] = base_keys[ends[two] - 1]
    return keys, records


def stored_lengths(shapes: Shapes) -> NDArray[np.uint32]:
    """Bytes of the stored records, frame included."""
    return (shapes & np.uint64((1 << _LENGTH_BITS) - 1)).astype(np.uint32)


def raw_lengths(shapes: Shapes) -> NDArray[np.uint32]:
    """Bytes of content."""
    return ((shapes >> np.uint64(_RAW_AT)) & np.uint64((1 << _RAW_BITS) - 1)).astype(np.uint32)


def base_counts(shapes: Shapes) -> NDArray[np.uint8]:
    """0 for full copies, 1 or 2 for deltas."""
    return ((shapes >> np.uint64(_BASES_AT)) & np.uint64((1 << _BASES_BITS) - 1)).astype(np.uint8)


def rows_in_pack(shapes: Shapes) -> NDArray[np.int64]:
    """Positions of the records in their packs."""
    return (shapes >> np.uint64(_ROW_AT)).astype(np.int64)


def split_shape(shape: int) -> tuple[int, int, bool]:
    """(stored length, content length, whether it is a delta) of one shape."""
    raw = (shape >> _RAW_AT) & ((1 << _RAW_BITS) - 1)
    return shape & ((1 << _LENGTH_BITS) - 1), raw, bool((shape >> _BASES_AT) & ((1 << _BASES_BITS) - 1))
