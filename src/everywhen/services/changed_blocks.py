# SPDX-License-Identifier: AGPL-3.0-or-later
"""Changed blocks told from outside (rule 4.9.10): read from a file, believed only as far as samples confirm them."""

from __future__ import annotations

import json
import os
import random
import stat
from pathlib import Path
from typing import Any

import numpy as np

from everywhen.block.device import BLOCK_SIZE, BlockDevice
from everywhen.formats.ids import NO_CHUNK
from everywhen.formats.node import FANOUT
from everywhen.repository.blockmap import BlockMap, blocks_of
from everywhen.repository.chunk import ChunkCodec
from everywhen.repository.intake import Ranges
from everywhen.services.failures import WrongUsage

_LARGEST = 256 << 20
"""Bytes of a list: about five million extents."""
SAMPLES = 64
"""Unchanged blocks that are looked at: finds a list that misses one block in twenty with 96 %; costs about 10 ms."""


def read_changed_blocks(path: Path, size: int) -> Ranges:
    """Ranges of blocks from a JSON list of extents in bytes.

    Understood: `{"start": …, "length": …}`, and what `nbdinfo --map --json` prints for a dirty bitmap
    (`{"offset": …, "length": …, "type": …}`, where type 0 means clean). Raises WrongUsage.
    """
    try:
        value = json.loads(_content(path))
    except (OSError, ValueError, RecursionError) as error:
        raise WrongUsage(f"{path} cannot be read as a list of changed extents: {error}", on=str(path)) from error
    if not isinstance(value, list):
        raise WrongUsage(f"{path}: a list of extents was expected.", on=str(path))
    ranges: Ranges = []
    for number, item in enumerate(value):
        start, length = _extent(path, number, item)
        if start + length > size + BLOCK_SIZE:
            raise WrongUsage(f"{path}: extent {number} ends at byte {start + length}, the disk at {size}.", on=str(path))
        if length and (not isinstance(item, dict) or item.get("type", 1) != 0):
            ranges.append((start // BLOCK_SIZE, -(-(start + length) // BLOCK_SIZE)))
    merged: Ranges = []
    for first, end in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged


def _content(path: Path) -> bytes:
    """All of a file, or of a pipe that is being written (`<(nbdinfo …)`). Raises OSError, WrongUsage."""
    # Without O_NONBLOCK a FIFO that nobody writes to would be waited for; with it, it is empty.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISFIFO(kind):
            raise WrongUsage(f"{path} is neither a file nor a pipe: a list of extents was expected.", on=str(path))
        if hasattr(os, "O_NONBLOCK"):
            os.set_blocking(descriptor, True)
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise WrongUsage(
            f"{path}: a list of extents with more than {_LARGEST:,} bytes is not read.",
            on=str(path),
            do=["Leave --changed-blocks out: the disk is then compared by hash."],
        )
    return content


def find_miss(device: BlockDevice, base: BlockMap, changed: Ranges, codec: ChunkCodec, chance: random.Random) -> int | None:
    """The number of a block that changed though the list says it did not, if a sample finds one."""
    blocks = min(blocks_of(device.size), blocks_of(base.size))
    # Where a disk was resized its last block is looked at anyway.
    blocks -= 1 if device.size != base.size and blocks else 0
    used = [index for index, _ in base.nodes(0)]
    listed = _Membership(changed)
    for _ in range(SAMPLES if blocks else 0):
        block = chance.randrange(blocks)
        if used and chance.random() < 0.9:
            # Most samples go where the disk had data: elsewhere is little to miss.
            block = min(chance.choice(used) * FANOUT + chance.randrange(FANOUT), blocks - 1)
        if block in listed:
            continue
        start = block * BLOCK_SIZE
        content = device.read(start, min(BLOCK_SIZE, device.size - start))
        content += bytes(BLOCK_SIZE - len(content))
        leaf = base.leaf(block // FANOUT)
        before = leaf[block % FANOUT].tobytes() if leaf is not None else NO_CHUNK
        now = codec.name(content) if content.count(0) != BLOCK_SIZE else NO_CHUNK
        if now != before:
            return block
    return None


class _Membership:
    def __init__(self, ranges: Ranges) -> None:
        self._firsts = np.array([first for first, _ in ranges], np.int64)
        self._ends = np.array([end for _, end in ranges], np.int64)

    def __contains__(self, block: int) -> bool:
        at = int(np.searchsorted(self._firsts, block, side="right")) - 1
        return at >= 0 and block < int(self._ends[at])


def _extent(path: Path, number: int, item: Any) -> tuple[int, int]:  # noqa: ANN401 - parsed JSON
    if isinstance(item, dict):
        start, length = item.get("start", item.get("offset")), item.get("length")
        if all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in (start, length)):
            return int(str(start)), int(str(length))
    raise WrongUsage(f'{path}: extent {number} is not {{"start": bytes, "length": bytes}}.', on=str(path))
