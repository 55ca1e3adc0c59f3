# SPDX-License-Identifier: AGPL-3.0-or-later
"""Points alone, so many seconds apart: the taps are on for as long as it takes to make one, and off in between.

Each point is made as the first one of any capture: taps on, what the bitmaps name read, what was written meanwhile laid over
it. So a round can do to a guest what a capture can, and nothing else; why not by QEMU's backup jobs:
docs/decisions/0006-points-at-intervals.md. Of each point's stream no segment is ever shipped: between two there is no moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from everywhen.capture.tap import Tap
from everywhen.formats.ids import PointId
from everywhen.formats.point import Gap, RecoveryPoint
from everywhen.repository.ledger import Vm
from everywhen.services.protect.capture_order import ENDS, CaptureOrder, Figures, Paused, Time, Told
from everywhen.services.protect.capturing import Capture
from everywhen.services.protect.choosing import refuse_pushed
from everywhen.services.protect.recipient import Recipient
from everywhen.services.protect.wishes import ANSWER_S, GRANTED_S, End, Mark, Pause, Wish, Wishes, marked, refuse

LATE = "making the points took longer than the time between them"
_LOOK_S = 1.0


class Interval:
    """Rounds, each of which makes a point, until one is lost or the end is wanted. Is `capture_order.Stretch`."""

    complete = False
    """What was written after the newest point is in none when the VM ends."""

    def __init__(self, recipient: Recipient, order: CaptureOrder, told: Told, time: Time, wishes: Wishes) -> None:
        self._recipient = recipient
        self._order = order
        self._told = _ToldOnce(told, time)
        self._time = time
        self._wishes = _Patience(wishes)
        self._statistics = recipient.surroundings.randomness(16).hex()
        self.parent: RecoveryPoint | None = None
        self.stood = False
        self.images: tuple[object, ...] = ()
        self.covered_ns = 0
        self.epoch = 0

    def run(self, vm: Vm, parent: RecoveryPoint | None, known: dict[PointId, int], gap: Gap | None) -> None:
        """Until the end is wanted, when a last point is made. Raises as `capture_order.Stretch` says."""
        self.parent = parent
        vm = replace(vm, group="")  # its points are of no instants that others have
        while True:
            due, last = self._time.monotonic() + self._order.interval_s, self._wishes.end_wanted
            self._round(vm, known, gap)
            newest = self.parent
            if last or newest is None:
                return
            known, gap = {newest.point: newest.number}, Gap(newest.time_ns, LATE)
            self._rest(due)

    def _round(self, vm: Vm, known: dict[PointId, int], gap: Gap | None) -> None:
        """Make a point, for a mark if there is one."""
        wish = self._wishes.next_mark(self._time.monotonic())
        capture = _Round(self._recipient, self._order, self._told, self._time, self._wishes)
        capture.wish, capture.apart = wish, self._statistics
        try:
            if self.epoch and self.parent is not None:  # between two rounds another capture may begin, or the point be deleted
                self._recipient.demand_turn(vm.vm, self.epoch)
                self._recipient.demand_parent(self.parent)
            capture.run(vm, self.parent, known, gap)
        except (*ENDS, Paused) as error:
            for one in self._wishes.marks if capture.stood or wish is None else [wish, *self._wishes.marks]:
                refuse(one, f"capture was lost just now ({error})")
            raise
        finally:
            self.epoch = capture.epoch or self.epoch
            if capture.stood and capture.parent is not None:
                self.parent, self.stood, self.covered_ns = capture.parent, True, capture.parent.time_ns
                self._told.again = self._wishes.patient = True
                if wish is not None:  # also where the round was lost after that
                    marked(wish, capture.parent)

    def _rest(self, until: float) -> None:
        """Without taps, until the next point is due, or somebody wants one, or the end. Raises Paused."""
        wishes = self._wishes
        while not wishes.marks and not wishes.end_wanted:
            self._told.alive()
            left = until - self._time.monotonic()
            wish = wishes.wait(max(0.0, min(left, _LOOK_S)))  # also where the point is late, or a pause would never come
            if isinstance(wish, Pause):
                self._told.paused(wish.seconds)
                wish.reply({"paused": wish.seconds})
                raise Paused(wish)
            if left <= 0:
                return


class _Round(Capture):
    """A capture that ends with its first point."""

    wish: Mark | None = None
    """Whoever wants the point, and gives it its name."""

    def _demand_readable(self, pushed: list[Tap]) -> None:
        if pushed:
            raise refuse_pushed([tap.disk.device for tap in pushed])

    def _first_mark(self) -> str | None:
        # Whoever wished for it was told that there is none: the name would be that of a state before something.
        there = self.wish is not None and self.time.monotonic() - self.wish.asked < ANSWER_S
        return self.wish.text if self.wish and there else None

    def _stay(self) -> None:
        self.told.measured(self.figures)

    def _last_words(self) -> None:
        self._spool.remove()  # what was written after the point's instant is in the bitmaps


class _Patience:
    """Wishes, from the first point on: marks and the end wait until the point that is being made is there."""

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes
        self.marks: list[Mark] = []
        self.patient = False

    def next_mark(self, now: float) -> Mark | None:
        """Whose turn it is, by the clock of `Mark.asked`; whoever has waited for too long is refused."""
        while self.marks:
            mark = self.marks.pop(0)
            if now - mark.asked < GRANTED_S:
                return mark
            refuse(mark, f"the point before it took longer than {GRANTED_S:.0f} s")
        return None

    @property
    def ending(self) -> bool:
        return self.end_wanted and not self.patient

    @property
    def end_wanted(self) -> bool:
        """Whether somebody wants the end."""
        return self._wishes.ending

    @property
    def end_wish(self) -> End | None:
        return self._wishes.end_wish

    def wait(self, seconds: float) -> Wish | None:
        wish = self._wishes.wait(seconds)
        if wish is None or isinstance(wish, Pause) or not self.patient:
            return wish
        if isinstance(wish, Mark) and wish.at_ns is not None:
            refuse(wish, "it is captured at intervals, and has no points of its group's instants")
        elif isinstance(wish, Mark):
            self.marks.append(wish)
        else:
            refuse(wish, "")  # everything is in the repository, and there is no pause to end
        return None


class _ToldOnce:
    """Whoever is told, but of the first attachment and copy alone (`again`: of a copy that follows), unless other disks are
    attached, and of figures that mean something where the taps come off again. Is `capture_order.Told`."""

    def __init__(self, told: Told, time: Time) -> None:
        self._told = told
        self._time = time
        self._since = 0.0
        self._sealed = False
        self._sink_ns = self._watchdog_ns = 0
        self._attached: tuple[list[str], Mapping[str, str]] | None = None
        self.again = False

    def attached(self, disks: list[str], left_out: Mapping[str, str]) -> None:
        self._since, self._sealed = self._time.monotonic(), False
        if self._attached != (disks, left_out):
            self._attached = disks, left_out
            self._told.attached(disks, left_out)

    def measured(self, figures: Figures) -> None:
        if not self._sealed:
            self._told.alive()  # a round is measured once, as a whole
            return
        # Nothing of a round is counted on in the next one, and nothing is captured after it; what its processes took adds up.
        counted = ("taken", "durable", "sealed", "data_bytes", "work_bytes", "spool_bytes", "waiting_bytes", "covered_ns")
        nothing = dict.fromkeys(counted, 0)
        self._sink_ns += figures.sink_ns
        self._watchdog_ns += figures.watchdog_ns
        took = {"sink_ns": self._sink_ns, "watchdog_ns": self._watchdog_ns}
        self._told.measured(replace(figures, **nothing, **took, tapped_s=self._time.monotonic() - self._since))

    def copying(self, done: int, total: int) -> None:
        if self.again:
            self._told.alive()
        else:
            self._told.copying(done, total)

    def interrupted(self, kept: int, total: int) -> None:
        self._told.interrupted(kept, total)

    def sealed(self, point: RecoveryPoint, writes: int) -> None:
        self._sealed = True
        self._told.sealed(point, writes)

    def shipped(self) -> None:
        self._told.shipped()

    def lost(self, why: str) -> None:
        self._told.lost(why)

    def waiting(self, why: str) -> None:
        self._told.waiting(why)

    def left_behind(self, what: str) -> None:
        self._told.left_behind(what)

    def displaced(self, why: str) -> None:
        self._told.displaced(why)

    def paused(self, seconds: float) -> None:
        self._told.paused(seconds)

    def off(self, why: str, complete: RecoveryPoint | None) -> None:
        self._told.off(why, complete)

    def alive(self) -> None:
        self._told.alive()
