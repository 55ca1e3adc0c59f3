# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the bytes of a disk are: allocation tables of any format, as runs in numpy arrays, a window at a time.

Every format answers one question: which bytes of which file are the disk's bytes from here to there? The answer is a
`Window`. Reading, zero extents and parents are then the same code for all formats (image.py). Windows keep memory and
time bounded: one holds at most some 65,536 table entries, however large the disk is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from everywhen.block.host_file import HostFile
from everywhen.block.image_errors import ImageDamaged

PARENT: Final = 0  # not in this image: the parent's bytes, or zeroes when there is no parent
ZERO: Final = 1
PLAIN: Final = 2  # at `place` in the file
PACKED: Final = 3  # compressed at `place`: one unit, to be unpacked as a whole

WINDOW_ENTRIES: Final = 65536
FLAT_WINDOW: Final = 1 << 36  # 64 GiB: how much of a file is searched for holes at a time

Integers: TypeAlias = NDArray[np.int64]
Kinds: TypeAlias = NDArray[np.uint8]
Unpack: TypeAlias = Callable[[int, int], bytes]
"""(place, packed size) -> the unit's bytes."""


@dataclass(frozen=True, slots=True)
class Window:
    """The disk's bytes `start` to `end`, which `starts[i]` to `starts[i + 1]` (or `end`) divide into runs.

    starts: int64[n], ascending, the first is `start`. kinds: uint8[n]. places: int64[n], bytes in `host`. sizes:
    int64[n], bytes of a PACKED unit in the file, else 0.
    """

    start: int
    end: int
    starts: Integers
    kinds: Kinds
    places: Integers
    sizes: Integers
    host: HostFile
    unpack: Unpack | None = None

    def moved(self, distance: int) -> Window:
        """The same, `distance` bytes further on the disk."""
        return Window(
            self.start + distance,
            self.end + distance,
            self.starts + distance,
            self.kinds,
            self.places,
            self.sizes,
            self.host,
            self.unpack,
        )


class Mapping(Protocol):
    """An image's allocation tables."""

    @property
    def size(self) -> int:
        """Bytes of the disk."""

    def window(self, offset: int) -> Window:
        """The window that holds byte `offset` of the disk. Raises ImageDamaged when the tables are impossible."""


@dataclass(frozen=True, slots=True)
class Units:
    """Consecutive units of a disk, `unit` bytes each, before neighbours are joined to runs."""

    unit: int
    kinds: Kinds
    places: Integers
    sizes: Integers | None = None


def window_of_units(start: int, end: int, units: Units, host: HostFile, unpack: Unpack | None = None) -> Window:
    """Joins neighbours that continue each other, and checks that all that is mapped lies inside the file."""
    count = -(-(end - start) // units.unit)
    kinds, places = units.kinds[:count], units.places[:count]
    sizes = np.zeros(count, dtype=np.int64) if units.sizes is None else units.sizes[:count]
    begins = np.ones(count, dtype=bool)
    advance = np.diff(places)
    continues = kinds[1:] == kinds[:-1]
    continues &= (kinds[1:] != PLAIN) | (advance == units.unit)
    continues &= (kinds[1:] != PACKED) | (advance == 0)  # parts of one compressed unit
    begins[1:] = ~continues
    first = np.flatnonzero(begins)
    starts = start + first.astype(np.int64) * units.unit
    window = Window(start, end, starts, kinds[first], places[first], sizes[first], host, unpack)
    check_places(window)
    return window


def check_places(window: Window) -> None:
    """Raises ImageDamaged when a run lies outside its file, or two runs lie over each other: no format shares places."""
    plain = window.kinds == PLAIN
    order = np.argsort(window.places[plain], kind="stable")
    places = window.places[plain][order]
    ends = places + np.diff(window.starts, append=window.end)[plain][order]
    if (places < 0).any() or (ends > window.host.size).any():
        raise ImageDamaged(
            f"{window.host.path} is truncated or damaged: it has {window.host.size} bytes, "
            f"and its tables name byte {int(ends.max())}"
        )
    if (places[1:] < ends[:-1]).any():
        raise ImageDamaged(f"{window.host.path} is damaged: its tables name the same bytes for two parts of the disk")


def one_run(start: int, end: int, kind: int, place: int, host: HostFile) -> Window:
    """A window of a single run."""
    starts, places = np.array([start], dtype=np.int64), np.array([place], dtype=np.int64)
    return Window(start, end, starts, np.array([kind], dtype=np.uint8), places, np.zeros(1, dtype=np.int64), host)


class FlatMap:
    """The disk is one piece of a file, from byte `place` on; or, with kind ZERO or PARENT, nothing at all."""

    def __init__(self, host: HostFile, size: int, *, place: int = 0, kind: int = PLAIN) -> None:
        self.size = size
        self._host, self._place, self._kind = host, place, kind
        if kind == PLAIN and place + size > host.size:
            raise ImageDamaged(f"{host.path} is truncated: it has {host.size} bytes, the disk ends at {place + size}")

    def window(self, offset: int) -> Window:
        start = offset // FLAT_WINDOW * FLAT_WINDOW
        end = min(start + FLAT_WINDOW, self.size)
        return one_run(start, end, self._kind, self._place + start, self._host)


class BlockMap:
    """One table with an entry for every unit of the disk; `decode(first, last)` gives that part of it."""

    def __init__(self, host: HostFile, size: int, unit: int, decode: Callable[[int, int], Units], per_window: int) -> None:
        self.size = size
        self._host, self._unit, self._decode, self._per_window = host, unit, decode, per_window

    def window(self, offset: int) -> Window:
        first = offset // (self._unit * self._per_window) * self._per_window
        start = first * self._unit
        end = min(start + self._per_window * self._unit, self.size)
        return window_of_units(start, end, self._decode(first, first + -(-(end - start) // self._unit)), self._host)


@dataclass(frozen=True, slots=True)
class TableLayout:
    """Two levels: a directory of tables, each with `entries` entries of `dtype` (numpy), each for `unit` bytes of disk.

    `places` is int64[tables], the tables' offsets in the file, 0 where there is none. `decode` gives the units of all
    entries handed to it; absent tables come as zeroes.
    """

    places: Integers
    entries: int
    dtype: np.dtype[Any]
    unit: int
    decode: Callable[[NDArray[np.uint64]], Units]
    words: int = 1  # of dtype in an entry


class TwoLevelMap:
    """Disks with a directory of tables (qcow2, VMDK). Stretches without any table are one window of kind PARENT."""

    def __init__(
        self, tables: HostFile, contents: HostFile, size: int, layout: TableLayout, unpack: Unpack | None = None
    ) -> None:
        self.size = size
        self._tables, self._contents, self._layout, self._unpack = tables, contents, layout, unpack
        self._coverage = layout.entries * layout.unit
        self._group = max(1, WINDOW_ENTRIES // layout.entries)
        self._present = np.flatnonzero(layout.places)
        table_bytes = layout.entries * layout.words * layout.dtype.itemsize
        last = int(layout.places.max(initial=0)) + table_bytes
        if len(self._present) and last > tables.size:
            raise ImageDamaged(f"{tables.path} is truncated or damaged: a table is outside its {tables.size} bytes")
        self._table_bytes = table_bytes

    def window(self, offset: int) -> Window:
        index = offset // self._coverage
        first = index // self._group * self._group
        after = int(np.searchsorted(self._present, first))
        following = int(self._present[after]) if after < len(self._present) else -1
        if following < 0 or following >= first + self._group:
            before = int(self._present[after - 1]) if after else -1
            start = (before // self._group + 1) * self._group * self._coverage if before >= 0 else 0
            end = self.size if following < 0 else following // self._group * self._group * self._coverage
            return one_run(start, min(end, self.size), PARENT, 0, self._contents)
        places = self._layout.places[first : first + self._group].tolist()
        raw = b"".join(self._tables.read(at, self._table_bytes) if at else bytes(self._table_bytes) for at in places)
        units = self._layout.decode(np.frombuffer(raw, dtype=self._layout.dtype).astype(np.uint64))
        start = first * self._coverage
        end = min(start + self._group * self._coverage, self.size)
        return window_of_units(start, end, units, self._contents, self._unpack)


class JoinedMap:
    """Several mappings, one behind the other (extents of a VMDK)."""

    def __init__(self, parts: list[Mapping]) -> None:
        self._parts = parts
        self._ends = np.cumsum([part.size for part in parts], dtype=np.int64)
        self.size = int(self._ends[-1])

    def window(self, offset: int) -> Window:
        index = int(np.searchsorted(self._ends, offset, side="right"))
        base = int(self._ends[index]) - self._parts[index].size
        return self._parts[index].window(offset - base).moved(base)
