# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every version of a file: from the newest moment back, opening only moments at which something it rests on changed.

A moment is opened and what was read for the answer is taken down: the footprint. The newest earlier moment in which a byte of
it differs is opened next (`traces.py`), and so on to the oldest. Two moments of the same state with no change of the footprint
between them are one version. The moment after a change is opened, too: what a journal's log has in it already counts only from
its commit on, and that need not be a part of the footprint.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from everywhen.services.history.line import At, Line
from everywhen.services.history.sight import Sight, TurningFiles, look
from everywhen.services.history.traces import Traces

_KEPT = 64


@dataclass(frozen=True, slots=True)
class Version:
    """A state, from the `first` moment that shows it to the `last`, as `sight` saw it; `before`: the last moment before the
    first, None where there is none.
    """

    sight: Sight
    first: At
    last: At
    before: At | None


class History:
    """The versions of what one path leads to. Not for several threads."""

    def __init__(self, line: Line, traces: Traces, files: TurningFiles, disk: str | None, path: str) -> None:
        """`disk`: where the path begins with the name of a volume of it; None: the path is the guest's own."""
        self._line = line
        self._traces = traces
        self._files = files
        self._disk = disk
        self._path = path
        self._seen: OrderedDict[At, Sight] = OrderedDict()
        self.opened = 0
        """Moments that were opened."""

    def look(self, at: At) -> Sight:
        """What is there at a moment. Raises Damaged, StorageError, GuestError."""
        sight = self._seen.get(at)
        if sight is None:
            self.opened += 1
            sight = self._seen[at] = look(self._files.at(self._line.disks(at)), self._disk, self._path)
            if len(self._seen) > _KEPT:
                self._seen.popitem(last=False)
        return sight

    def versions(self, newest: At) -> Iterator[Version]:
        """All of them up to a moment, the newest first. Raises as `look`."""
        at = last = newest
        sight = shown = self.look(at)
        while True:
            earlier = self._traces.before(at, sight.footprint)
            if earlier is None:
                yield Version(shown, self._line.at_point(0), last, None)
                return
            before = self.look(earlier)
            if before.state == sight.state:
                at, sight = earlier, before
                shown = before  # the guest's time of the oldest moment: a later one may be that of a mere touch
                continue
            first, earlier = self._turn(earlier, at, sight)
            yield Version(shown, first, last, earlier)
            at = last = earlier
            sight = shown = self.look(at)

    def _turn(self, low: At, high: At, sight: Sight) -> tuple[At, At]:
        """The first moment after `low` that shows the state of `sight`, as `high` does, and the one before it."""
        following = self._line.after(low)
        if following == high or self.look(following).state == sight.state:
            return following, low
        low = following

        def shows(at: At) -> bool:
            return at == high or self.look(at).state == sight.state

        beyond = high.index + 1 if high > self._line.at_point(high.index) else high.index
        index = _first(low.index, beyond, lambda one: shows(self._line.at_point(one)))
        low = max(low, self._line.at_point(index - 1))
        records = self._line.records(low.index)
        end = high.sequence if index > high.index else records.end if records else low.sequence
        sequence = _first(low.sequence, end + 1, lambda one: shows(At(low.index, one)))
        if sequence <= end:
            return At(low.index, sequence), At(low.index, sequence - 1)
        return self._line.at_point(index), At(low.index, end)


def last_write(history: History, low: At, high: At) -> tuple[At, At] | None:
    """Of something that is there at a point and is not at a later moment, before the next point: the last moment with it, and
    the first without; None where that is not known any better. Raises as History.
    """
    version = next(history.versions(high))
    if version.sight.entry is not None or version.before is None or version.before < low:
        return None
    return version.before, version.first


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first number from which on it holds, after `low`, where it does not; `high` where none before that does.

    Near `low` first: that is where it nearly always is.
    """
    step = 1
    while low + step < high:
        if holds(low + step):
            high = low + step
            break
        low, step = low + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
