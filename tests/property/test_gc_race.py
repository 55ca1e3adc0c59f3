# SPDX-License-Identifier: AGPL-3.0-or-later
"""The race of rule 4.9.1, explored: every way in which writers, collectors and readers can interrupt one another.

What is explored: all schedules with one interruption before any change or listing, and many with two and three (all of
those with two under EVERYWHEN_SOAK=1), where each interruption may last for hours, so that sessions and locks expire.
That the exploration can fail is shown by `test_what_breaks_the_protocol_is_found`: each step of docs/locking.md left out
in turn.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from everywhen.formats.point import RecoveryPoint
from everywhen.repository.errors import Busy, Fenced, NoSuchPoint
from everywhen.repository.keys import Unlocked
from everywhen.repository.reading import opened_points
from everywhen.repository.repository import Repository
from everywhen.storage.memory import MemoryStore, StoredObject
from tests.interleaving import Bounds, Play, Switch, explore, no_threads
from tests.laboratory import SparseDisk, World, block, shrink_packs, touched, truth_of

SOAK = "EVERYWHEN_SOAK" in os.environ


@pytest.fixture(autouse=True)
def _small_and_determined(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_packs(monkeypatch, 8 << 10)
    no_threads(monkeypatch)


def interesting(operation: str) -> bool:
    """Changes and listings of what the protocol is about; reading immutable objects earlier or later changes nothing."""
    return not operation.startswith(("get", "size")) and "twins/" not in operation


@dataclass(frozen=True, slots=True)
class Stage:
    """Where each run begins: a repository with a dropped point whose chunks share packs with those of live ones."""

    folder: Path
    unlocked: Unlocked
    objects: dict[str, StoredObject]
    clock_ns: int
    truths: dict[Any, Any]
    doomed: RecoveryPoint
    live: list[RecoveryPoint]
    disk: SparseDisk
    """What the newest point shows."""


def prepared(folder: Path) -> Stage:
    """p1 (dropped) has blocks 0..11, p2 has only three of them, p3 those and others: packs of p1 are mostly dead."""
    world = World(folder)
    store = MemoryStore()
    unlocked = world.create(store, encrypted=False)
    with world.open(store, unlocked) as repository:
        first = SparseDisk(20 << 20, {number: block(number) for number in range(12)})
        doomed = world.back_up(repository, {"vda": first})
        second = SparseDisk(20 << 20, {number: block(number) for number in (1, 5, 9)})
        kept = world.back_up(repository, {"vda": second}, parent=doomed)
        third = second.copy()
        third.blocks |= {300: block("new"), 5: touched(block(5), 1)}
        newest = world.back_up(repository, {"vda": third}, parent=kept)
        world.drop(repository, doomed)
    world.clock.advance(3600)
    return Stage(folder, unlocked, store.snapshot(), world.clock(), dict(world.truths), doomed, [kept, newest], third)


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
        self._pauses: dict[str, Callable[[float], None]] = {}

    def open(self, name: str) -> Repository:
        return self.world.open(self.play.view(self.store, name), self.stage.unlocked, host=name)

    def writer(self, name: str, vm: str = "1" * 32, *, known: bool = False) -> None:
        """Backs up what only the dropped point had, and a block of its own. `known`: as the newest point's successor."""

        def body() -> RecoveryPoint:
            with self.open(name) as repository:
                disk = self.stage.disk.copy()
                disk.blocks |= {number: block(number) for number in range(6)} | {7: block("everybody's"), 310: block(name)}
                parent, changed = None, None
                if known:
                    parent, changed = self.stage.live[-1], {"vda": [(0, 8), (310, 311)]}
                return self.world.back_up(repository, {"vda": disk}, parent=parent, changed=changed, vm=vm)

        self.play.actor(name, body)

    def collector(self, name: str, *, wait: bool = True) -> None:
        def body() -> object:
            from everywhen.repository import gc

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

    def finish(self, *, lost: frozenset[str] = frozenset()) -> Play:
        """Play, and check: every live point, and every point that a writer was told is made, is whole. `lost`: may go."""
        self.play.run()
        expected = {point.point for point in self.stage.live if point.point not in lost}
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
    run.writer("writer", known=True)
    run.collector("gc")


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
    run.writer("writer", known=True)
    run.writer("writer2", known=True)


def reader_and_gc(run: Run) -> None:
    run.reader("reader", run.stage.doomed)
    run.collector("gc")


def reader_of_live_and_gcs(run: Run) -> None:
    run.reader("reader", run.stage.live[0])
    run.collector("gc")
    run.collector("gc2")


CASTS: list[Cast] = [
    writer_and_gc,
    gc_and_writer,
    successor_and_gc,
    writer_and_two_gcs,
    two_writers_and_gc,
    same_vm_and_gc,
    reader_and_gc,
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
    readers = cast in (reader_and_gc, reader_of_live_and_gcs)
    bounds = Bounds(3, hours=(0,) if readers else (0, 2), interesting=interesting, runs=10**5 if SOAK else int(os.environ.get("RUNS","150")))
    assert explored(prepared(tmp_path), cast, bounds) > 20
