# SPDX-License-Identifier: AGPL-3.0-or-later
"""All moments of a VM in one order: its recovery points, and after each the records of the journal that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everywhen.block.patched import Patches
from everywhen.formats.fields import parse_json, text
from everywhen.formats.ids import PointId
from everywhen.formats.point import RecoveryPoint
from everywhen.formats.segment import MARK, Group
from everywhen.repository.aside import Aside
from everywhen.repository.branches import history
from everywhen.repository.journal import Journal
from everywhen.repository.journal_spans import JournalSpan, kept_spans
from everywhen.repository.repository import Repository
from everywhen.services.replay import Replay
from everywhen.services.view.blocks import Blocks
from everywhen.services.view.disk import MomentDisk


@dataclass(frozen=True, slots=True, order=True)
class At:
    """A moment: that of the point at this place of the line, with the journal's records before `sequence` laid over it."""

    index: int
    sequence: int


_MEMORY = 32 << 20
"""Bytes of the journal between two points, and of what it makes of the disks, that are held; else it is read again, or put
aside."""


@dataclass(frozen=True, slots=True)
class Records:
    """The records from a point on that are moments: `groups` gives them, and maybe more; `end` is the number after the last.

    `reaches`: the last of them is what the next point of the line shows. `times`: in ns, of the records from `begin` on.
    """

    groups: Callable[[], Iterable[Group]]
    disks: tuple[str, ...]
    begin: int
    end: int
    reaches: bool
    times: npt.NDArray[np.int64]

    def time_ns(self, sequence: int) -> int:
        """When the record of this number was taken."""
        return int(self.times[sequence - self.begin])


class Line:
    """Not for several threads. Its points are to be leased while it is used."""

    def __init__(self, repository: Repository, points: Sequence[RecoveryPoint], blocks: Blocks) -> None:
        """`points`: of one VM, oldest first."""
        self._repository = repository
        self._blocks = blocks
        spans = {span.point.point: span for span in kept_spans(points)} if points else {}
        self.points = _without_covered(history(points), spans)
        self._spans: list[JournalSpan | None] = [spans.get(point.point) for point in self.points]
        self._records: tuple[int, Records | None] = (-1, None)

    def at_point(self, index: int) -> At:
        """The moment of a point."""
        span = self._spans[index]
        return At(index, span.begin if span else 0)

    def newest(self) -> At:
        """The newest moment."""
        last = len(self.points) - 1
        records = self.records(last)
        return At(last, records.end) if records else self.at_point(last)

    def at_time(self, index: int, time_ns: int) -> At:
        """The last moment not after a time, of those from a point on and before the next one."""
        records = self.records(index)
        if records is None:
            return self.at_point(index)
        return At(index, records.begin + int(np.searchsorted(records.times, time_ns, side="right")))

    def after(self, at: At) -> At:
        """The next moment; there must be one."""
        records = self.records(at.index)
        if records and at.sequence < records.end:
            return At(at.index, at.sequence + 1)
        return self.at_point(at.index + 1)

    def time_ns(self, at: At) -> int:
        """When it was."""
        point = self.points[at.index]
        records = self.records(at.index) if at > self.at_point(at.index) else None
        return max(point.time_ns, records.time_ns(at.sequence - 1)) if records else point.time_ns

    def disks(self, at: At) -> dict[str, MomentDisk]:
        """The VM's disks at that moment, by name. Raises Damaged, StorageError."""
        point = self.points[at.index]
        patches: dict[str, Patches] = {}
        if at > self.at_point(at.index) and (records := self.records(at.index)):
            patches = dict(zip(records.disks, self._replayed(records, at.sequence), strict=True))
        used = self._repository.used_ranges
        return {name: MomentDisk(used, self._blocks, disk.tree, patches.get(name)) for name, disk in point.disks.items()}

    def _replayed(self, records: Records, until: int) -> Sequence[Patches]:
        replay = Replay([Patches() for _ in records.disks], records.begin, following=True)
        aside: Aside | None = None
        for group in records.groups():
            replay.feed(group, until=until)
            if sum(one.memory for one in replay.patches) > _MEMORY:
                aside = aside or Aside(self._repository.cache, self._repository.surroundings.randomness)
                for one in replay.patches:
                    one.put_aside(aside.put)
            if replay.beyond:
                break
        return replay.patches

    def records(self, index: int) -> Records | None:
        """What the journal has after a point, up to the next one; None: nothing. Those of one point are kept.

        Raises Damaged, StorageError, FormatError.
        """
        if self._records[0] != index:
            self._records = index, self._read(index)
        return self._records[1]

    def _read(self, index: int) -> Records | None:
        span = self._spans[index]
        position = self.points[index].journal
        if span is None or position is None:
            return None
        following = self.points[index + 1] if index + 1 < len(self.points) else None
        until_ns = following.time_ns if following is not None and following is not span.until else None
        journal = Journal(self._repository, span.stream)
        held: list[Group] = []
        size, end = 0, span.begin
        times = [np.empty(0, np.int64)]
        for group in journal.groups(span.begin):
            if group.sequence > end:
                break  # the beginning is not kept any more, or not there yet
            size += group.size
            held.append(group)
            if size > _MEMORY:
                held.clear()
            stop = _stop(group, until_ns)
            times.append((group.times.astype(np.int64) + group.time_ns)[end - group.sequence :])
            end = group.sequence + len(group) if stop is None else stop
            if stop is not None or (span.end is not None and end >= span.end):
                break
        end = end if span.end is None else min(end, span.end)
        if end <= span.begin:
            return None
        reaches = following is not None and following is span.until and end == span.end
        all_times = np.maximum.accumulate(np.concatenate(times)[: end - span.begin])

        def groups() -> Iterable[Group]:
            return held if size <= _MEMORY else journal.groups(span.begin)

        return Records(groups, position.disks, span.begin, end, reaches, all_times)


def _stop(group: Group, until_ns: int | None) -> int | None:
    """The number of the first record that belongs to no moment any more: a tap was closed there, or it is too late."""
    stops = []
    marks = np.flatnonzero(group.kinds == MARK)
    if len(marks):
        data, ends = group.data(), group.data_ends()
        for row in marks.tolist():
            begin = int(ends[row]) - int(group.lengths[row])
            if text(parse_json("a mark", data[begin : int(ends[row])]), "mark") == "tap closed":
                stops.append(row)
                break
    if until_ns is not None:
        late = np.flatnonzero(group.times.astype(np.int64) + group.time_ns > until_ns)
        stops += late[:1].tolist()
    return group.sequence + min(stops) if stops else None


def _without_covered(points: Sequence[RecoveryPoint], spans: Mapping[PointId, JournalSpan]) -> list[RecoveryPoint]:
    """Without backups that were made beside a capture whose journal has every write of that time: it knows more."""
    kept: list[RecoveryPoint] = []
    until: RecoveryPoint | None = None
    for point in points:
        if point is until:
            until = None
        if until is None or point.journal is not None:
            kept.append(point)
            span = spans.get(point.point)
            until = span.until if span else until
    return kept
