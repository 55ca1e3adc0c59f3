# SPDX-License-Identifier: AGPL-3.0-or-later
"""On which bytes of the disks the listings of many folders rest, by block: which of them a change may have touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.node import Names
from everywhen.guest.footprint import Ranges
from everywhen.repository.block_differences import BlockNumbers, Differing

Contents = Callable[[Names, Names], tuple[bytes, bytes]]
"""The contents of two chunks, by their names."""


class FolderFootprints:
    """Footprints by the folder's path. A folder without one is touched by any change."""

    def __init__(self) -> None:
        self._places: dict[str, dict[int, dict[str, list[tuple[int, int]]]]] = {}
        """By disk, block and folder: (first, end) within the block."""
        self._of: dict[str, list[tuple[str, int]]] = {}
        self._unknown: set[str] = set()

    def put(self, folder: str, footprint: Mapping[str, Ranges] | None) -> None:
        """Those of a folder, in place of what it had."""
        self.drop(folder)
        if footprint is None:
            self._unknown.add(folder)
            return
        used = self._of[folder] = []
        for disk, ranges in footprint.items():
            blocks = self._places.setdefault(disk, {})
            for offset, length in ranges:
                for block in range(offset // BLOCK_SIZE, (offset + length - 1) // BLOCK_SIZE + 1):
                    start = block * BLOCK_SIZE
                    part = max(offset - start, 0), min(offset + length - start, BLOCK_SIZE)
                    blocks.setdefault(block, {}).setdefault(folder, []).append(part)
                    used.append((disk, block))

    def drop(self, folder: str) -> None:
        """It is there no more."""
        self._unknown.discard(folder)
        for disk, block in self._of.pop(folder, ()):
            folders = self._places[disk].get(block)
            if folders is not None:
                folders.pop(folder, None)
                if not folders:
                    del self._places[disk][block]

    def blocks(self) -> dict[str, BlockNumbers]:
        """The blocks of all of them, by disk, ascending."""
        return {disk: np.array(sorted(blocks), np.int64) for disk, blocks in self._places.items() if blocks}

    def touched(self, found: Mapping[str, Differing], contents: Contents) -> set[str]:
        """The folders of which a byte differs. Raises Damaged, StorageError."""
        touched = set(self._unknown)
        for disk, differing in found.items():
            for block, here, there in zip(differing.blocks.tolist(), differing.here, differing.there, strict=True):
                folders = self._places.get(disk, {}).get(block, {})
                if folders.keys() <= touched:
                    continue
                one, other = contents(here, there)
                touched.update(
                    folder
                    for folder, parts in folders.items()
                    if any(one[first:end] != other[first:end] for first, end in parts)
                )
        return touched
