# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where lost chunks can come from: another repository that names chunks by the same key, or a disk that still has them.

What a source gives is never believed: whoever asks hashes it and compares the names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from everywhen.block.device import BLOCK_SIZE, BlockDevice
from everywhen.formats.ids import ChunkName
from everywhen.formats.node import FANOUT
from everywhen.repository.available import available
from everywhen.repository.blockmap import BlockMapBuilder, blocks_of
from everywhen.repository.chunk import ChunkCodec
from everywhen.repository.fetch import ChunkFetcher

_ZERO = bytes(BLOCK_SIZE)
_BATCH = 64


class Source(Protocol):
    """Gives contents of chunks by their names."""

    @property
    def name(self) -> str:
        """As the user named it."""

    def find(self, wanted: Mapping[bytes, bool]) -> Iterator[tuple[bytes, bytes]]:
        """(name, content) of those of the wanted chunks that it has; `wanted` says whether each is a block map node."""


class RepositorySource:
    """Another repository of the same family, opened and with a fresh index."""

    def __init__(self, name: str, fetcher: ChunkFetcher) -> None:
        self.name = name
        self._fetcher = fetcher

    def find(self, wanted: Mapping[bytes, bool]) -> Iterator[tuple[bytes, bytes]]:
        """See Source. Raises StorageError."""
        return available(self._fetcher, sorted(wanted))


class DeviceSource:
    """A disk: all its blocks, and the nodes of the block map that it would get."""

    def __init__(self, name: str, device: BlockDevice, codec: ChunkCodec) -> None:
        self.name = name
        self._device = device
        self._codec = codec

    def find(self, wanted: Mapping[bytes, bool]) -> Iterator[tuple[bytes, bytes]]:
        """See Source. Reads the disk once, as far as it is not known to be zero. Raises DeviceError."""
        nodes: list[tuple[bytes, bytes]] = []

        def put(contents: list[bytes], _before: list[ChunkName | None]) -> list[ChunkName]:
            names = [self._codec.name(content) for content in contents]
            nodes.extend((name, content) for name, content in zip(names, contents, strict=True) if name in wanted)
            return names

        builder = BlockMapBuilder(None, self._device.size, put)
        for index, blocks in self._leaves():
            names = np.zeros((FANOUT, 32), np.uint8)
            for slot, content in self._contents(index, blocks):
                name = self._codec.name(content)
                names[slot] = np.frombuffer(name, np.uint8)
                if name in wanted:
                    yield name, content
            builder.put_leaf(index, names)
            yield from nodes
            nodes.clear()
        builder.finish()
        yield from nodes

    def _leaves(self) -> Iterator[tuple[int, list[int]]]:
        """Leaves with blocks that may hold data, and those blocks' slots; ascending."""
        leaf, slots = 0, dict[int, None]()
        for extent in self._device.extents():
            if extent.zero:
                continue
            for block in range(extent.start // BLOCK_SIZE, min(-(-extent.end // BLOCK_SIZE), blocks_of(self._device.size))):
                if block // FANOUT != leaf and slots:
                    yield leaf, list(slots)
                    slots = {}
                leaf = block // FANOUT
                slots[block % FANOUT] = None
        if slots:
            yield leaf, list(slots)

    def _contents(self, leaf: int, slots: list[int]) -> Iterator[tuple[int, bytes]]:
        """Contents of blocks that are not zero, padded as in a backup; neighbours are read together."""
        runs = np.split(np.array(slots), np.flatnonzero(np.diff(slots) != 1) + 1)
        for run in (part for whole in runs for part in np.split(whole, range(_BATCH, len(whole), _BATCH))):
            start = (leaf * FANOUT + int(run[0])) * BLOCK_SIZE
            length = min(len(run) * BLOCK_SIZE, self._device.size - start)
            read = self._device.read(start, length)
            for number, slot in enumerate(run.tolist()):
                content = read[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE].ljust(BLOCK_SIZE, b"\0")
                if content != _ZERO:
                    yield slot, content
