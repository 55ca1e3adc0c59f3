# SPDX-License-Identifier: AGPL-3.0-or-later
"""An image file as a layout: an ordered list of segments, either computed bytes or ranges of the disk; holes between.

A layout is a pure function of the disk's size, of which of its parts are allocated, and of an identity (UUID, creation
time, name) that the caller chooses. Whoever has one can

- write the file: the computed bytes once (`metadata`), then each range of the disk at its place (`places`);
- be the file: `read` any part of it from any disk, without writing anything (O(log n) to find the place).

Segments live in four parallel numpy arrays, 25 bytes each: a qcow2 file for a 1 TB disk with a million scattered blocks
is 30 MB in memory, and one for a full 1 TB disk is a handful of segments.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from everywhen.formats.layouts.runs import Int64s, Runs
from everywhen.formats.layouts.sources import Literal, Source

SECTOR = 512
"""Bytes; every format but raw counts its disk in these."""

_METADATA_PIECE = 1 << 20
_DISK = 0  # in `origins`; k > 0 is sources[k - 1]

ReadDisk = Callable[[int, int], bytes]
"""(offset, length) -> exactly these bytes of the disk."""


class LayoutError(Exception):
    """This format cannot hold this disk. Says which limit, and which format can."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one image file from another; chosen by the caller, so that a layout can be computed again.

    `created` is in seconds since 1970-01-01 UTC. `file_name` is written into VMDK descriptors only.
    """

    uuid: uuid.UUID
    created: int
    file_name: str = "disk"


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes `start` to `start + length` of the file.

    `source` None and `disk_offset` >= 0: these bytes of the disk. `source` set: `source.read(source_offset, ...)`.
    Neither: a hole, zeroes.
    """

    start: int
    length: int
    disk_offset: int = -1
    source: Source | None = None
    source_offset: int = 0


@dataclass(frozen=True, eq=False)
class Layout:
    """How an image file is composed. Immutable; all methods may be called from any thread.

    `disk_size` is what was asked for, `virtual_size` what the image shows (rounded up to whole sectors, the rest reads
    as zeroes), `file_size` the length of the file; all in bytes. `starts`, `lengths`, `origins`, `offsets` describe the
    segments, ascending: where in the file, how long, from the disk (0) or from `sources[origin - 1]`, from where in it.
    """

    format: str
    disk_size: int
    virtual_size: int
    file_size: int
    starts: Int64s = field(repr=False)
    lengths: Int64s = field(repr=False)
    origins: NDArray[np.uint8] = field(repr=False)
    offsets: Int64s = field(repr=False)
    sources: tuple[Source, ...] = field(repr=False)

    @property
    def padding(self) -> int:
        """Bytes of zeroes that the image shows after the disk's end, because its format counts in sectors."""
        return self.virtual_size - self.disk_size

    @property
    def stored(self) -> int:
        """Bytes that are not holes: the room that the file takes in a file system with sparse files, about."""
        return int(self.lengths.sum())

    def locate(self, file_offset: int) -> Segment:
        """The segment or hole that has this byte of the file. Raises ValueError outside the file."""
        if not 0 <= file_offset < self.file_size:
            raise ValueError(f"{file_offset} is outside a file of {self.file_size} bytes")
        return self._segment(int(np.searchsorted(self.starts, file_offset, side="right")) - 1, file_offset)

    def _segment(self, index: int, file_offset: int) -> Segment:
        """Segment `index` when it reaches `file_offset`, else the hole after it."""
        end = int(self.starts[index] + self.lengths[index]) if index >= 0 else 0
        if end <= file_offset:
            following = int(self.starts[index + 1]) if index + 1 < len(self.starts) else self.file_size
            return Segment(end, following - end)
        start, length, offset = int(self.starts[index]), int(self.lengths[index]), int(self.offsets[index])
        origin = int(self.origins[index])
        if origin == _DISK:
            return Segment(start, length, disk_offset=offset)
        return Segment(start, length, source=self.sources[origin - 1], source_offset=offset)

    def read(self, file_offset: int, length: int, read_disk: ReadDisk) -> bytes:
        """Bytes of the file, fewer only at its end (as `pread`). Ranges of the disk come from `read_disk`, uncopied
        when one of them is the whole answer."""
        stop = min(file_offset + length, self.file_size)
        if file_offset < 0 or length < 0:
            raise ValueError("negative offset or length")
        if file_offset >= stop:
            return b""
        parts: list[bytes] = []
        position = file_offset
        index = int(np.searchsorted(self.starts, position, side="right")) - 1
        while position < stop:
            segment = self._segment(index, position)
            inside = position - segment.start
            wanted = min(segment.start + segment.length, stop) - position
            if segment.source is not None:
                parts.append(segment.source.read(segment.source_offset + inside, wanted))
            elif segment.disk_offset >= 0:
                parts.append(read_disk(segment.disk_offset + inside, wanted))
            else:
                parts.append(bytes(wanted))
            position += wanted
            if index + 1 < len(self.starts) and int(self.starts[index + 1]) <= position:
                index += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def metadata(self) -> Iterator[tuple[int, bytes]]:
        """All computed bytes as (file offset, at most 1 MiB), ascending; pieces that are only zeroes are left out."""
        for index in np.flatnonzero(self.origins != _DISK).tolist():
            start, length, offset = int(self.starts[index]), int(self.lengths[index]), int(self.offsets[index])
            source = self.sources[int(self.origins[index]) - 1]
            for done in range(0, length, _METADATA_PIECE):
                piece = source.read(offset + done, min(_METADATA_PIECE, length - done))
                if piece.count(0) != len(piece):
                    yield start + done, piece

    @cached_property
    def _disk_places(self) -> tuple[Int64s, Int64s, Int64s]:
        """Disk offset, length and file offset of all ranges of the disk; ascending in the disk as in the file."""
        chosen = self.origins == _DISK
        return self.offsets[chosen], self.lengths[chosen], self.starts[chosen]

    def places(self, disk_offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Where this range of the disk is in the file, as (disk offset, length, file offset), ascending.

        What is in a hole has no place and is left out: a writer must compare the lengths.
        """
        disk, lengths, file = self._disk_places
        stop = disk_offset + length
        index = max(int(np.searchsorted(disk, disk_offset, side="right")) - 1, 0)
        while index < len(disk) and int(disk[index]) < stop:
            start = max(int(disk[index]), disk_offset)
            end = min(int(disk[index] + lengths[index]), stop)
            if start < end:
                yield start, end - start, int(file[index]) + start - int(disk[index])
            index += 1


class Composer:
    """Collects the segments of one file, in any order; `layout` sorts and checks them."""

    def __init__(self, disk_size: int, allocated: Runs) -> None:
        """Raises LayoutError for a disk without bytes, ValueError when `allocated` reaches past it."""
        if disk_size <= 0:
            raise LayoutError("A disk of 0 bytes cannot be put into an image file.")
        if allocated.end > disk_size:
            raise ValueError(f"allocated up to {allocated.end}, but the disk has {disk_size} bytes")
        self.disk_size = disk_size
        self.virtual_size = -(-disk_size // SECTOR) * SECTOR
        self.allocated = allocated
        self._columns: list[tuple[Int64s, Int64s, NDArray[np.uint8], Int64s]] = []
        self._sources: list[Source] = []

    def place(self, start: int, length: int, source: Source) -> None:
        """Bytes 0 to `length` of a source at `start` of the file."""
        self.scatter(np.array([start], np.int64), np.array([length], np.int64), np.zeros(1, np.int64), source)

    def write(self, start: int, content: bytes) -> None:
        """These bytes at `start` of the file."""
        self.place(start, len(content), Literal(content))

    def scatter(self, starts: Int64s, lengths: Int64s, offsets: Int64s, source: Source) -> None:
        """Several ranges of one source: `offsets` in the source, `starts` in the file."""
        self._sources.append(source)
        self._columns.append((starts, lengths, np.full(len(starts), len(self._sources), np.uint8), offsets))

    def place_disk_flat(self) -> None:
        """The whole disk at the start of the file, with holes where nothing is allocated."""
        starts = self.allocated.starts
        self._columns.append((starts, self.allocated.ends - starts, np.full(len(starts), _DISK, np.uint8), starts))

    def place_disk(self, base: int, unit: int, *, stride: int = 0) -> Runs:
        """The allocated units of `unit` bytes one after another from `base`, every `stride` bytes (`unit` when 0).

        Only what is allocated becomes a segment: the rest of a unit, and what is past the disk's end, is a hole.
        Returns the units (their numbers), of which the k-th begins at `base + k * stride`.
        """
        units = self.allocated.units(unit)
        if stride in (0, unit):
            stride = unit
            starts, lengths = self.allocated.starts, self.allocated.ends - self.allocated.starts
        else:
            starts, lengths = self.allocated.split(unit)
        places = base + units.ordinals(starts // unit) * stride + starts % unit
        self._columns.append((places, lengths, np.full(len(starts), _DISK, np.uint8), starts))
        return units

    def layout(self, name: str, file_size: int, virtual_size: int | None = None) -> Layout:
        """The finished layout. Raises ValueError when segments overlap or leave the file (a fault of a module here)."""
        starts, lengths, origins, offsets = (np.concatenate(column) for column in zip(*self._columns, strict=True))
        order = np.argsort(starts, kind="stable")
        starts, lengths, origins, offsets = starts[order], lengths[order], origins[order], offsets[order]
        ends = starts + lengths
        if bool((ends[:-1] > starts[1:]).any()) or (len(ends) and int(ends[-1]) > file_size):
            raise ValueError(f"the segments of this {name} file overlap or leave it")
        shown = self.virtual_size if virtual_size is None else virtual_size
        return Layout(name, self.disk_size, shown, file_size, starts, lengths, origins, offsets, tuple(self._sources))
