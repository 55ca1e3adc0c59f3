# SPDX-License-Identifier: AGPL-3.0-or-later
"""A journal's records in order, laid over disks: which prefixes of them are moments, and what the disks hold then.

Which record ends the moments, and when a state is one, is docs/capture.md's "Moments".
"""

from __future__ import annotations

from collections.abc import Sequence

from everywhen.block.patched import Patches
from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, parse_json, text, whole
from everywhen.formats.point import ClockStep
from everywhen.formats.segment import CLOCK_SET, MARK, WRITE, Group


class Replay:
    """Takes groups in order. `sequence` is the number after the newest record that was taken."""

    def __init__(self, patches: Sequence[Patches], sequence: int, *, following: bool) -> None:
        """`patches`: of each disk, what the records make of it; `following`: the state is a moment to begin with."""
        self.patches = patches
        self.sequence = sequence
        self.time_ns = 0
        """When the newest record was taken; 0 before there is one."""
        self.writes = 0
        """Records that were laid, marks not counted."""
        self.ended_ns: int | None = None
        """When a tap was closed after the newest record, all disks complete: until then every write is among the records."""
        self.clock_steps: list[ClockStep] = []
        """When the host's clock was set, as the records say."""
        self.beyond = False
        """Whether there was a record after the limit up to which it was fed."""
        self._tapped = [following] * len(patches)
        self._complete = [following] * len(patches)

    @property
    def is_moment(self) -> bool:
        """Whether the state after the newest record is one in which a power cut could have left the VM."""
        return all(self._complete)

    @property
    def ended(self) -> bool:
        """Whether there can be no moment after the newest record."""
        return self.ended_ns is not None

    def feed(self, group: Group, *, until: int | None = None, until_ns: int | None = None) -> None:
        """Lay the group's records, those before the sequence number `until` and not after the time `until_ns`.

        Not beyond the record at which a tap was closed: what came before it is the last moment. Raises Corrupt.
        """
        if self.ended or group.sequence + len(group) <= self.sequence:
            return
        if until is not None and self.sequence >= until:
            self.beyond = True
            return
        if group.sequence > self.sequence:
            raise Corrupt(f"records {self.sequence} to {group.sequence - 1} are missing")
        data, begin = memoryview(group.data()), 0
        columns = (group.kinds, group.disks, group.offsets, group.lengths, group.data_ends(), group.times)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for sequence, (kind, number, offset, length, end, after) in enumerate(rows, group.sequence):
            start, begin = begin, end
            if sequence < self.sequence:
                continue  # of a group that was fed in part
            time_ns = group.time_ns + after
            if (until is not None and sequence >= until) or (until_ns is not None and time_ns > until_ns):
                self.beyond = True
                return
            if number >= len(self.patches):
                raise Corrupt(f"record {sequence} is of disk {number}; there are {len(self.patches)}")
            if kind == MARK:
                self._mark(number, parse_json("a mark", bytes(data[start:end])), time_ns)
                if self.ended:
                    return
            else:
                self.writes += 1
                if kind == WRITE:
                    self.patches[number].write(offset, data[start:end])
                else:
                    self.patches[number].zero(offset, length)
            self.sequence = sequence + 1
            self.time_ns = max(self.time_ns, time_ns)

    def _mark(self, number: int, mark: Json, time_ns: int) -> None:
        what = text(mark, "mark")
        if what == CLOCK_SET:
            self.clock_steps.append(ClockStep(time_ns, whole(mark, "from_ns"), whole(mark, "to_ns")))
        if what == "tap closed" and self.is_moment:
            self.ended_ns = time_ns
            return
        self._tapped[number] = what == "tap opened" or (self._tapped[number] and what != "tap closed")
        self._complete[number] = self._tapped[number] and (self._complete[number] or what == "complete")
