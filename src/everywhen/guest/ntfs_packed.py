# SPDX-License-Identifier: AGPL-3.0-or-later
"""Contents that NTFS (LZNT1) or the Windows overlay filter (XPRESS) packed: what is unpacked at once is bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from everywhen.formats.errors import Corrupt
from everywhen.formats.filesystems import ntfs_reparse
from everywhen.guest.content import Stored, listed
from everywhen.guest.errors import GuestDamaged, GuestUnsupported, parsing
from everywhen.guest.tree import Content, Readable, Run, Span

_KEPT = 16
_LARGEST_UNIT = 1 << 21


class _Units:
    """Reads a content made of units of equal length that are unpacked one by one."""

    def __init__(self, size: int, unit: int, what: str) -> None:
        self._size = size
        self._unit = unit
        self._what = what
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._size)
        parts = []
        with parsing(self._what):
            while offset < end:
                index, begin = divmod(offset, self._unit)
                stop = min(self._unit, begin + end - offset)
                parts.append(self._whole(index)[begin:stop].ljust(stop - begin, b"\0"))
                offset += stop - begin
        return b"".join(parts)

    def _whole(self, index: int) -> bytes:
        found = self._kept.get(index)
        if found is None:
            found = self._kept[index] = self._unpack(index)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found

    def _unpack(self, index: int) -> bytes:
        """A unit; what it has not are zeroes."""
        raise NotImplementedError


class PackedContent(_Units):
    """A Content of units of 16 clusters: packed when not all of them are stored, a hole when none is."""

    def __init__(self, volume: Readable, runs: list[Run], size: int, valid: int, unit: int, what: str) -> None:
        if unit > _LARGEST_UNIT:
            raise GuestDamaged(f"{what}: packed in units of {unit} bytes")
        super().__init__(size, unit, what)
        self._valid = valid
        self._source = listed(runs)
        self._volume = volume

    def _unpack(self, index: int) -> bytes:
        from dissect.util.compression import lznt1  # only packed files need it, and it is not quick to load

        start = index * self._unit
        if start >= self._valid:
            return b""
        packed = self._packed(start)
        following = next(self._source(start + len(packed)), None)
        if packed and len(packed) < self._unit and following and following.zero:
            packed = lznt1.decompress(packed)[: self._unit]
        return packed[: self._valid - start]

    def _packed(self, start: int) -> bytes:
        """What is stored of a unit, which is at its begin."""
        parts, at, end = [], start, start + self._unit
        for run in self._source(start):
            if run.start >= end or run.zero or run.stored is None or run.start > at:
                break
            stop = min(run.end, end)
            stored = Stored(self._volume, run.end, listed([run]), self._what)
            parts.append(stored.read(at, stop - at))
            at = stop
        return b"".join(parts)

    def runs(self) -> Iterator[Run]:
        """A unit's bytes are at its begin on the volume; units that follow each other there are told one by one."""
        at = 0
        while at < self._size:
            run = next(self._source(at), None)
            if run is None or at >= self._valid or (run.zero and run.end >= at + self._unit):
                end = self._size if run is None or at >= self._valid else run.end // self._unit * self._unit
                yield Run(at, min(end, self._size) - at, zero=True)
            else:
                end = at + self._unit
                span = self._span(at)
                yield Run(at, min(end, self._size) - at, zero=span is not None and not span.length, stored=span)
            at = end

    def _span(self, start: int) -> Span | None:
        """Where a unit is stored, if that is in one place."""
        found: list[Span] = []
        end = start + self._unit
        for run in self._source(start):
            if run.start >= end:
                break
            if run.stored:
                first = max(start, run.start)
                found.append(Span(run.stored.place + first - run.start, min(end, run.end) - first))
        if not found:
            return Span(0, 0)
        return found[0] if len(found) == 1 else None


class OverlayContent(_Units):
    """A Content that the Windows overlay filter packed (CompactOS); `packed` is the stream that has it."""

    def __init__(self, packed: Content, size: int, algorithm: int, what: str) -> None:
        unit = ntfs_reparse.XPRESS.get(algorithm)
        if unit is None:
            name = "LZX" if algorithm == ntfs_reparse.LZX else f"the algorithm {algorithm}"
            raise GuestUnsupported(f"{what}: packed by the Windows overlay filter with {name}, which is not read here")
        super().__init__(size, unit, what)
        self._packed = packed
        self._count = -(-size // unit)
        self._width = 8 if size > 0xFFFFFFFF else 4

    def _unpack(self, index: int) -> bytes:
        table = (self._count - 1) * self._width
        begin = self._place(index)
        end = self._place(index + 1) if index + 1 < self._count else self._packed.size - table
        wanted = min(self._unit, self._size - index * self._unit)
        if not 0 <= end - begin <= wanted:
            raise Corrupt(f"a piece of {end - begin} bytes for {wanted}")
        data = self._packed.read(table + begin, end - begin)
        if len(data) == wanted:
            return data
        from dissect.util.compression import lzxpress_huffman  # as above

        return bytes(lzxpress_huffman.decompress(data)[:wanted])

    def _place(self, index: int) -> int:
        if not index:
            return 0
        return int.from_bytes(self._packed.read((index - 1) * self._width, self._width), "little")

    def runs(self) -> Iterator[Run]:
        if self._size:
            yield Run(0, self._size, zero=False)
