# SPDX-License-Identifier: AGPL-3.0-or-later
"""The moment that an address means: a recovery point, or one between points, with the journal's records laid over a point.

The points are searched first; from the one that is found on, its journal leads as far as the address allows. A journal that
is not kept any more, or not yet in the repository, leads nowhere: then the point itself is the latest moment not after.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import tzinfo

import numpy as np

from everywhen.block.patched import Patches
from everywhen.formats.ids import PointId
from everywhen.formats.point import JournalPosition, RecoveryPoint
from everywhen.formats.segment import MARK, Group
from everywhen.repository.aside import Aside
from everywhen.repository.branches import history
from everywhen.repository.journal import Journal
from everywhen.repository.journal_spans import kept_spans
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.addresses import Address
from everywhen.services.catalog import Catalog, moment_of
from everywhen.services.failures import NotFound
from everywhen.services.replay import Replay
from everywhen.services.times import Stretch, rfc3339
from everywhen.services.whens import Found, Latest, When, choose, no_single_writes, parse_when, refuse_other

_MEMORY = 32 << 20
"""Bytes of contents that an opened moment holds; what is more lies below the caches. A spool that could not be sealed for a day
makes a journal of any size between two points."""


@dataclass(frozen=True, slots=True)
class OpenedMoment:
    """A VM's disks at one instant: those of `point`, with `patches` over them (by disk; none where it is the point itself).

    `stands_ns`: nothing is missing up to then, for sure.
    """

    point: RecoveryPoint
    found: Found
    stands_ns: int
    patches: dict[str, Patches] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The moment in few characters."""
        writes = self.found.writes_after
        return f"{self.point.point}+{writes}" if writes else self.point.point


def open_moment(
    repository: Repository,
    catalog: Catalog,
    address: Address,
    *,
    now_ns: int,
    zone: tzinfo,
    exact: bool,
    contents: bool = True,
) -> tuple[Vm, OpenedMoment]:
    """What `address` means to a reader in `zone` whose clock says `now_ns`; `exact` refuses any other moment than that.

    Without `contents` it is for who wants to know which moment that is, and cannot be read: that takes an eighth of the time.

    Raises NotFound, WrongUsage, Damaged, StorageError.
    """
    vm = catalog.vm(address.vm)
    catalog = catalog.on_branch(vm, address.branch)
    when = parse_when(address.when or "latest", now_ns=now_ns, zone=zone)
    line, opened = _latest(repository, catalog, vm, when, zone, contents=contents and not when.writes_back)
    if when.writes_back:
        earlier = line.back(opened, when.writes_back, contents=contents)
        if earlier is None:
            raise no_single_writes(vm.name, when, opened.found, zone=zone)
        opened = earlier
    if exact and not opened.found.exact:
        raise refuse_other(vm.name, when, opened.found, catalog.moments_for(vm, when), zone=zone)
    catalog.demand_disk(vm, opened.point, address)
    return vm, opened


def open_at(repository: Repository, catalog: Catalog, vm: Vm, time_ns: int, *, zone: tzinfo) -> OpenedMoment:
    """A VM at one time, or as it was the latest before; `found.exact`: it is for sure what it was at that time.

    Raises NotFound, Damaged, StorageError.
    """
    return _latest(repository, catalog, vm, When(Stretch(time_ns, time_ns), rfc3339(time_ns)), zone, contents=True)[1]


def open_again(repository: Repository, catalog: Catalog, vm: Vm, point: PointId, sequence: int | None) -> OpenedMoment:
    """A moment that was opened before: that point, with the records of its journal before `sequence` over it (None: none).

    Raises NotFound where it is not kept any more, Damaged, StorageError.
    """
    points = catalog.points_of(vm)
    found = next((one for one in points if one.point == point), None)
    if found is not None and sequence is None:
        return OpenedMoment(found, Found(moment_of(found), exact=True), found.time_ns)
    replay = _Line(repository, points).replayed(found, sequence, None, contents=True) if found is not None else None
    if found is None or replay is None or replay.sequence != sequence:
        raise NotFound(f"{vm.name} at {point}, or its journal after that, is not kept any more.", on=f"{vm.name}@{point}")
    return _moment(found, replay, exact=True)


class _Unlaid(Patches):
    """Changes that are not kept. Whoever would read a disk with them is stopped: it would be the point's."""

    def __bool__(self) -> bool:
        raise TypeError("a moment that was opened without its contents")

    def blocks(self) -> list[int]:
        """Raises TypeError."""
        raise TypeError("a moment that was opened without its contents")

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Nothing."""

    def zero(self, offset: int, length: int) -> None:
        """Nothing."""


def _latest(
    repository: Repository, catalog: Catalog, vm: Vm, when: When, zone: tzinfo, *, contents: bool
) -> tuple[_Line, OpenedMoment]:
    """The latest moment that `when` allows, single writes before it not counted, and the line that it is on."""
    points = catalog.points_of(vm)
    found = choose(vm.name, when, catalog.moments_for(vm, when), zone=zone)
    line = _Line(repository, points)
    point = next(point for point in points if point.point == found.moment.id)
    opened = OpenedMoment(point, found, point.time_ns)
    if isinstance(when.target, Latest | Stretch):
        opened = line.onward(opened, when.target, contents=contents)
    return line, opened


class _Line:
    """A VM's points, oldest first, and what the journals between them have."""

    def __init__(self, repository: Repository, points: list[RecoveryPoint]) -> None:
        self._repository = repository
        self._points = points
        self._spans = {span.point.point: span for span in kept_spans(points)}

    def onward(self, opened: OpenedMoment, target: Latest | Stretch, *, contents: bool) -> OpenedMoment:
        """The last moment after the point, within its journal, that `target` allows.

        What a backup of images made has none: there the journal goes on that the VM's capture wrote meanwhile.
        """
        until_ns = target.latest_ns if isinstance(target, Stretch) else None
        point = opened.point if opened.point.journal else self._captured_before(opened.point)
        replay = self.replayed(point, None, until_ns, contents=contents) if point else None
        if point is None or replay is None or (point is not opened.point and replay.time_ns <= opened.point.time_ns):
            return opened
        end = self._spans[point.point].end
        # The next point is made before the last records up to it are shipped: those that are missing may be before `target`.
        covered = replay.beyond or (end is not None and replay.sequence >= end)
        within = isinstance(target, Stretch) and replay.time_ns >= target.earliest_ns
        exact = opened.found.exact or isinstance(target, Latest) or covered or within
        return _moment(point, replay, exact=exact)

    def _captured_before(self, point: RecoveryPoint) -> RecoveryPoint | None:
        """The newest point of a capture before this one."""
        before = [one for one in history(self._points) if one.journal and one.time_ns <= point.time_ns]
        return before[-1] if before else None

    def back(self, opened: OpenedMoment, writes: int, *, contents: bool) -> OpenedMoment | None:
        """The moment so many writes before; None where the journal does not reach back so far."""
        position = opened.point.journal
        if position is None:
            return None
        end = opened.found.sequence if opened.found.sequence is not None else position.sequence
        line = [
            (point.journal.sequence, point)
            for point in self._points
            if point.journal and point.journal.stream == position.stream and point.journal.sequence <= end
        ]
        numbers = np.empty(0, np.int64)
        for begin, point in sorted(line, key=lambda one: one[0], reverse=True):
            earlier = self._writes(point, begin, end)
            if earlier is None:
                return None
            numbers, end = np.concatenate([earlier, numbers]), begin
            if len(numbers) >= writes:
                replay = self.replayed(point, int(numbers[-writes]), None, contents=contents)
                return None if replay is None else _moment(point, replay, exact=True)
        return None

    def _writes(self, point: RecoveryPoint, since: int, end: int) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
        """(n,) int64: sequence numbers of the writes from `since` to `end`; None where they are not kept."""
        parts = [np.empty(0, np.int64)]
        if since < end:
            groups = self._groups(point)
            if groups is None:
                return None
            for group in groups:
                numbers = group.sequence + np.flatnonzero(group.kinds != MARK)
                parts.append(numbers[(numbers >= since) & (numbers < end)])
                if group.sequence + len(group) >= end:
                    break
            else:
                return None  # its end is not there, or not yet
        return np.concatenate(parts)

    def replayed(self, point: RecoveryPoint, until: int | None, until_ns: int | None, *, contents: bool) -> Replay | None:
        """The journal's records after the point, laid over its disks, up to a number or a time; None if there are none."""
        groups = self._groups(point)
        if groups is None or point.journal is None:
            return None
        patches = [Patches() if contents else _Unlaid() for _ in point.journal.disks]
        replay = Replay(patches, point.journal.sequence, following=True)
        aside: Aside | None = None
        for group in groups:
            replay.feed(group, until=until, until_ns=until_ns)
            if sum(one.memory for one in replay.patches) > _MEMORY:
                aside = aside or Aside(self._repository.cache, self._repository.surroundings.randomness)
                for one in replay.patches:
                    one.put_aside(aside.put)
            if replay.beyond or replay.ended:
                break
        return replay

    def _groups(self, point: RecoveryPoint) -> Iterator[Group] | None:
        """The groups after a point; None where its journal is not kept, or not there yet."""
        span = self._spans.get(point.point)
        if span is None:
            return None
        groups = Journal(self._repository, span.stream).groups(span.begin)
        first = next(groups, None)
        if first is None or first.sequence > span.begin:
            return None
        return _with_first(first, groups)


def _with_first(first: Group, rest: Iterator[Group]) -> Iterator[Group]:
    yield first
    yield from rest


def _moment(point: RecoveryPoint, replay: Replay, *, exact: bool) -> OpenedMoment:
    """The state that a replay has come to."""
    position: JournalPosition | None = point.journal
    moment = moment_of(point)
    if replay.writes:
        # Of what was frozen when the point was made nothing is left after the next write.
        moment = replace(moment, time_ns=max(moment.time_ns, replay.time_ns), consistency="crash", mark=None)
    found = Found(moment, exact, writes_after=replay.writes, sequence=replay.sequence)
    patches = dict(zip(position.disks, replay.patches, strict=True)) if position and replay.writes else {}
    stands_ns = max(point.time_ns, replay.time_ns, replay.ended_ns or 0)
    return OpenedMoment(point, found, stands_ns, patches)
