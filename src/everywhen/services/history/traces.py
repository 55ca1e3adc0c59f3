# SPDX-License-Identifier: AGPL-3.0-or-later
"""When the bytes of a footprint changed last before a moment: by the block maps of points, and by the journal's records.

Blocks of another name are compared byte by byte, as far as the footprint has a part in them: an inode has 256 neighbours in its
block. Records that wrote what was there already do not count either. So few moments are left to be opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.ids import NO_CHUNK
from everywhen.formats.node import Names
from everywhen.formats.segment import MARK, WRITE, Group
from everywhen.guest.footprint import Ranges
from everywhen.nbd.devices import Device
from everywhen.repository.block_differences import BlockDifferences, BlockNumbers, Differing
from everywhen.services.history.line import At, Line, Records
from everywhen.services.history.sight import Rests
from everywhen.services.view.blocks import Blocks

Int64s = npt.NDArray[np.int64]
Footprint = Mapping[str, Ranges]
_FIRST_BATCH, _LARGEST_BATCH = 16, 256
"""Points whose block maps are read together: few where a change may be near, many where none was found in the last ones."""


@dataclass(slots=True)
class _Watched:
    """The ranges of a footprint on one disk, and the bytes in them as records change them."""

    starts: Int64s
    ends: Int64s
    base: Device
    contents: dict[int, bytearray] = field(default_factory=dict)

    @classmethod
    def of(cls, ranges: Ranges, base: Device) -> _Watched:
        places = np.array(ranges, np.int64).reshape(-1, 2)
        return cls(places[:, 0], places[:, 0] + places[:, 1], base)

    def lay(self, offset: int, length: int, data: memoryview | None) -> bool:
        """Lay a record over them; whether that changed anything."""
        changed = False
        which = int(np.searchsorted(self.ends, offset, side="right"))
        while which < len(self.starts) and self.starts[which] < offset + length:
            start, end = int(self.starts[which]), int(self.ends[which])
            content = self.contents.get(which)
            if content is None:
                there = max(0, min(end, self.base.size) - start)  # the disk may have been smaller then
                content = bytearray(self.base.read(start, there) if there else b"")
                content.extend(bytes(end - start - there))
                self.contents[which] = content
            low, high = max(start, offset), min(end, offset + length)
            new = bytes(high - low) if data is None else bytes(data[low - offset : high - offset])
            if content[low - start : high - start] != new:
                content[low - start : high - start] = new
                changed = True
            which += 1
        return changed


class Traces:
    """Looks for changes before a moment. Not for several threads."""

    def __init__(self, line: Line, differences: BlockDifferences, blocks: Blocks, progress: Callable[[int], None]) -> None:
        """`progress`: told which point of the line is looked at."""
        self._line = line
        self._differences = differences
        self._blocks = blocks
        self._progress = progress

    def before(self, at: At, rests: Rests) -> At | None:
        """The newest moment before `at` in which not all bytes of a footprint are what they are at `at`; None: there is none.

        Where it is not known, or coarse: the newest such point. What changed and was changed back between two points, so that
        it was the same in both, is not seen. Raises Damaged, StorageError, FormatError.
        """
        line, footprint = self._line, None if rests.coarse else rests.ranges
        begin = line.at_point(at.index)
        if at > begin:
            records = line.records(at.index)
            changes = self._changes(begin, records, footprint, at.sequence) if footprint and records else []
            if changes or footprint is None:
                return At(at.index, changes[-1]) if changes else begin
        index = self._point_before(at.index, rests.ranges)
        if index is None:
            return None
        records = line.records(index)
        if records is None or footprint is None:
            return line.at_point(index)
        end = At(index, records.end)
        if not records.reaches and self._differ(end, begin, footprint):
            return end
        changes = self._changes(line.at_point(index), records, footprint, records.end)
        return At(index, changes[-1]) if changes else line.at_point(index)

    def _changes(self, begin: At, records: Records, footprint: Footprint, until: int) -> list[int]:
        """Numbers of the records before `until` that changed a byte of the footprint, after a point."""
        base = self._line.disks(begin)
        watched = {
            number: _Watched.of(footprint[name], base[name])
            for number, name in enumerate(records.disks)
            if footprint.get(name) and name in base
        }
        found: list[int] = []
        for group in records.groups():
            if group.sequence >= until:
                break
            found += (one for one in _changing(group, watched) if begin.sequence <= one < until)
        return found

    def _differ(self, one: At, other: At, footprint: Footprint) -> bool:
        here, there = self._line.disks(one), self._line.disks(other)
        return any(
            name not in here
            or name not in there
            or sum(place) > min(here[name].size, there[name].size)
            or here[name].read(*place) != there[name].read(*place)
            for name, ranges in footprint.items()
            for place in ranges
        )

    def _point_before(self, index: int, footprint: Footprint | None) -> int | None:
        """The newest point before this one whose bytes differ."""
        if footprint is None:
            return index - 1 if index else None
        within = {name: blocks_of(ranges) for name, ranges in footprint.items()}
        for other, found in self.differing(index, within):
            self._progress(other)
            if found is None or any(self._touched(one, footprint[name]) for name, one in found.items()):
                return other
        return None

    def differing(self, index: int, within: Mapping[str, BlockNumbers]) -> Iterator[tuple[int, dict[str, Differing] | None]]:
        """For each point before this one, the newest first: what of these blocks differs from what they were in a later one, in
        which they were as in this one. None: a disk was not there, or one more, or one of another size.

        Raises Damaged, StorageError, FormatError.
        """
        batch = _FIRST_BATCH
        while index:
            earlier = list(range(index - 1, max(index - 1 - batch, -1), -1))
            compared = list(zip(earlier, self._compared(index, earlier, within), strict=True))
            for first in range(0, len(compared), _FIRST_BATCH):
                some = compared[first : first + _FIRST_BATCH]
                self._have(found for _, found in some)
                yield from some
            index, batch = earlier[-1], min(2 * batch, _LARGEST_BATCH)

    def _have(self, compared: Iterable[dict[str, Differing] | None]) -> None:
        """Fetch contents that will be compared, all of them together: one by one they take three times as long."""
        names: dict[bytes, None] = {}
        for found in compared:
            for one in found.values() if found else ():
                names.update(dict.fromkeys(row.tobytes() for rows in (one.here, one.there) for row in rows[:_LARGEST_BATCH]))
            if len(names) > _LARGEST_BATCH:
                break
        self._blocks.get(name for name in names if name != NO_CHUNK)

    def _compared(
        self, index: int, earlier: list[int], within: Mapping[str, BlockNumbers]
    ) -> Iterator[dict[str, Differing] | None]:
        """For each of the earlier points what differs, by disk; None where it had other disks, or one of another size."""
        points = self._line.points
        here = points[index].disks
        alike = {
            other: points[other].disks.keys() == here.keys()
            and all(points[other].disks[name].tree.size == here[name].tree.size for name in within)
            for other in earlier
        }
        same = [other for other in earlier if alike[other]]
        by_disk = {
            name: dict(
                zip(
                    same,
                    self._differences.between(here[name].tree, [points[other].disks[name].tree for other in same], blocks),
                    strict=True,
                )
            )
            for name, blocks in within.items()
        }
        for other in earlier:
            yield {name: found[other] for name, found in by_disk.items()} if alike[other] else None

    def contents(self, here: Names, there: Names) -> tuple[bytes, bytes]:
        """Of two chunks, by their names; zeroes where there is none. Raises Damaged, StorageError."""
        names = here.tobytes(), there.tobytes()
        found = self._blocks.get(name for name in names if name != NO_CHUNK)
        one, other = (found.get(name) or bytes(BLOCK_SIZE) for name in names)
        return one, other

    def _touched(self, found: Differing, ranges: Ranges) -> bool:
        """Whether bytes of the ranges differ in any of these blocks."""
        places = np.array(ranges, np.int64).reshape(-1, 2)
        ends = places[:, 0] + places[:, 1]
        for number, here, there in zip(found.blocks.tolist(), found.here, found.there, strict=True):
            one, other = self.contents(here, there)
            start = number * BLOCK_SIZE
            which = int(np.searchsorted(ends, start, side="right"))
            while which < len(places) and places[which, 0] < start + BLOCK_SIZE:
                low, high = max(int(places[which, 0]) - start, 0), min(int(ends[which]) - start, BLOCK_SIZE)
                if one[low:high] != other[low:high]:
                    return True
                which += 1
        return False


def _changing(group: Group, watched: Mapping[int, _Watched]) -> Iterator[int]:
    """Numbers of the records of a group that change what is watched."""
    touching = np.zeros(len(group), np.bool_)
    offsets, lengths = group.offsets.astype(np.int64), group.lengths.astype(np.int64)
    for number, one in watched.items():
        which = np.searchsorted(one.ends, offsets, side="right")
        starts = np.append(one.starts, np.iinfo(np.int64).max)
        touching |= (group.disks == number) & (group.kinds != MARK) & (starts[which] < offsets + lengths)
    rows = np.flatnonzero(touching)
    if not len(rows):
        return
    data, ends = memoryview(group.data()), group.data_ends()
    for row in rows.tolist():
        offset, length = int(offsets[row]), int(lengths[row])
        content = data[int(ends[row]) - length : int(ends[row])] if group.kinds[row] == WRITE else None
        if watched[int(group.disks[row])].lay(offset, length, content):
            yield group.sequence + row


def blocks_of(ranges: Ranges) -> BlockNumbers:
    """Numbers of the blocks in which these bytes lie, ascending."""
    parts = [np.arange(offset // BLOCK_SIZE, (offset + length - 1) // BLOCK_SIZE + 1) for offset, length in ranges]
    return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))
