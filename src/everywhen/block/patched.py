# SPDX-License-Identifier: AGPL-3.0-or-later
"""A device with changes laid over it: what the journal's records make of a disk, block by block."""

from __future__ import annotations

from collections.abc import Iterator

from everywhen.block.device import BLOCK_SIZE, BlockDevice, Extent

_WHOLE = (1 << BLOCK_SIZE) - 1


class Patches:
    """Changes of a disk, the later over the earlier. A block that is changed takes 64 KiB of memory, zeroes nothing."""

    def __init__(self) -> None:
        self._contents: dict[int, bytearray | None] = {}
        """By block: its content as far as it is changed, or None where all of it is zeroes."""
        self._changed: dict[int, int] = {}
        """By block: which of its bytes are changed, a bit each."""

    def __len__(self) -> int:
        return len(self._contents)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Lay `data` over what is at `offset`."""
        view = memoryview(data)
        for block, first, end, at in _pieces(offset, len(view)):
            content = self._contents.get(block)
            if content is None:
                content = self._contents[block] = bytearray(BLOCK_SIZE)
            content[first:end] = view[at : at + end - first]
            self._changed[block] = self._changed.get(block, 0) | _mask(first, end)

    def zero(self, offset: int, length: int) -> None:
        """Lay zeroes over a range."""
        for block, first, end, _ in _pieces(offset, length):
            if (first, end) == (0, BLOCK_SIZE):
                self._contents[block], self._changed[block] = None, _WHOLE
                continue
            content = self._contents.setdefault(block, None)
            if content is not None:
                content[first:end] = bytes(end - first)
            elif self._changed.get(block, 0) != _WHOLE:
                self._contents[block] = bytearray(BLOCK_SIZE)
            self._changed[block] = self._changed.get(block, 0) | _mask(first, end)

    def lay(self, above: Patches) -> None:
        """Lay all of another's changes over these."""
        for block, content in above._contents.items():
            for first, end in _runs(above._changed[block]):
                if content is None:
                    self.zero(block * BLOCK_SIZE + first, end - first)
                else:
                    self.write(block * BLOCK_SIZE + first, memoryview(content)[first:end])

    def ranges(self, size: int) -> list[tuple[int, int]]:
        """Sorted, disjoint (first, end) numbers of the blocks that are changed, of a disk of `size` bytes."""
        ranges: list[tuple[int, int]] = []
        for block in sorted(block for block in self._contents if block * BLOCK_SIZE < size):
            if ranges and ranges[-1][1] == block:
                ranges[-1] = (ranges[-1][0], block + 1)
            else:
                ranges.append((block, block + 1))
        return ranges

    def over(self, block: int, below: bytes) -> bytes:
        """The content of a block that has the content `below` underneath (as long as the disk has bytes there)."""
        changed = self._changed.get(block, 0)
        if not changed:
            return below
        content = self._contents[block] or bytes(BLOCK_SIZE)
        if changed == _WHOLE:
            return bytes(content[: len(below)])
        result = bytearray(below)
        for first, end in _runs(changed):
            result[first : min(end, len(below))] = content[first : min(end, len(below))]
        return bytes(result)

    def hides(self, block: int) -> bool:
        """Whether nothing underneath shows in this block."""
        return self._changed.get(block, 0) == _WHOLE


class PatchedDevice:
    """`base` with `patches` over it, `size` bytes long; beyond the base's end there are zeroes underneath."""

    def __init__(self, base: BlockDevice, patches: Patches, size: int) -> None:
        self._base = base
        self._patches = patches
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{offset} to {offset + length} is outside a device of {self.size} bytes")
        first = offset // BLOCK_SIZE
        parts = [self._block(block) for block in range(first, -(-(offset + length) // BLOCK_SIZE))]
        return b"".join(parts)[offset - first * BLOCK_SIZE :][:length]

    def extents(self) -> Iterator[Extent]:
        """All of it may be data: who seals reads only what is changed."""
        yield Extent(0, self.size, zero=False)

    def close(self) -> None:
        """The base belongs to whoever opened it."""

    def _block(self, block: int) -> bytes:
        start = block * BLOCK_SIZE
        length = min(BLOCK_SIZE, self.size - start)
        if self._patches.hides(block):
            return self._patches.over(block, bytes(length))
        there = max(0, min(length, self._base.size - start))
        below = self._base.read(start, there) if there else b""
        return self._patches.over(block, below.ljust(length, b"\0"))


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """(block, first byte in it, end in it, position in the range) of a range, block by block."""
    at = 0
    while at < length:
        block, first = divmod(offset + at, BLOCK_SIZE)
        end = min(BLOCK_SIZE, first + length - at)
        yield block, first, end, at
        at += end - first


def _mask(first: int, end: int) -> int:
    return ((1 << end - first) - 1) << first


def _runs(changed: int) -> Iterator[tuple[int, int]]:
    """(first, end) of the runs of set bits."""
    at = 0
    while changed:
        zeroes = (changed & -changed).bit_length() - 1
        changed >>= zeroes
        ones = ((changed + 1) & ~changed).bit_length() - 1
        yield at + zeroes, at + zeroes + ones
        at += zeroes + ones
        changed >>= ones
