# SPDX-License-Identifier: AGPL-3.0-or-later
"""An open disk image: the same reading, zero extents and parents for every format, over a `Mapping`.

Thread safety: one thread at a time per image and its parents.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from everywhen.block.device import Extent
from everywhen.block.host_file import FileState, HostFile
from everywhen.block.image_errors import ImageDamaged
from everywhen.block.mapping import PACKED, PARENT, PLAIN, ZERO, Integers, Mapping, Window

_WINDOWS_KEPT: Final = 16
_UNPACKED_KEPT: Final = 4  # at most 2 MiB each
_WORTH_ASKING: Final = 1 << 20  # mapped runs from this size on are searched for holes in the file

_Stretch: TypeAlias = tuple[Integers, NDArray[np.bool_], int]
"""Where pieces start, whether each is zero, and where the last one ends."""


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """What an image is, for statistics and messages. `chain` has the formats, the image's own first, oldest parent last.

    `identities` are the ids that the formats give them, by which children know their parents; empty where there are none.
    """

    format: str
    size: int
    chain: tuple[str, ...]
    identities: tuple[str, ...]
    files: tuple[str, ...]
    remarks: tuple[str, ...]


class Image:
    """A disk image of any format, open for reading (a BlockDevice)."""

    def __init__(
        self,
        format: str,  # noqa: A002 - the word users know it by
        mapping: Mapping,
        hosts: Sequence[HostFile],
        parent: Image | None = None,
        *,
        identity: str = "",
        remarks: Sequence[str] = (),
    ) -> None:
        """Takes over `hosts` and `parent`: they are closed with the image. `remarks` are doubts worth telling a user."""
        self.identity = identity
        self.format = format
        self.parent = parent
        self._remarks = tuple(remarks)
        self._mapping = mapping
        self._hosts = tuple(hosts)
        self._windows: OrderedDict[int, Window] = OrderedDict()
        self._unpacked: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    @property
    def size(self) -> int:
        return self._mapping.size

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is read, parents' files included."""
        own = tuple(host.path for host in self._hosts)
        return own + (self.parent.files if self.parent else ())

    @property
    def summary(self) -> ImageSummary:
        parent = self.parent.summary if self.parent else None
        return ImageSummary(
            format=self.format,
            size=self.size,
            chain=(self.format, *(parent.chain if parent else ())),
            identities=(self.identity, *(parent.identities if parent else ())),
            files=self.files,
            remarks=self._remarks + (parent.remarks if parent else ()),
        )

    def fingerprint(self) -> tuple[FileState, ...]:
        """Compare one from before with one from after: if they differ, somebody wrote (see `FileState`)."""
        own = tuple(host.state() for host in self._hosts)
        return own + (self.parent.fingerprint() if self.parent else ())

    def close(self) -> None:
        for host in self._hosts:
            host.close()
        if self.parent:
            self.parent.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"bytes {offset} to {offset + length} are not inside a disk of {self.size} bytes")
        pieces: list[bytes] = []
        end = offset + length
        while offset < end:
            window = self._window(offset)
            stop = min(window.end, end)
            self._read_window(window, offset, stop, pieces)
            offset = stop
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_window(self, window: Window, start: int, stop: int, pieces: list[bytes]) -> None:
        first = int(np.searchsorted(window.starts, start, side="right")) - 1
        last = int(np.searchsorted(window.starts, stop, side="left"))
        bounds = [*window.starts[first:last].tolist(), stop]
        kinds, places = window.kinds[first:last].tolist(), window.places[first:last].tolist()
        for i, kind in enumerate(kinds):
            begin, skip = max(start, bounds[i]), max(0, start - bounds[i])
            length = bounds[i + 1] - begin
            if kind == PLAIN:
                pieces.append(window.host.read(places[i] + skip, length))
            elif kind == PACKED:
                unit = self._unpack(window, places[i], int(window.sizes[first + i]))
                if len(unit) < skip + length:
                    raise ImageDamaged(f"{window.host.path}: compressed data at byte {places[i]} are too short")
                pieces.append(unit[skip : skip + length])
            elif kind == PARENT and self.parent and begin < self.parent.size:
                inside = min(length, self.parent.size - begin)
                pieces.append(self.parent.read(begin, inside))
                pieces.append(bytes(length - inside))
            else:
                pieces.append(bytes(length))

    def _unpack(self, window: Window, place: int, size: int) -> bytes:
        key = (id(window.host), place)
        if (unit := self._unpacked.get(key)) is None:
            if window.unpack is None:
                raise ImageDamaged(f"{window.host.path}: compressed data at byte {place} in an image without compression")
            unit = self._unpacked[key] = window.unpack(place, size)
            if len(self._unpacked) > _UNPACKED_KEPT:
                self._unpacked.popitem(last=False)
        return unit

    def _window(self, offset: int) -> Window:
        for start, window in reversed(self._windows.items()):
            if start <= offset < window.end:
                return window
        window = self._mapping.window(offset)
        self._windows[window.start] = window
        if len(self._windows) > _WINDOWS_KEPT:
            self._windows.popitem(last=False)
        return window

    def extents(self) -> Iterator[Extent]:
        begin, zero = 0, False
        for starts, zeroes, _ in self.stretches(0, self.size):
            turns = np.flatnonzero(np.diff(zeroes, prepend=not zeroes[0]))
            for at, now in zip(starts[turns].tolist(), zeroes[turns].tolist(), strict=True):
                if now != zero:
                    if at > begin:
                        yield Extent(begin, at - begin, zero)
                    begin, zero = at, now
        if self.size > begin:
            yield Extent(begin, self.size - begin, zero)

    def stretches(self, start: int, end: int) -> Iterator[_Stretch]:
        """What is zero from `start` to `end`, a window at a time, parents considered. For children of this image."""
        while start < end:
            window = self._window(start)
            stop = min(window.end, end)
            first = int(np.searchsorted(window.starts, start, side="right")) - 1
            last = int(np.searchsorted(window.starts, stop, side="left"))
            starts, kinds = np.maximum(window.starts[first:last], start), window.kinds[first:last]
            starts, kinds = _without_holes(window, first, starts, kinds, stop)
            if self.parent and (kinds == PARENT).any():
                yield from _over_parent(self.parent, starts, kinds, stop)
            else:
                yield starts, (kinds == ZERO) | (kinds == PARENT), stop
            start = stop


def _over_parent(parent: Image, starts: Integers, kinds: NDArray[np.uint8], stop: int) -> Iterator[_Stretch]:
    """The child's runs laid over the parent's stretches; beyond the parent's end there are zeroes."""
    begin, shared = int(starts[0]), min(stop, parent.size)
    for their_starts, their_zeroes, their_stop in parent.stretches(begin, shared) if begin < shared else ():
        low, high = np.searchsorted(starts, [their_starts[0], their_stop])
        points = np.union1d(starts[low:high], their_starts)
        mine = kinds[np.searchsorted(starts, points, side="right") - 1]
        theirs = their_zeroes[np.searchsorted(their_starts, points, side="right") - 1]
        yield points, (mine == ZERO) | ((mine == PARENT) & theirs), their_stop
    if stop > max(begin, shared):
        tail = max(begin, shared)
        points = np.union1d(starts[starts > tail], np.array([tail], dtype=np.int64))
        mine = kinds[np.searchsorted(starts, points, side="right") - 1]
        yield points, (mine == ZERO) | (mine == PARENT), stop


def _without_holes(
    window: Window, first: int, starts: Integers, kinds: NDArray[np.uint8], stop: int
) -> tuple[Integers, NDArray[np.uint8]]:
    """Large mapped runs, cut where the file has holes: preallocated and flat images are often sparse files."""
    lengths = np.diff(starts, append=stop)
    large = np.flatnonzero((kinds == PLAIN) & (lengths >= _WORTH_ASKING))
    if not len(large):
        return starts, kinds
    cut_starts: list[int] = []
    cut_kinds: list[int] = []
    for i in large.tolist():
        begin = int(starts[i])
        shift = int(window.places[first + i]) - int(window.starts[first + i])
        position, end = begin, begin + int(lengths[i])
        for data, hole in window.host.data_ranges(begin + shift, end + shift):
            if data - shift > position:
                cut_starts.append(position)
                cut_kinds.append(ZERO)
            cut_starts.append(data - shift)
            cut_kinds.append(PLAIN)
            position = hole - shift
        if position < end:
            cut_starts.append(position)
            cut_kinds.append(ZERO)
    keep = np.ones(len(starts), dtype=bool)
    keep[large] = False
    all_starts = np.concatenate([starts[keep], np.array(cut_starts, dtype=np.int64)])
    all_kinds = np.concatenate([kinds[keep], np.array(cut_kinds, dtype=np.uint8)])
    order = np.argsort(all_starts, kind="stable")
    return all_starts[order], all_kinds[order]
