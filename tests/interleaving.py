# SPDX-License-Identifier: AGPL-3.0-or-later
"""Interleavings chosen, not hoped for: actors run one at a time, and may be interrupted before any operation on the store.

An actor is a function that works on a store of its own view. Its thread runs until it ends, until it waits (`pause`), or
until the schedule says that before its next operation another actor goes on. So a run is determined by its schedule,
and all schedules with few interruptions can be enumerated (Musuvathi and Qadeer, PLDI 2007: most races need two).
What the program does in thread pools happens in the actor's own thread (`no_threads`), or else nothing would be determined.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import pytest

from everywhen.repository import ingest, intake, points, presence, reading, repository
from everywhen.repository.errors import RepositoryError
from everywhen.storage.base import Buffer, ObjectInfo, ObjectStore
from everywhen.storage.forwarding import ForwardingStore

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Switch:
    """Before operation `step` of the run (counted over all actors) `to` goes on; `hours` pass while the other sleeps."""

    step: int
    to: str
    hours: float = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What an actor was about to do, and who else could have gone on instead."""

    actor: str
    operation: str
    others: tuple[str, ...]


class Deadlock(AssertionError):
    """Everybody waits: a run that would never end."""


class Abandoned(BaseException):
    """Ends the threads of a run that is over."""


@dataclass
class _Actor:
    body: Callable[[], Any]
    wake: threading.Event = field(default_factory=threading.Event)
    done: bool = False
    waits: int = 0
    result: Any = None
    error: BaseException | None = None


class Play:
    """One run. `trace` tells afterwards what happened in which order; `results` and `errors` are by actor."""

    PATIENCE = 3000  # waits of one actor before the run is called stuck: an hour, when each lasts a second

    def __init__(self, schedule: Sequence[Switch], sleep: Callable[[float], None]) -> None:
        self._switches = {switch.step: switch for switch in schedule}
        self._sleep = sleep
        self._actors: dict[str, _Actor] = {}
        self._over = threading.Event()
        self._aborted = False
        self._current = ""
        self.trace: list[Step] = []

    def actor(self, name: str, body: Callable[[], Any]) -> None:
        """Add an actor. The first one begins; the others follow in this order."""
        self._actors[name] = _Actor(body)

    def view(self, store: ObjectStore, name: str) -> ObjectStore:
        """The store as the actor of that name has it."""
        return _View(store, self, name)

    def run(self) -> None:
        """Let all actors run to their ends."""
        threads = [threading.Thread(target=self._live, args=(name,), name=name, daemon=True) for name in self._actors]
        for thread in threads:
            thread.start()
        self._current = next(iter(self._actors))
        self._actors[self._current].wake.set()
        if not self._over.wait(30):
            self._aborted = True
            for actor in self._actors.values():
                actor.wake.set()
            raise Deadlock("somebody went on without an operation for 30 s")
        for thread in threads:
            thread.join()

    def result(self, name: str) -> Any:
        """What the actor returned, or its error as an exception object."""
        actor = self._actors[name]
        return actor.error or actor.result

    def before(self, name: str, operation: str) -> None:
        """Called by an actor's own thread before each operation."""
        if threading.current_thread().name != name:
            return  # not an actor's thread: the audit after the run
        others = tuple(other for other, actor in self._actors.items() if not actor.done and other != name)
        step = len(self.trace)
        self.trace.append(Step(name, operation, others))
        switch = self._switches.get(step)
        if switch is not None and switch.to in others:
            self._sleep(switch.hours * 3600)
            self._go_on(switch.to, waiting=name)

    def pause(self, name: str, seconds: float) -> None:
        """The actor waits: time passes, everybody else has a turn."""
        actor = self._actors[name]
        actor.waits += 1
        if actor.waits > self.PATIENCE:
            raise Deadlock(f"{name} waited {actor.waits} times")
        self._sleep(seconds)
        following = [*itertools.dropwhile(lambda other: other != name, self._actors), *self._actors]
        ready = [other for other in following if other != name and not self._actors[other].done]
        if ready:
            self._go_on(ready[0], waiting=name)

    def _live(self, name: str) -> None:
        actor = self._actors[name]
        actor.wake.wait()
        actor.wake.clear()
        try:
            if not self._aborted:
                actor.result = actor.body()
        except Exception as error:  # noqa: BLE001 - every error is the scene's to judge
            actor.error = error
        except Abandoned:
            return
        actor.done = True
        ready = [other for other, one in self._actors.items() if not one.done]
        if ready:
            self._actors[ready[0]].wake.set()
        else:
            self._over.set()

    def _go_on(self, other: str, *, waiting: str) -> None:
        actor = self._actors[waiting]
        self._actors[other].wake.set()
        actor.wake.wait()
        actor.wake.clear()
        if self._aborted:
            raise Abandoned


class _View(ForwardingStore):
    def __init__(self, inner: ObjectStore, play: Play, name: str) -> None:
        super().__init__(inner)
        self._play = play
        self._name = name

    def get(self, name: str) -> bytes:
        self._play.before(self._name, f"get {name}")
        return self.inner.get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self._play.before(self._name, f"get_range {name}")
        return self.inner.get_range(name, offset, length)

    def size(self, name: str) -> int:
        self._play.before(self._name, f"size {name}")
        return self.inner.size(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._play.before(self._name, f"list {prefix}")
        return self.inner.list(prefix)

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        self._play.before(self._name, f"put {name}")
        self.inner.put(name, parts, if_absent=if_absent)

    def delete(self, name: str) -> None:
        self._play.before(self._name, f"delete {name}")
        self.inner.delete(name)


class Inline:
    """A ThreadPoolExecutor without threads: what is submitted is done at once, by whoever submits it."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - as the real one does
            future.set_exception(error)
        return future

    def map(self, work: Callable[..., T], *columns: Iterable[Any]) -> Iterator[T]:
        return iter([work(*row) for row in zip(*columns, strict=False)])

    def shutdown(self, *, wait: bool = True) -> None:
        """Nothing is under way."""


def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the repository do everything in the thread that asks for it, and refresh no session by itself."""
    for module in (ingest, intake, points, reading, repository):
        monkeypatch.setattr(module, "ThreadPoolExecutor", Inline)
    monkeypatch.setattr(presence.Attendance, "_refresh", lambda self: None)


Scene = Callable[[Sequence[Switch]], Play]
"""Builds the world, plays one schedule, checks what came of it (AssertionError), and gives the play for its trace."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far to explore: interruptions in a row, hours that pass at each, which operations are worth one, how many runs."""

    switches: int
    hours: Sequence[float] = (0,)
    interesting: Callable[[Step], bool] = lambda step: True
    runs: int = 10**9
    seed: int = 0


def explore(scene: Scene, bounds: Bounds) -> int:
    """All schedules within the bounds; at random among them where they are more than `runs`. Gives how many ran.

    What it raises is raised anew as AssertionError, with the schedule that led to it.
    """
    chance = random.Random(bounds.seed)
    levels: list[list[tuple[Switch, ...]]] = [[()]]
    count = 0
    share = bounds.runs
    for level in range(bounds.switches + 1):
        todo = levels[level]
        if len(todo) > share - count:
            chance.shuffle(todo)
            del todo[max(0, share - count) :]
        following: list[tuple[Switch, ...]] = []
        for schedule in todo:
            play = _played(scene, schedule)
            count += 1
            after = schedule[-1].step + 1 if schedule else 0
            for number, step in enumerate(play.trace[after:], after):
                if bounds.interesting(step):
                    following += [(*schedule, Switch(number, to, hours)) for to in step.others for hours in bounds.hours]
        levels.append(following)
    return count


def _played(scene: Scene, schedule: Sequence[Switch]) -> Play:
    try:
        return scene(schedule)
    except (AssertionError, RepositoryError) as error:
        raise AssertionError(f"with {list(schedule)}: {error!r}") from error


def abridged(trace: Sequence[Step]) -> Mapping[str, int]:
    """How many operations of which kind, for people."""
    kinds: dict[str, int] = {}
    for step in trace:
        kind = " ".join([step.actor, *step.operation.split("/")[:1]])
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds
