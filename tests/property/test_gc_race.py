# SPDX-License-Identifier: AGPL-3.0-or-later
"""The race of rule 4.9.1, explored: ways in which writers, collectors and readers can interrupt one another.

What is explored: schedules with one, two and three interruptions before any change or listing, the shorter ones first, 20 of
each cast and 4,000 under EVERYWHEN_SOAK=1; each interruption may last for hours, so that sessions and locks expire.
That the exploration can fail is shown by `test_what_breaks_the_protocol_is_found`: each step of docs/locking.md left out
in turn.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from everywhen.formats.point import RecoveryPoint
from everywhen.repository import condemned, repository, writer
from everywhen.repository.condemned import Condemnation
from everywhen.repository.documents import Documents
from everywhen.repository.errors import Busy, Damaged, Fenced, NoSuchPoint
from everywhen.repository.gc import gc
from everywhen.repository.keys.keys import Unlocked
from everywhen.repository.points import RecoveryPoints
from everywhen.repository.presence import Attendance
from everywhen.repository.reading import opened_points
from everywhen.repository.repository import Repository
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import NotFound
from everywhen.services.keep import pruning
from everywhen.services.keep.pruning import undo
from everywhen.storage.memory import MemoryStore, StoredObject
from tests.interleaving import Bounds, Play, Step, Switch, explore, no_threads
from tests.laboratory import SparseDisk, World, block, shrink_packs, touched, truth_of
from tests.long_forms import SOAK, in_soak

WARM = "warm"


@pytest.fixture(autouse=True)
def _small_and_determined(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_packs(monkeypatch, 8 << 10)
    no_threads(monkeypatch)


def interesting(step: Step) -> bool:
    """Changes and listings of what the protocol is about, and all that a reader does.

    A writer or a collector that reads an immutable object earlier or later reads the same.
    """
    if step.actor == "reader":
        return True
    dull = ("twins/", "damage/", "list drops", "list undone", "list holds")
    return step.operation.startswith(("put", "delete", "list")) and (
        # Both copies of a condemnation count: when each is put, deleted and listed, matters.
        "twins/condemned/" in step.operation or not any(word in step.operation for word in dull)
    )


@dataclass(frozen=True, slots=True)
class Stage:
    """Where each run begins: a repository with a dropped point whose chunks share packs with those of live ones."""

    folder: Path
    unlocked: Unlocked
    objects: dict[str, StoredObject]
    clock_ns: int
    truths: dict[Any, Any]
    doomed: RecoveryPoint
    fading: RecoveryPoint
    """Dropped too, but that takes effect an hour after the beginning."""
    live: RecoveryPoint
    disk: SparseDisk
    """What the newest point shows."""


def prepared(folder: Path) -> Stage:
    """The first point (dropped) has blocks 0 to 11, the others only three of them: its packs are mostly dead."""
    world = World(folder)
    store = MemoryStore()
    unlocked = world.create(store, encrypted=False)
    with world.open(store, unlocked, cache=WARM) as repository:
        first = SparseDisk(20 << 20, {number: block(number) for number in range(12)})
        doomed = world.back_up(repository, {"vda": first})
        second = SparseDisk(20 << 20, {number: block(number) for number in (1, 5, 9)})
        second.blocks[315] = block("passing")
        fading = world.back_up(repository, {"vda": second}, parent=doomed)
        third = second.copy()
        third.blocks |= {300: block("new"), 5: touched(block(5), 1)}
        del third.blocks[315]
        newest = world.back_up(repository, {"vda": third}, parent=fading)
        world.drop(repository, doomed)
        world.drop(repository, fading, delay_s=2 * 3600)
    world.clock.advance(3600)
    return Stage(folder, unlocked, store.snapshot(), world.clock(), dict(world.truths), doomed, fading, newest, third)


class Run:
    """One play on the stage."""

    def __init__(self, stage: Stage, schedule: Sequence[Switch]) -> None:
        self.stage = stage
        self.store = MemoryStore()
        self.store.restore(stage.objects)
        self.world = World(Path(tempfile.mkdtemp(dir=stage.folder)), seed=1)
        self.world.clock.now = stage.clock_ns
        self.world.truths = dict(stage.truths)
        self.play = Play(schedule, self.world.clock.advance)

    def open(self, name: str) -> Repository:
        """With the cache of a host that has worked here before: it knows packs without reading them again."""
        shutil.copytree(self.stage.folder / WARM, self.world.folder / name)
        return self.world.open(self.play.view(self.store, name), self.stage.unlocked, cache=name, host=name)

    def writer(self, name: str, vm: str = "1" * 32, *, parent: RecoveryPoint | None = None) -> None:
        """Backs up what only the dropped point had, and a block of its own; with a parent from known changes."""

        def body() -> RecoveryPoint:
            with self.open(name) as repository:
                disk = self.stage.disk.copy()
                disk.blocks |= {number: block(number) for number in range(6)} | {
                    7: block("everybody's"),
                    310: block(name),
                    315: block("passing"),
                }
                changed = {"vda": [(0, 12), (300, 316)]} if parent else None
                return self.world.back_up(repository, {"vda": disk}, parent=parent, changed=changed, vm=vm)

        self.play.actor(name, body)

    def collector(self, name: str, *, wait: bool = True) -> None:
        def body() -> object:
            with self.open(name) as repository:
                pause = lambda seconds: self.play.pause(name, seconds)  # noqa: E731
                return gc.collect(repository, wait=wait, dry_run=False, note=lambda *_: None, pause=pause)

        self.play.actor(name, body)

    def reader(self, name: str, point: RecoveryPoint) -> None:
        """Opens a point and reads it in two halves."""

        def body() -> bool:
            with self.open(name) as repository, opened_points(repository, "restore", [point]):
                for _ in range(2):
                    assert truth_of(repository, point) == self.world.truths[point.point]
                return True

        self.play.actor(name, body)

    def taker_back(self, name: str) -> None:
        """Takes the fading point back; gives it when that is said to have worked."""

        def body() -> RecoveryPoint | None:
            with self.open(name) as repository:
                try:
                    back, _ = undo(repository, read_catalog(repository), [self.stage.fading.point])
                except NotFound:
                    return None
                return self.stage.fading if back else None

        self.play.actor(name, body)

    def finish(self) -> Play:
        """Play, and check: every live point, and every point that a writer was told is made, is whole."""
        self.play.run()
        expected = {self.stage.live.point}
        for name in list(self.play._actors):
            result = self.play.result(name)
            if isinstance(result, RecoveryPoint):
                expected.add(result.point)
            elif isinstance(result, BaseException):
                assert isinstance(result, Fenced | Busy | NoSuchPoint), f"{name}: {result!r}"
        with self.world.open(self.store, self.stage.unlocked) as repository:
            self.world.audit(repository, expected)
            # Whatever was left lying about, the next run ends it, and nothing of it is needed.
            self.world.clock.advance(3 * 3600)
            self.world.collect(repository)
        with self.world.open(self.store, self.stage.unlocked) as repository:
            self.world.audit(repository, expected)
        shutil.rmtree(self.world.folder)
        return self.play


Cast = Callable[[Run], None]


def writer_and_gc(run: Run) -> None:
    run.writer("writer")
    run.collector("gc")


def gc_and_writer(run: Run) -> None:
    run.collector("gc")
    run.writer("writer")


def successor_and_gc(run: Run) -> None:
    run.writer("writer", parent=run.stage.live)
    run.collector("gc")


def successor_of_fading(run: Run) -> None:
    run.collector("gc")
    run.writer("writer", parent=run.stage.fading)


def successor_of_doomed(run: Run) -> None:
    run.collector("gc")
    run.writer("writer", parent=run.stage.doomed)


def writer_and_two_gcs(run: Run) -> None:
    run.collector("gc")
    run.collector("gc2")
    run.writer("writer")


def two_writers_and_gc(run: Run) -> None:
    run.writer("writer")
    run.writer("writer2", vm="2" * 32)
    run.collector("gc")


def same_vm_and_gc(run: Run) -> None:
    run.collector("gc")
    run.writer("writer", parent=run.stage.live)
    run.writer("writer2", parent=run.stage.live)


def reader_and_gc(run: Run) -> None:
    run.reader("reader", run.stage.doomed)
    run.collector("gc")


def gc_and_reader(run: Run) -> None:
    run.collector("gc")
    run.reader("reader", run.stage.doomed)


def reader_of_live_and_gcs(run: Run) -> None:
    run.reader("reader", run.stage.live)
    run.collector("gc")
    run.collector("gc2")


def taker_back_and_gc(run: Run) -> None:
    run.taker_back("taker")
    run.collector("gc")


def gc_and_taker_back(run: Run) -> None:
    run.collector("gc")
    run.taker_back("taker")


CASTS: list[Cast] = [
    taker_back_and_gc,
    gc_and_taker_back,
    writer_and_gc,
    gc_and_writer,
    successor_and_gc,
    successor_of_doomed,
    successor_of_fading,
    writer_and_two_gcs,
    two_writers_and_gc,
    same_vm_and_gc,
    reader_and_gc,
    gc_and_reader,
    reader_of_live_and_gcs,
]


def explored(stage: Stage, cast: Cast, bounds: Bounds) -> int:
    def scene(schedule: Sequence[Switch]) -> Play:
        run = Run(stage, schedule)
        cast(run)
        return run.finish()

    return explore(scene, bounds)


@pytest.mark.parametrize("cast", CASTS, ids=lambda cast: cast.__name__)
def test_no_schedule_loses_anything(tmp_path: Path, cast: Cast) -> None:
    # A reader that sleeps for hours loses its lease.
    hours = (0,) if cast in (reader_and_gc, gc_and_reader, reader_of_live_and_gcs) else (0, 2)
    bounds = Bounds(3, hours=hours, interesting=interesting, runs=4_000 if SOAK else 20)
    assert explored(prepared(tmp_path), cast, bounds) >= 19


def _sessions_after_listing(patch: pytest.MonkeyPatch) -> None:
    """W1 after W2 and W3: the session is put when the writer has looked already."""
    begin, refresh = Attendance.begin, Repository.refresh
    late: list[Attendance] = []

    def late_begin(self: Attendance, *, if_absent: bool = False) -> None:
        if self._presence.name.startswith("sessions/"):
            late.append(self)
        else:
            begin(self, if_absent=if_absent)

    def refresh_first(self: Repository) -> None:
        refresh(self)
        if threading.current_thread().name.startswith("writer") and late:
            begin(late.pop(), if_absent=True)

    patch.setattr(Attendance, "begin", late_begin)
    patch.setattr(Repository, "refresh", refresh_first)


def _no_waiting(patch: pytest.MonkeyPatch) -> None:
    """G6 left out."""
    patch.setattr(gc._Run, "_wait_for_writers", lambda self, wait: True)


def _uncondemned(patch: pytest.MonkeyPatch) -> None:
    """One collector does not copy what is needed again, but takes the condemnation back."""
    finish = gc._Run._finish

    def withdrawing(self: gc._Run, condemned_before: list[Condemnation]) -> None:
        if threading.current_thread().name == "gc":
            for one in condemned_before:
                condemned.withdraw(self._documents, one.run)
        else:
            finish(self, condemned_before)

    patch.setattr(gc._Run, "_finish", withdrawing)


def _roots_of_the_beginning(patch: pytest.MonkeyPatch) -> None:
    """G7 does not list points again."""
    roots = gc._Run._roots
    known: dict[gc._Run, Any] = {}

    def once(self: gc._Run) -> Any:
        if self not in known:
            known[self] = roots(self)
        return known[self]

    patch.setattr(gc._Run, "_roots", once)


def _condemned_is_ignored(patch: pytest.MonkeyPatch) -> None:
    """The writer uses what is condemned."""
    read = condemned.read_condemned

    def for_collectors(documents: Documents) -> tuple[list[Condemnation], list[str]]:
        return ([], []) if threading.current_thread().name.startswith("writer") else read(documents)

    patch.setattr(repository, "read_condemned", for_collectors)


def _no_tombstones(patch: pytest.MonkeyPatch) -> None:
    """A writer that seems dead is not fenced, only forgotten."""
    patch.setattr(RecoveryPoints, "bury", lambda self, stone, *, replace=False: True)


def _packs_before_condemned(patch: pytest.MonkeyPatch) -> None:
    """W3 before W2."""
    listing = Repository._list_packs
    refresh = Repository.refresh
    early: dict[Repository, Any] = {}

    def list_first(self: Repository) -> None:
        early[self] = listing(self)
        refresh(self)

    patch.setattr(Repository, "refresh", list_first)
    patch.setattr(Repository, "_list_packs", lambda self: early.pop(self))


def _what_others_condemned_since(patch: pytest.MonkeyPatch) -> None:
    """Also what was condemned after G6 is deleted."""
    finish = gc._Run._finish
    patch.setattr(gc._Run, "_finish", lambda self, _: finish(self, condemned.list_condemned(self._documents)))


def _any_base(patch: pytest.MonkeyPatch) -> None:
    """A writer builds upon a point that is being deleted."""
    patch.setattr(writer.PointWriter, "usable", lambda self, base: base is not None)


def _condemned_points_are_read(patch: pytest.MonkeyPatch) -> None:
    """A reader opens a point that is being deleted."""
    refresh = Repository.refresh

    def forgetting(self: Repository) -> None:
        refresh(self)
        self.condemned_points = frozenset()

    patch.setattr(Repository, "refresh", forgetting)


def _no_second_look(patch: pytest.MonkeyPatch) -> None:
    """Who takes a point back looks for what is condemned before that only."""
    refuse = pruning._refuse_condemned

    def before_only(repository: Repository, points: Collection[str], *, written: bool) -> None:
        if not written:
            refuse(repository, points, written=written)

    patch.setattr(pruning, "_refuse_condemned", before_only)


def _no_leases(patch: pytest.MonkeyPatch) -> None:
    """A reader that leaves no lease."""
    begin = Attendance.begin
    patch.setattr(
        Attendance,
        "begin",
        lambda self, if_absent=False: None if self._presence.name.startswith("leases/") else begin(self, if_absent=if_absent),
    )


MUTATIONS = [
    (_sessions_after_listing, writer_and_gc, 0),
    (_no_waiting, writer_and_gc, 0),
    (_roots_of_the_beginning, writer_and_gc, 0),
    (_condemned_is_ignored, gc_and_writer, 0),
    (_no_tombstones, writer_and_gc, 2),
    (_any_base, successor_of_doomed, 0),
    pytest.param(_no_second_look, taker_back_and_gc, 2, marks=in_soak),  # 15 s
    (_no_leases, reader_and_gc, 0),
]


@pytest.mark.parametrize(("mutate", "cast", "hours"), MUTATIONS, ids=lambda one: getattr(one, "__name__", str(one)).strip("_"))
def test_what_breaks_the_protocol_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None], cast: Cast, hours: float
) -> None:
    stage = prepared(tmp_path)
    mutate(monkeypatch)
    bounds = Bounds(2, hours=(hours,), interesting=interesting, runs=400)
    with pytest.raises(AssertionError, match="with "):
        explored(stage, cast, bounds)


@dataclass(frozen=True, slots=True)
class Cue:
    """Before the actor's `nth` operation that begins so, since the last cue, `to` goes on, `hours` later."""

    actor: str
    beginning: str
    to: str
    nth: int = 1
    hours: float = 0


def guided(stage: Stage, cast: Cast, cues: Sequence[Cue]) -> None:
    """Play a schedule that is given by what the actors do: for what needs more interruptions than can be enumerated."""
    schedule: list[Switch] = []
    for cue in cues:
        run = Run(stage, schedule)
        cast(run)
        run.play.run()
        after = schedule[-1].step if schedule else -1
        steps = [number for number, step in enumerate(run.play.trace) if number > after and step.actor == cue.actor]
        fitting = [number for number in steps if run.play.trace[number].operation.startswith(cue.beginning)]
        if len(fitting) < cue.nth:
            raise Unplayable(cue)
        schedule.append(Switch(fitting[cue.nth - 1], cue.to, cue.hours))
    run = Run(stage, schedule)
    cast(run)
    run.finish()


class Unplayable(Exception):
    """An actor does not do what it is waited for."""


def stalled_and_overtaken(run: Run) -> None:
    run.collector("gc2")
    run.writer("writer")
    run.collector("gc")


GUIDED: list[tuple[Callable[[pytest.MonkeyPatch], None], Cast, list[Cue]]] = [
    (  # A stalled collector deletes what another one has given back meanwhile, and a writer has taken.
        _uncondemned,
        stalled_and_overtaken,
        [
            Cue("gc2", "delete packs/", "gc", hours=1),  # after its last look at what is condemned
            Cue("gc", "delete lock/", "writer", hours=1),
            Cue("writer", "put points/", "gc2", hours=1),
        ],
    ),
    (  # A collector deletes what another one condemned after the first one waited, and a writer has taken before.
        _what_others_condemned_since,
        writer_and_two_gcs,
        [
            Cue("gc", "list condemned/", "writer", nth=4, hours=2),
            Cue("writer", "put points/", "gc2"),
            Cue("gc2", "list sessions/", "gc", nth=2),
        ],
    ),
    (  # A pack is deleted between the two listings.
        _packs_before_condemned,
        gc_and_writer,
        [Cue("gc", "delete packs/", "writer"), Cue("writer", "list condemned/", "gc")],
    ),
]


@pytest.mark.parametrize(("mutate", "cast", "cues"), GUIDED, ids=[mutate.__name__.strip("_") for mutate, *_ in GUIDED])
def test_what_takes_more_interruptions_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None], cast: Cast, cues: list[Cue]
) -> None:
    stage = prepared(tmp_path)
    guided(stage, cast, cues)
    mutate(monkeypatch)
    with pytest.raises((AssertionError, Damaged)):
        guided(stage, cast, cues)


def test_reading_what_is_condemned_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that comes after gc looked for leases, and before gc deletes."""
    cues = [Cue("gc", "delete twins/points/", "reader"), Cue("reader", "get_range packs/", "gc")]
    stage = prepared(tmp_path)
    with pytest.raises(Unplayable):
        guided(stage, gc_and_reader, cues)  # it finds out before it reads
    _condemned_points_are_read(monkeypatch)
    with pytest.raises(AssertionError, match="Damaged"):
        guided(stage, gc_and_reader, cues)
