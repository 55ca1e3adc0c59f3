# SPDX-License-Identifier: AGPL-3.0-or-later
"""Closing a gap: what the taps cannot know is read beside them, or pushed by them, until every disk is complete.

The spool is consumed between two pieces of a copy when it has grown, so that a copy may take as long as it wants. Why a piece
is read and taken in as one: docs/capture.md, "Copies".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from everywhen.block.device import BlockDevice
from everywhen.capture.reading import Reader
from everywhen.capture.tap import Tap
from everywhen.formats.fields import canonical_json
from everywhen.formats.ids import PointId
from everywhen.nbd.connection import NbdConnection
from everywhen.repository.intake import Ranges, with_edges
from everywhen.services.protect.bridging import expected, to_look_at, unknown_of
from everywhen.services.protect.capture_order import Paused, Stopped, Told
from everywhen.services.protect.consuming import Consumer
from everywhen.services.protect.pushing import Push
from everywhen.services.protect.recipient import DiskMaking
from everywhen.services.protect.unfinished_copy import Keeping, UnfinishedCopies
from everywhen.services.protect.wishes import Pause, Wishes, refuse

_MARK_S = 10.0
_LOOK_S = 1.0


class CopyProgress:
    """How much of the disks was dealt with; and whoever copies is asked here whether to go on."""

    def __init__(self, expected: Sequence[int], wishes: Wishes, told: Told, look: Callable[[], None]) -> None:
        """`expected`: bytes of each disk; `look` raises when there is no use in going on."""
        self._totals = list(expected)  # until it is known how much of each is to be looked at
        self._done = 0
        self._kept = [0] * len(expected)
        self._begun = (0, 0)
        self._wishes = wishes
        self._told = told
        self._look = look

    def expect(self, number: int, count: int, before: int = 0) -> None:
        """So many bytes of this disk are to be looked at from now on, and so many were before and are kept."""
        self._totals[number] = before + count
        self._kept[number] = before
        self._begun = (number, self._done)
        self._done += before

    def keep(self) -> None:
        """What was dealt with of the newest disk will not have to be again."""
        number, begun = self._begun
        self._kept[number] = self._done - begun

    @property
    def kept(self) -> tuple[int, int]:
        """Bytes of disks that need not be read again, whatever happens, and of how many."""
        return min(sum(self._kept), sum(self._totals)), sum(self._totals)

    def advance(self, count: int) -> None:
        """So many bytes more. Raises Stopped, Paused, and what `look` does."""
        self._done += count
        wish = self._wishes.wait(0)
        if self._wishes.ending:
            raise Stopped
        if isinstance(wish, Pause):
            raise Paused(wish)
        if wish is not None:
            refuse(wish, "what was not captured before is being read just now; there is no moment until that is done")
        self._look()
        total = sum(self._totals)
        self._told.copying(min(self._done, total), total)

    def end(self) -> None:
        """All was dealt with."""
        self._told.copying(sum(self._totals), sum(self._totals))


class GapCloser:
    """Completes disks one after the other. `points`: the numbers of those of the VM since which there may be bitmaps."""

    def __init__(
        self,
        sink: str,
        consumer: Consumer,
        points: Mapping[PointId, int],
        copies: UnfinishedCopies,
        monotonic: Callable[[], float],
    ) -> None:
        """`sink`: the path of its socket; `copies`: those that may be interrupted, begun; `monotonic` as in `Keeping`."""
        self._sink = sink
        self._consumer = consumer
        self._points = points
        self._copies = copies
        self._monotonic = monotonic

    def expected(self, reader: Reader, tap: Tap, name: str, disk: DiskMaking) -> int:
        """About how many bytes will be read of a disk. Raises MonitorError, CommandFailed."""
        return expected(reader.monitor, tap.disk, name, self._usable(disk))

    def read(self, reader: Reader, tap: Tap, name: str, disk: DiskMaking, progress: CopyProgress) -> None:
        """Copy what the tap, which is attached, cannot know. Raises what the reader, recipient, consumer and progress do."""
        copy = self._copies.of(name)

        def put(left: Ranges) -> None:
            self._copies.keep(name, left, disk.keep())
            progress.keep()

        keeping = Keeping(put, self._monotonic) if copy is not None else None
        with unknown_of(reader, tap.disk, name, self._usable(disk), copy if disk.goes_on else None) as (device, ranges):
            count = to_look_at(device, ranges)
            before = to_look_at(device, None) - count if disk.goes_on and ranges is not None else 0
            progress.expect(tap.number, count, max(before, 0))
            self.copy(device, ranges, disk, tap.disk.size, progress.advance, keeping)
        self._complete(tap)

    def _usable(self, disk: DiskMaking) -> Mapping[PointId, int]:
        # A bitmap says what changed since a point: of no use where what the disk was then is not there to build upon.
        return self._points if disk.size_before is not None and not disk.goes_on else {}

    def copy(
        self,
        device: BlockDevice,
        ranges: Ranges | None,
        disk: DiskMaking,
        size: int,
        advance: Callable[[int], None],
        keeping: Keeping | None = None,
    ) -> None:
        """Take in these blocks of a device (None: all), and consume the spool between two pieces whenever it is due.

        A piece is read anew from its extents on: what was read before a record must not be taken in after it. Whoever wishes
        for the end or a pause waits until what was read is kept, where something is.
        """
        before = disk.size_before
        # Here and not while taking in: the first records that are laid make it as large as the disk.
        left = ranges if before is None else with_edges(ranges, before, size)
        wished: list[Stopped | Paused] = []
        consumes, looked = False, self._monotonic()

        def advanced(count: int) -> None:
            nonlocal looked
            looked = self._monotonic()
            try:
                advance(count)
            except (Stopped, Paused) as wish:
                if keeping is None:
                    raise
                wished.append(wish)

        def enough() -> bool:
            nonlocal consumes
            if self._monotonic() - looked > _LOOK_S:  # much is read before the first of it is dealt with
                advanced(0)
            consumes = self._consumer.is_due
            return consumes or bool(wished) or (keeping is not None and keeping.is_due)

        while True:
            left = disk.take_in(device, left, advanced, enough)
            if keeping is not None and (wished or keeping.is_due or not left):
                keeping.keep(left)
            if wished:
                raise wished[0]
            if not left:
                return
            if consumes:
                self._consumer.run(advance)

    def push(self, push: Push, tap: Tap, progress: CopyProgress) -> None:
        """Attach the tap, and let it send the disk. Raises what the push does."""
        push.run(tap, progress.advance)
        self._complete(tap)

    def _complete(self, tap: Tap) -> None:
        with NbdConnection(self._sink, f"mark-{tap.number}", timeout=_MARK_S) as connection:
            connection.answer(connection.send(0, canonical_json({"mark": "complete"})))
