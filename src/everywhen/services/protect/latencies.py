# SPDX-License-Identifier: AGPL-3.0-or-later
"""How long a VM's writes waited for the sink, by disk and minute (design 4.10.6): of what the sink counts from its beginning
on, what came in between two looks belongs to the minute of the second one.

Measured is the time from the receipt of a request to its answer, in the sink. What a mirror costs beside that in QEMU, and the
way through the socket, is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from everywhen.capture.counters import Counters, within
from everywhen.repository.minutes import PER_DAY, DayOfMinutes, Row
from everywhen.services.ages import MINUTE


class Latencies:
    """Of one stretch of capture. For one thread."""

    def __init__(self) -> None:
        self._before: dict[int, list[int]] = {}
        """By connection."""
        self._counts: dict[tuple[int, int], list[int]] = {}
        """By disk and minute, as `Counters.taps` counts."""
        self._worst: dict[int, int] = {}
        """By disk, since the beginning."""

    def look(self, now_ns: int, counters: Counters) -> None:
        """Take in what was answered since the last look; `now_ns` since 1970."""
        for connection, disk, counts, worst in counters.taps():
            before = self._before.get(connection)
            self._before[connection] = counts
            self._worst[disk] = max(worst, self._worst.get(disk, 0))
            if counts == before:
                continue
            new = counts if before is None else [now - then for now, then in zip(counts, before, strict=True)]
            if min(new) < 0:
                new = counts  # another tap has taken that connection
            place = (disk, now_ns // MINUTE)
            sums = self._counts.get(place)
            self._counts[place] = new if sums is None else [one + more for one, more in zip(sums, new, strict=True)]

    def days(self, names: Sequence[str]) -> dict[int, DayOfMinutes]:
        """All that was not forgotten, by day since 1970; `names` of the disks by number."""
        found: dict[int, DayOfMinutes] = {}
        for (disk, minute), counts in self._counts.items():
            if any(counts):
                # The buckets tell them to a third; the worst since the beginning is exact, and may be of this minute.
                median, worst = (min(within(counts, share), self._worst[disk]) for share in (0.5, 1.0))
                row = Row(median=median, worst=worst)
                found.setdefault(minute // PER_DAY, DayOfMinutes()).add(names[disk], minute % PER_DAY, row)
        return found

    def forget(self, now_ns: int) -> None:
        """What was said is kept: forget the minutes that are over. The one that goes on will be said again, as a whole."""
        self._counts = {place: counts for place, counts in self._counts.items() if place[1] >= now_ns // MINUTE}
