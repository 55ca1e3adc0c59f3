# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk of an opened moment: its block map, the journal's records over it, blocks from the cache, and reading ahead."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from everywhen.block.device import BLOCK_SIZE, Extent
from everywhen.block.patched import Patches
from everywhen.formats.ids import NO_CHUNK
from everywhen.formats.layouts.runs import Runs
from everywhen.formats.node import FANOUT, Names
from everywhen.formats.point import Tree
from everywhen.repository.blockmap import BlockMap
from everywhen.repository.used_ranges import UsedRanges
from everywhen.services.view.blocks import Blocks

_FIRST_AHEAD, _MOST_AHEAD = 4, 64
"""Blocks, 256 KiB and 4 MiB: for one who reads in order as much is fetched ahead as he has read, within these."""
_STREAMS = 16
"""Places at which somebody reads on in order: nbdcopy has up to four connections, with several requests each."""
_ZEROES = bytes(BLOCK_SIZE)


class _NotAtHand(Exception):
    """A node of the block map has to be fetched: this one."""

    def __init__(self, name: bytes) -> None:
        super().__init__(name.hex())
        self.name = name


class _Nodes:
    """Nodes of the block map out of the cache of blocks. It does not know the disk, which is to go when nobody uses it."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks

    def read(self, names: Names) -> list[bytes]:
        keys = [row.tobytes() for row in names]
        found = self._blocks.get(keys)
        return [found[key] for key in keys]

    def read_at_hand(self, names: Names) -> list[bytes]:
        """Raises _NotAtHand."""
        found = []
        for key in (row.tobytes() for row in names):
            content = self._blocks.at_hand(key)
            if content is None:
                raise _NotAtHand(key)
            found.append(content)
        return found


class MomentDisk:
    """A read-only BlockDevice of which several threads may read at once."""

    def __init__(self, used: UsedRanges, blocks: Blocks, tree: Tree, patches: Patches | None = None) -> None:
        """`patches`: what the journal has after the point; they do not change any more."""
        self.size = tree.size
        self._used = used
        self._tree = tree
        self._blocks = blocks
        nodes = _Nodes(blocks)
        self._map = BlockMap(nodes.read, tree)
        self._map_at_hand = self._map.beside(nodes.read_at_hand)
        """The same, for who must not wait: raises _NotAtHand."""
        self._patches = patches or Patches()
        self._patched = self._patches.blocks()
        self._streams: OrderedDict[int, tuple[int, int]] = OrderedDict()
        """By the byte at which a reader would go on: where he began, and up to which block is fetched for him."""
        self._streams_lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly the bytes asked for. Raises ValueError outside the disk, Damaged, StorageError."""
        self._check(offset, length)
        first, end = offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)
        names = self._names(self._map, first, end)
        self._read_on(offset, offset + length)
        contents = self._blocks.get(name for name in names if name)
        return self._joined(offset, length, [contents[name] if name else _ZEROES for name in names])

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """The same where nothing has to be fetched, else None. Raises ValueError outside the disk, FormatError."""
        self._check(offset, length)
        first, end = offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)
        try:
            names = self._names(self._map_at_hand, first, end)
        except _NotAtHand:
            return None
        contents: list[bytes] = []
        for name in names:
            content = self._blocks.at_hand(name) if name else _ZEROES
            if content is None:
                return None
            contents.append(content)
        self._read_on(offset, offset + length)
        return self._joined(offset, length, contents)

    def status(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """(bytes, whether they are known to be zero) of a range, in order; neighbours differ. Raises as `read`.

        Step by step: whoever wants to know how the range begins need not wait for all of it.
        """
        self._check(offset, length)
        begin, end = offset, offset + length
        at, kind = offset, False
        while at < end:
            stop, zero = self._run(at // BLOCK_SIZE, -(-end // BLOCK_SIZE))
            if at > begin and zero != kind:
                yield at - begin, kind
                begin = at
            at, kind = min(stop * BLOCK_SIZE, end), zero
        if end > begin:
            yield end - begin, kind

    def extents(self) -> Iterator[Extent]:
        """The whole disk in order."""
        at = 0
        for length, zero in self.status(0, self.size):
            yield Extent(at, length, zero=zero)
            at += length

    def allocated(self) -> Runs:
        """Which bytes are not known to be zero, as a restore has them: for millions of extents in a second.

        With a block map of its own, which nobody waits for. Raises Damaged, StorageError.
        """
        return self._used.of(self._tree, self._patches)

    def close(self) -> None:
        """Nothing is held."""

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are outside a disk of {self.size} bytes")

    def _names(self, block_map: BlockMap, first: int, end: int) -> list[bytes | None]:
        """The chunks of some blocks; None for those that read as zeroes, or of which nothing shows below the records."""
        names: list[bytes | None] = []
        for leaf in range(first // FANOUT, -(-end // FANOUT)):
            low, high = max(first, leaf * FANOUT), min(end, (leaf + 1) * FANOUT)
            entries = block_map.leaf(leaf)
            if entries is None:
                names += [None] * (high - low)
                continue
            for row in entries[low - leaf * FANOUT : high - leaf * FANOUT]:
                name = row.tobytes()
                names.append(None if name == NO_CHUNK else name)
        if self._patched:
            names = [None if name and self._patches.hides(block) else name for block, name in enumerate(names, first)]
        return names

    def _joined(self, offset: int, length: int, contents: list[bytes]) -> bytes:
        first = offset // BLOCK_SIZE
        if self._patched:
            contents = [self._patches.over(block, content) for block, content in enumerate(contents, first)]
        start = offset - first * BLOCK_SIZE
        if len(contents) == 1:
            return contents[0][start : start + length]
        # Cut before they are joined: a whole block more or less at either end would be copied twice.
        if contents:
            last = start + length - (len(contents) - 1) * BLOCK_SIZE
            contents[-1] = contents[-1][:last]
            contents[0] = contents[0][start:]
        return b"".join(contents)

    def _run(self, block: int, end: int) -> tuple[int, bool]:
        """From `block` on: up to which block (at most `end`) all is alike, and whether that is zero."""
        index, slot = divmod(block, FANOUT)
        absent = self._absent_leaves(index)
        if absent:
            stop, zero = (index + absent) * FANOUT, True
        else:
            entries = self._map.leaf(index)
            used: npt.NDArray[np.bool_] = np.zeros(FANOUT, np.bool_) if entries is None else np.asarray(entries.any(axis=1))
            zero = not bool(used[slot])
            others = np.flatnonzero(used[slot:] != used[slot])
            stop = block + int(others[0]) if len(others) else (index + 1) * FANOUT
        if block in self._patches:
            return block + 1, False  # the records may well have zeroes there: nobody looks
        at = bisect_left(self._patched, block)
        patched = self._patched[at] if zero and at < len(self._patched) else end
        return min(stop, end, patched), zero

    def _absent_leaves(self, index: int) -> int:
        """How many leaves from this one on are absent together with a node above them; 0 where the leaf is there."""
        absent = 0
        for level in range(self._map.level + 1):
            if self._map.node_name(level, index >> 8 * level) is not None:
                break
            absent = ((index >> 8 * level) + 1 << 8 * level) - index
        return absent

    def _read_on(self, offset: int, end: int) -> None:
        """Somebody reads these bytes; for one who goes on from where he was what comes next is fetched ahead. Never waits."""
        with self._streams_lock:
            stream = self._streams.pop(offset, None)
            begin, reached = stream or (offset, 0)
            at = -(-end // BLOCK_SIZE)
            first = stop = max(reached, at)
            if stream:
                window = min(max((end - begin) // BLOCK_SIZE, _FIRST_AHEAD), _MOST_AHEAD)
                stop = min(at + window, -(-self.size // BLOCK_SIZE))
                if stop - first < window // 2:
                    stop = first  # a few at a time cost as much as many
            self._streams[end] = begin, stop
            if len(self._streams) > _STREAMS:
                self._streams.popitem(last=False)
        if stop == first:
            return
        try:
            ahead = [name for name in self._names(self._map_at_hand, first, stop) if name]
        except _NotAtHand as node:  # it comes first; the reader's next step finds it
            ahead = [node.name]
            with self._streams_lock:
                if end in self._streams:
                    self._streams[end] = begin, first
        self._blocks.ahead(ahead)
