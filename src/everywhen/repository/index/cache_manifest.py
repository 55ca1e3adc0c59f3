# SPDX-License-Identifier: AGPL-3.0-or-later
"""The manifest of a cache folder: which run files it has and what the pack numbers in them mean. Written last.

    size            content
    40              header: magic u64 (version, byte order), kind 8, cache id 16, runs u32, packs u32
    16 a run        its id; the file is `run-<id in hex>`
    32 a pack       id 16, rows u32, removed u32, stored bytes u64; a pack's position is its number in the run files
    4               CRC-32 of all before

Packs are only appended; a removed one keeps its line, so that its number never means another pack. Whoever replaces the
manifest holds the lock file and has just read it.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from everywhen.repository.index.runs import CacheDamaged

PACK_LINE = np.dtype([("id", "V16"), ("rows", np.uint32), ("removed", np.uint32), ("bytes", np.uint64)])
_MAGIC = 0x0001_6E6D_7252_7745
_HEADER = struct.Struct("=Q8s16sII")
_NAME = "manifest"


@dataclass(slots=True)
class Manifest:
    """`cache_id`: random, new each time the cache is begun anew. `packs`: array of PACK_LINE."""

    cache_id: bytes
    runs: list[bytes] = field(default_factory=list)
    packs: NDArray[np.void] = field(default_factory=lambda: np.empty(0, dtype=PACK_LINE))

    def append_packs(self, lines: NDArray[np.void]) -> int:
        """Add packs; the number of the first of them."""
        first = len(self.packs)
        self.packs = np.concatenate((self.packs, lines))
        return first

    def write(self, directory: str, kind: bytes) -> None:
        """Replace the manifest of `directory`. The caller holds the lock."""
        head = _HEADER.pack(_MAGIC, kind, self.cache_id, len(self.runs), len(self.packs))
        content = b"".join((head, *self.runs, self.packs.tobytes()))
        temporary = os.path.join(directory, _NAME + ".new")
        with open(temporary, "wb") as file:
            file.write(content)
            file.write(struct.pack("=I", zlib.crc32(content)))
        os.replace(temporary, os.path.join(directory, _NAME))

    @classmethod
    def read(cls, directory: str, kind: bytes) -> Manifest | None:
        """The manifest of `directory`, or None where there is none. The caller holds the lock. Raises CacheDamaged."""
        try:
            with open(os.path.join(directory, _NAME), "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return None
        if len(content) < _HEADER.size + 4 or zlib.crc32(content[:-4]) != struct.unpack("=I", content[-4:])[0]:
            raise CacheDamaged(f"the manifest of {directory} is cut off or has a wrong checksum")
        magic, found_kind, cache_id, runs, packs = _HEADER.unpack_from(content)
        if magic != _MAGIC or found_kind != kind:
            raise CacheDamaged(f"the manifest of {directory} is of another version")
        packs_at = _HEADER.size + 16 * runs
        if len(content) != packs_at + PACK_LINE.itemsize * packs + 4:
            raise CacheDamaged(f"the manifest of {directory} has an impossible size")
        ids = [content[at : at + 16] for at in range(_HEADER.size, packs_at, 16)]
        return cls(cache_id, ids, np.frombuffer(content, PACK_LINE, packs, packs_at))
