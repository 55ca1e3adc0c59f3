# SPDX-License-Identifier: AGPL-3.0-or-later
"""Differencing images of VHD and VHDX: blocks of which a bitmap says, sector by sector, what is here or the parent's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from everywhen.block.host_file import HostFile
from everywhen.block.mapping import PARENT, PLAIN, Integers, Kinds, Window, check_places

_MOST_BITS: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Blocks:
    """Consecutive blocks: kinds uint8[n], places int64[n]; `bits` bool[k, sectors per block] of the blocks `partial` int64[k].

    A set bit means that the sector is in this image.
    """

    kinds: Kinds
    places: Integers
    partial: Integers
    bits: NDArray[np.bool_]


def blocks_per_window(block_size: int, sector_size: int) -> int:
    """How many blocks' bitmaps are expanded at a time: at most a million bits."""
    return max(1, _MOST_BITS * sector_size // block_size)


def window_of_blocks(start: int, end: int, block_size: int, blocks: Blocks, host: HostFile) -> Window:
    """Runs of whole blocks, and of sectors in those that are here in part."""
    count = len(blocks.kinds)
    begins = start + np.arange(count, dtype=np.int64) * block_size
    whole = np.ones(count, dtype=bool)
    whole[blocks.partial] = False
    turns = np.ones(blocks.bits.shape, dtype=bool)
    turns[:, 1:] = blocks.bits[:, 1:] != blocks.bits[:, :-1]
    rows, columns = np.nonzero(turns)
    inside = columns.astype(np.int64) * (block_size // max(1, blocks.bits.shape[1]))
    here = blocks.partial[rows]
    starts = np.concatenate([begins[whole], begins[here] + inside])
    kinds = np.concatenate([blocks.kinds[whole], np.where(blocks.bits[rows, columns], PLAIN, PARENT).astype(np.uint8)])
    places = np.concatenate([blocks.places[whole], blocks.places[here] + inside])
    order = np.argsort(starts, kind="stable")
    order = order[starts[order] < end]  # the last block may be longer than the disk
    window = Window(start, end, starts[order], kinds[order], places[order], np.zeros(len(order), dtype=np.int64), host)
    check_places(window)
    return window
