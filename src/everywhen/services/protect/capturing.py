# SPDX-License-Identifier: AGPL-3.0-or-later
"""One stretch of capture: taps on, what they cannot know copied, the journal sealed and shipped, until a loss or a wish.

The order of things, and what each crash leaves: docs/capture.md. The oldest of our bitmaps on a disk always covers everything
since the VM's newest point; so after any end of ours only what it names is read again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from everywhen.capture import bitmaps, leftovers
from everywhen.capture.counters import FINE, NO_ROOM, SPOOL_FAILED, SPOOL_FULL, SPOOL_SLOW
from everywhen.capture.export import Pace
from everywhen.capture.nodes import DiskNode
from everywhen.capture.qmp import CommandFailed, Monitor, MonitorBusy, MonitorError
from everywhen.capture.reading import Reader
from everywhen.capture.reception import Reception
from everywhen.capture.spool_reader import SpoolDamaged
from everywhen.capture.spool_room import room
from everywhen.capture.tap import Tap, all_stand
from everywhen.formats.ids import PointId
from everywhen.formats.point import Gap, RecoveryPoint
from everywhen.repository.ledger import Vm
from everywhen.services.ages import SECOND
from everywhen.services.protect.absence import images_seen
from everywhen.services.protect.bridging import covering
from everywhen.services.protect.capture_order import (
    ENDS,
    REPOSITORY_FAILS,
    CaptureLost,
    CaptureOrder,
    DisksChanged,
    Figures,
    Paused,
    Stopped,
    Time,
    Told,
)
from everywhen.services.protect.choosing import Choice, choose
from everywhen.services.protect.closing_gap import CopyProgress, GapCloser
from everywhen.services.protect.consuming import Consumer
from everywhen.services.protect.farewell import shut_down
from everywhen.services.protect.following import follow
from everywhen.services.protect.instants import Cut, Instants
from everywhen.services.protect.latencies import Latencies
from everywhen.services.protect.pushing import Push
from everywhen.services.protect.recipient import Making, PointFacts, Recipient
from everywhen.services.protect.sink_orders import joined_clock, sink_order
from everywhen.services.protect.taps_standing import demand_one_name, demand_taps, take_off
from everywhen.services.protect.unfinished_copy import UnfinishedCopies
from everywhen.services.protect.wishes import Wishes, refuse

_WHY = {
    FINE: "the sink ended, or was taken away because it hung",
    SPOOL_FULL: "the spool is full",
    NO_ROOM: "the spool's file system is nearly full, and what is left of it is for the images",
    SPOOL_SLOW: "this host's disk is too slow for the spool",
    SPOOL_FAILED: "the spool cannot be written",
}
_DURABLE_S = 10.0
_WELL_S, _HUNG_S = 0.2, 2.0
"""The sink looks at its sockets every 0.1 s. A machine may be busy; but the watchdog trips after 0.2 s."""


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What stands while the taps do; the names of the disks are ours."""

    monitor: Monitor
    choice: Choice
    nodes: list[DiskNode]
    names: list[str]
    reception: Reception
    taps: list[Tap]
    instants: Instants


class Capture:
    """One stretch of capture, from attaching to the loss of the taps or the wish to end."""

    def __init__(self, recipient: Recipient, order: CaptureOrder, told: Told, time: Time, wishes: Wishes) -> None:
        self._recipient = recipient
        self._clock = recipient.surroundings.clock
        self.order = order
        self.told = told
        self.time = time
        self.wishes = wishes
        self.parent: RecoveryPoint | None = None
        """The VM's newest point."""
        self.known: dict[PointId, int] = {}
        """Numbers of the points since each of which the changes up to the newest one are those of the disks here."""
        self.apart = ""  # as `PointFacts.apart`
        self.stood = False
        """Whether all taps were attached, and a point was made."""
        self._in_order = False
        self.complete = False
        """Whether the VM ended in order while every write was captured, and the newest point has the last one."""
        self.images: tuple[object, ...] = ()
        """Its images as they were seen when it had ended in order (`images_seen`)."""
        self._stream = recipient.surroundings.randomness(16).hex()
        self.epoch = 0
        """What was claimed for it; 0: nothing yet."""
        self._begin = 0
        """Sequence number of the stretch's first moment."""
        self.covered_ns = 0
        """Every write until then is known to be durable on this host."""
        self._seen = (0, 0)
        """An instant, and the number of the record after the last one that was taken by then."""
        self._common = ""
        """The clock that its sink shares with those of other VMs."""
        self._latencies = Latencies()
        self._copies: UnfinishedCopies | None = None
        """Copies that may be interrupted, from when they are begun."""
        self._left: Exception | None = None
        """Why something of it is left in QEMU."""
        self._told_ns = 0
        """When it was told how the capture stands, while what was not captured is read."""

    def run(self, vm: Vm, parent: RecoveryPoint | None, known: dict[PointId, int], gap: Gap | None) -> None:
        """Capture until the end is wanted. `parent` is the VM's newest point, `known` has the numbers of its
        stream's; `gap` is what was not captured since.

        Raises CaptureLost, Paused, Stopped, and the errors of the layers below.
        """
        self.vm, self.parent, self.known, self._gap = vm, parent, known, gap
        self.order.spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.epoch = self._recipient.claim(vm.vm, parent, self.order.spool)
        self._spool = self._recipient.consumption(vm, self.epoch, self._stream, self.order.spool)
        try:
            self._run()
        except (*ENDS, Paused) as end:
            not_off = f"its taps could not be taken off ({self._left})" if self._left is not None else None
            if isinstance(end, Paused) and not_off is None:
                self.told.paused(end.wish.seconds)
                end.wish.reply({"paused": end.wish.seconds})
            elif isinstance(end, Paused):  # what is to be done in the pause would be refused
                refuse(end.wish, not_off or "")
            if self._in_order:  # before the last point is made, which may take a while: who writes to them then is noticed
                self.images = images_seen(self.order)
            with suppress(SpoolDamaged, *REPOSITORY_FAILS):  # what is in the spool the next stretch begins with
                self._last_words()
                self.complete = self._in_order
            if isinstance(end, Paused) and not_off is not None:
                raise CaptureLost(not_off) from end
            raise
        finally:
            if not self.stood:
                self._spool.remove()  # there was no moment yet
            with suppress(*REPOSITORY_FAILS):  # then the next one tidies up
                self._recipient.leave(vm.vm, self.epoch, stood=self.stood)
        self._last_words()

    def _run(self) -> None:
        with self.order.hypervisor.monitor() as monitor:
            known = self.parent.disks if self.parent else {}
            choice = choose(self.order.hypervisor.survey(monitor), self.order.disks, known, self.order.folder.parent)
            demand_one_name(monitor, self.order.folder.name)
            leftovers.clear(monitor, answered=False)
            self.order.hypervisor.clear_outdated(monitor, list(choice.disks.values()))
            try:
                self._capture(monitor, choice)
            finally:
                # The sink is gone: nothing of ours stays in QEMU but the bitmaps. QEMU itself may be gone.
                self._left = take_off(monitor, self.order.sink, answered=False)
                if isinstance(self._left, CommandFailed | MonitorBusy):  # QEMU is there
                    self.told.left_behind(f"its taps could not be taken off ({self._left}): everywhen unprotect tries again")
                with suppress(CommandFailed, MonitorError):
                    if self._copies is not None and not self.stood:
                        self._copies.leave(monitor, choice.disks)
                    self.order.hypervisor.forget(monitor, list(choice.disks.values()))

    def _capture(self, monitor: Monitor, choice: Choice) -> None:
        nodes = list(choice.disks.values())
        self.order.sockets.mkdir(mode=0o700, exist_ok=True)
        self.order.hypervisor.admit(self.order.sockets, monitor)
        self._common = joined_clock(self._recipient.surroundings, self.order) if self.vm.group else ""
        order = sink_order(self._recipient.key, self.order, nodes, (self._stream, self.epoch), self._common)
        with Reception(self.order.sink, order) as reception:
            try:
                self._receive(monitor, choice, reception)
            finally:
                # While it answers: where a tap's writes fail, ending it is another matter (`leftovers`).
                if reception.let_go():
                    take_off(monitor, self.order.sink, answered=True)

    def _receive(self, monitor: Monitor, choice: Choice, reception: Reception) -> None:
        nodes, names = list(choice.disks.values()), list(choice.disks)
        self.order.hypervisor.admit(reception.socket_path, monitor)
        taps = [Tap(monitor, node, number) for number, node in enumerate(nodes)]
        pace = Pace(self.order.rate, self.time.monotonic, self.time.sleep)
        reader = Reader(monitor, self.order.sockets / "export.sock", pace)
        pushed = [tap for tap in taps if not reader.can_read(tap.disk)]
        self._demand_readable(pushed)
        read = {name: tap.disk for tap, name in zip(taps, names, strict=True) if tap not in pushed}
        whole = {name: node for name, node in read.items() if covering(monitor, node, name, self.known) is None}
        self._copies = copies = UnfinishedCopies(self.order.folder, self._recipient.surroundings.randomness)
        copies.begin(monitor, whole)
        for tap in taps:
            if tap not in pushed:
                tap.attach(str(reception.socket_path))
        self.told.attached(names, choice.left_out)
        instants = Instants(reception, self.order.quieting, self.time, self._clock)
        self._stretch = _Stretch(monitor, choice, nodes, names, reception, taps, instants)
        try:
            self._close_gap(reader, pushed, copies)
        except REPOSITORY_FAILS as error:
            if not self.stood:
                raise
            # The first point is there; what could not be done is to end its session, which gc sees to.
            self.told.waiting(str(error))
        self._stay()

    def _demand_readable(self, pushed: list[Tap]) -> None:
        """Raises CannotCapture where disks that would be pushed cannot be captured; no tap is attached yet."""

    def _stay(self) -> None:
        """From the first point on, as long as the taps are to stand."""
        reception, monitor = self._stretch.reception, self._stretch.monitor
        try:
            follow(self, self.order, self.told, self.time, self.wishes)
        except DisksChanged:
            raise
        except ENDS:
            refused = any(tap.refused for tap in self._stretch.taps)
            self._in_order = reception.alive and reception.state == FINE and not refused and shut_down(monitor)
            raise

    @property
    def figures(self) -> Figures:
        """How it stands."""
        reception = self._stretch.reception
        position = self.parent.journal if self.parent else None
        return Figures(
            taken=reception.taken,
            durable=reception.durable,
            sealed=position.sequence if position and position.stream == self._stream else 0,
            data_bytes=reception.taken_bytes,
            work_bytes=reception.work_bytes,
            spool_bytes=reception.written_bytes,
            waiting_bytes=self._spool.size(),
            covered_ns=self.covered_ns,
            median_ns=reception.counters.served_within(0.5),
            p99_ns=reception.counters.served_within(0.99),
            worst_ns=reception.counters.worst_ns(),
            **reception.processor_ns(),
        )

    def _last_words(self) -> None:
        """A point of the last moment that the spool has: what was written while the taps went, or before QEMU ended."""
        if self.stood and self.parent is not None:
            point, ended_ns = self._spool.last_point(self.parent, self._begin, self.told.alive)
            self._keep(point)
            self.covered_ns = max(self.covered_ns, ended_ns)
            self._spool.count(self._latencies.days(self._stretch.names))

    def _close_gap(self, reader: Reader, pushed: list[Tap], copies: UnfinishedCopies) -> None:
        """Read what the taps cannot know, or let them push it, with the journal over it, and make the first point."""
        stretch, reception = self._stretch, self._stretch.reception
        named = list(zip(stretch.names, (node.size for node in stretch.nodes), strict=True))
        with self._spool.first_point(self.parent, named, copies.kept) as making:
            limit = min(self.order.spool_limit, max(room(self.order.spool), 0))
            consumer = Consumer(reception, self._spool, making, limit, self._until, self.time.monotonic)
            sink = str(reception.socket_path)
            closer = GapCloser(sink, consumer, self.known, copies, self.time.monotonic)
            disks = list(zip(stretch.taps, stretch.names, making.disks, strict=True))
            sizes = [one[0].disk.size if one[0] in pushed else closer.expected(reader, *one) for one in disks]
            progress = CopyProgress(sizes, self.wishes, self.told, self.look)
            try:
                for tap, name, disk in disks:
                    if tap not in pushed:
                        closer.read(reader, tap, name, disk, progress)
                push = Push(sink, self.order, consumer)
                for tap in pushed:
                    closer.push(push, tap, progress)
            except Stopped:
                self.told.interrupted(*progress.kept)
                raise
            progress.end()
            self._seal(making, self._first_mark(), quiet=True)
            copies.forget()

    def _first_mark(self) -> str | None:
        """What the first point is to be called."""
        return None

    def look(self) -> None:
        """Raises CaptureLost when a tap, or what receives from it, has ended, or a disk was taken from the VM."""
        reception = self._stretch.reception
        now, taken = self._clock(), reception.taken
        self._latencies.look(now, reception.counters)
        if not reception.alive or reception.state != FINE:
            raise CaptureLost(_WHY[reception.state])
        if reception.silent_s > _HUNG_S:
            raise CaptureLost("the sink hangs, and the watchdog did not take it away")
        try:
            demand_taps(self.order.hypervisor, self._stretch.monitor, self._stretch.taps)
        except MonitorBusy as busy:  # a snapshot of much memory: whether they stand is seen later, and said until when they did
            self.told.waiting(str(busy))
            return
        # The taps stand now, so they stood then.
        if reception.durable >= self._seen[1]:
            self.covered_ns = max(self.covered_ns, self._seen[0])
            self._seen = now, taken
        if not self.stood and now - self._told_ns > SECOND:  # from then on `follow` tells
            self._told_ns = now
            self.told.measured(self.figures)

    def ship(self) -> None:
        """Put everything that was received into the repository's journal. Raises CaptureLost, StorageError."""
        self._spool.demand_line(cheaply=True)
        reception = self._stretch.reception
        reception.roll()
        self._until(lambda: reception.rolled)
        self._spool.ship(self._begin, reception.closed, self.told.alive)
        self._drop()
        self.told.shipped()

    def _until(self, done: Callable[[], bool]) -> None:
        """Wait for the spool's writer. Raises CaptureLost."""
        reception = self._stretch.reception
        end = self.time.monotonic() + _DURABLE_S
        while not done():
            if not reception.alive or reception.lets_go or self.time.monotonic() > end:
                why = "the spool does not become durable" if reception.state == FINE else _WHY[reception.state]
                raise CaptureLost(why)
            self.time.sleep(0.01)

    def _drop(self) -> None:
        if self.parent is not None and self.parent.journal is not None and self.parent.journal.stream == self._stream:
            self._spool.drop(self.parent.journal.sequence)

    @property
    def common_clock(self) -> Callable[[], int] | None:
        """What tells the time at which all VMs of its group have points; None where it is in none."""
        return self._clock if self.vm.group else None

    def witness(self) -> None:
        """Let the journal show that nothing is missing up to now. Raises CaptureLost, NbdError."""
        self._stretch.instants.witness()
        self.look()

    def make_point(self, mark: str | None, *, quiet: bool, at_ns: int | None = None) -> None:
        """A point of what was written since the last one, if anything was or a mark is wanted, or of the instant `at_ns`, which
        a group has in common; `quiet`: of a quiet guest.

        Raises CaptureLost, MissedInstant, NbdError, StorageError.
        """
        parent = self.parent
        if parent is None or parent.journal is None:
            return
        self._spool.demand_line()
        self._recipient.demand_parent(parent)
        now = self.order.hypervisor.disks(self._stretch.monitor)
        if self._stretch.choice.changed(now, named=bool(self.order.disks)):
            raise DisksChanged("the VM has other disks now")
        news = self._stretch.instants.is_news(parent.journal.sequence, quiet=quiet)
        if news or mark is not None or at_ns is not None:
            with self._spool.next_point(parent, parent.journal) as making:
                self._seal(making, mark, quiet=quiet, at_ns=at_ns)

    def _seal(self, making: Making, mark: str | None, *, quiet: bool, at_ns: int | None = None) -> None:
        """Begin new bitmaps, make the point of an instant after that, let go of older bitmaps and of the spool up to there."""
        began, stretch, monitor = self.time.monotonic(), self._stretch, self._stretch.monitor
        names = {node.node: name for node, name in zip(stretch.nodes, stretch.names, strict=True)}
        old = {node: bitmaps.recordings(monitor, node) for node in names}
        self._wait_for_sink()
        bitmaps.begin(monitor, names, making.point)
        try:
            cut = stretch.instants.cut(quiet=quiet, at_ns=at_ns)
            demand_taps(self.order.hypervisor, monitor, stretch.taps)  # a guest that has left writes elsewhere, and they stand
            # Now, so they did when the bitmaps were begun, and up to the instant.
            stand = all_stand(monitor, stretch.taps) and not stretch.reception.lets_go
            self._lay(making, cut)
            laid = making.laid
            # What was written between the end of a tap and the beginning of these bitmaps is neither here nor there.
            if laid.ended or not laid.is_moment or not stand:
                raise CaptureLost("a tap ended")
            cut.demand(laid, self.parent.time_ns if self.parent else 0)
            position = self.parent.journal if self.parent else None
            gap = self.order.gap(self._gap, laid.time_ns)
            of_stream = (position.began_ns, position.gap) if position and self.stood else (0, gap)
            facts = PointFacts(
                self.order.hypervisor.definition(),
                *of_stream,
                clock=self._common,
                apart=self.apart,
                mark=mark,
                consistency=cut.consistency,
                at_ns=cut.at_ns,
                latencies=self._latencies.days(stretch.names),
                seconds=self.time.monotonic() - began,
            )
            now = self._clock()
            point = making.commit(self.parent, facts)
        except BaseException:
            if making.point not in self.known:
                with suppress(CommandFailed, MonitorError):  # where QEMU is gone, so are they
                    for node, bitmap in bitmaps.begun(names, making.point).items():
                        bitmaps.remove(monitor, node, bitmap)
            raise
        self._latencies.forget(now)
        self._keep(point)
        if not self.stood:
            self.stood, self._begin, self.covered_ns = True, laid.sequence, point.time_ns
        self.told.sealed(point, laid.writes)
        for node, recordings in old.items():
            # The point is there. One that stays has more than is needed, and the next point removes it; that the monitor is
            # gone the next look tells.
            with suppress(CommandFailed, MonitorError):
                bitmaps.remove(monitor, node, *(recording.name for recording in recordings))
        self._drop()

    def _wait_for_sink(self) -> None:
        """Until the sink is well: what follows drains, and would freeze the guest behind a sink that hangs (F2)."""
        end = self.time.monotonic() + _HUNG_S
        while self._stretch.reception.silent_s > _WELL_S:
            if self.time.monotonic() > end:
                raise CaptureLost("the sink hangs, and the watchdog did not take it away")
            self.time.sleep(0.01)

    def _lay(self, making: Making, cut: Cut) -> None:
        """All records up to there, as soon as they are durable. Raises CaptureLost."""
        reception, until = self._stretch.reception, cut.until
        self._until(lambda: reception.durable >= until)
        making.lay(self.told.alive, until, cut.at_ns)
        laid = making.laid
        if laid.sequence < until and not (laid.ended or laid.beyond):
            raise CaptureLost(f"the spool ends at record {laid.sequence}, and {until} were durable")

    def _keep(self, point: RecoveryPoint | None) -> None:
        if point is not None:
            self.parent, self.known[point.point] = point, point.number
