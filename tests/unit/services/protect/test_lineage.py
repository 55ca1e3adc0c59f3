# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether a capture may go on with its line: the later capture wins as soon as it has a point, and nobody takes turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.capture.hypervisor import Hypervisor
from everywhen.capture.qmp import MonitorError
from everywhen.repository.condemned import Condemnation, publish, withdraw
from everywhen.repository.disk import PointDisk
from everywhen.repository.epochs import claim
from everywhen.repository.errors import RepositoryError
from everywhen.repository.gc import gc
from everywhen.repository.gc.roots import find_roots
from everywhen.repository.repository import Repository
from everywhen.repository.verify.verify import Watching, judging
from everywhen.repository.writer import write_point
from everywhen.services.protect.capture_order import CaptureLost, CaptureOrder, Told
from everywhen.services.protect.lineage import Displaced, demand_line, demand_parent, demand_turn, stand_aside
from everywhen.services.protect.wishes import Mark, Resume, Wish, Wishes
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World, shrink_packs
from tests.records import CAPTURED as VM
from tests.records import SIZE, made


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(world: World, store: MemoryStore) -> Iterator[Repository]:
    with world.open(store, world.create(store, encrypted=False)) as opened:
        yield opened


def test_a_later_capture_displaces_when_it_has_a_point(world: World, store: MemoryStore, repository: Repository) -> None:
    epoch = claim(repository, VM, above=0)
    point = made(repository, None, epoch, "1", b"one")
    demand_line(repository, VM, epoch, "1" * 32)
    with world.open(store, host="h2") as elsewhere:
        later = claim(elsewhere, VM, above=0)
        demand_line(repository, VM, epoch, "1" * 32)  # it is still reading: until it has a point this one goes on
        made(elsewhere, point, later, "2", b"two")
    with pytest.raises(Displaced, match=r"another run on h2\.test since 2027-01-15T08:00:00Z"):
        demand_line(repository, VM, epoch, "1" * 32)
    demand_line(repository, VM, later, "2" * 32)
    demand_line(repository, "b" * 32, epoch, "1" * 32)


def test_a_lost_claim_hides_no_later_capture_from_who_makes_points(repository: Repository) -> None:
    """Shipping asks the claims alone, where these say nothing."""
    point = made(repository, None, 1, "1", b"one")
    claim(repository, VM, above=0)
    made(repository, point, 3, "3", b"three")
    repository.store.delete(f"epochs/{VM}/{3:016x}")
    demand_line(repository, VM, 2, "1" * 32, cheaply=True)
    with pytest.raises(Displaced, match="somewhere else"):
        demand_line(repository, VM, 2, "1" * 32)


def test_of_two_captures_of_one_number_neither_goes_on(repository: Repository) -> None:
    """The first one's claim was lost before it had a point."""
    for stream in "12":
        made(repository, None, claim(repository, "b" * 32, above=0), stream, b"one")
        repository.store.delete(f"epochs/{'b' * 32}/{1:016x}")
    for stream in "12":
        with pytest.raises(Displaced):
            demand_line(repository, VM, 1, stream * 32)


def test_a_backup_displaces_nobody(world: World, repository: Repository) -> None:
    epoch = claim(repository, VM, above=0)
    point = made(repository, None, epoch, "1", b"one")
    with write_point(repository, "backup", first_copy=False) as writer:
        writer.commit(world._point(repository, writer, {}, {}, point, {}, VM))
    claim(repository, VM, above=0)  # of somebody who never stood
    demand_line(repository, VM, epoch, "1" * 32)


def test_who_has_to_attach_again_yields_and_who_begins_does_not(
    world: World, store: MemoryStore, repository: Repository
) -> None:
    epoch = claim(repository, VM, above=0)
    demand_turn(repository, VM, epoch)
    with world.open(store, host="h2") as elsewhere:
        claim(elsewhere, VM, above=0)
    with pytest.raises(Displaced, match="h2"):
        demand_turn(repository, VM, epoch)
    demand_turn(repository, VM, 0)


def test_a_run_does_not_stand_aside_for_itself(world: World, store: MemoryStore, repository: Repository) -> None:
    """Its next claim was stored, and the answer lost: it does not know of it."""
    epoch = claim(repository, VM, above=0)
    claim(repository, VM, above=0)
    demand_turn(repository, VM, epoch)
    with world.open(store, host="h2") as elsewhere:
        claim(elsewhere, VM, above=0)
    with pytest.raises(Displaced, match="h2"):
        demand_turn(repository, VM, epoch)


def test_a_run_of_this_host_that_is_dead_is_not_yielded_to(world: World, store: MemoryStore, repository: Repository) -> None:
    epoch = claim(repository, VM, above=0)
    with world.open(store) as another:
        dead = another.surroundings.holder
        name = f"epochs/{VM}/{epoch + 1:016x}"
        holder = {"host": dead.host, "boot": "an earlier one", "pid": 1, "user": ""}
        another.documents.put(name, {"kind": "epoch", "holder": holder, "since_ns": 1})
    demand_turn(repository, VM, epoch)


def test_who_displaced_may_not_be_known(repository: Repository) -> None:
    first = made(repository, None, 1, "1", b"one")
    made(repository, first, 2, "2", b"two")
    repository.store.put(f"epochs/{VM}/{2:016x}", [b"rotten"])
    with pytest.raises(Displaced, match=r"somewhere else$"):
        demand_line(repository, VM, 1, "1" * 32)


def test_a_parent_that_was_deleted(world: World, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next point is refused: it would refer to chunks that are gone. Nothing is committed that is not whole."""
    shrink_packs(monkeypatch)
    parent = made(repository, None, 1, "1", b"one" * 20_000)
    demand_parent(repository, parent)
    world.drop(repository, parent)
    world.clock.advance(3600)
    assert world.collect(repository).points_deleted == 1
    with pytest.raises(RepositoryError):
        made(repository, parent, 1, "1", b"next")
    assert repository.points.list()[0] == []
    with pytest.raises(CaptureLost, match="all is read"):
        demand_parent(repository, parent)


def test_a_parent_that_is_being_deleted(world: World, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is condemned, and still there: nothing is taken over unseen, so the next point is whole when it is gone."""
    shrink_packs(monkeypatch)
    parent = made(repository, None, 1, "1", b"one" * 20_000)
    publish(repository.documents, Condemnation("gc-1", frozenset(), frozenset([parent.point]), 1))
    after = made(repository, parent, 1, "1", b"next")
    assert after.disks["vda"].bytes_read == SIZE
    withdraw(repository.documents, "gc-1")
    world.drop(repository, parent)
    world.clock.advance(3600)
    assert world.collect(repository).points_deleted == 1
    repository.refresh()
    marks = gc.mark(repository, find_roots(repository), set(), lambda *_: None)
    assert (marks.missing.count, marks.broken.count) == (0, 0)
    content = PointDisk(repository.fetcher, after.disks["vda"].tree).read(0, SIZE)
    assert content == b"next".ljust(BLOCK_SIZE, b"\0") + (b"one" * 20_000).ljust(SIZE - BLOCK_SIZE, b"\0")


@dataclass
class Aside:
    """A VM, whoever waits, and whoever is told; each wait is a step."""

    steps: list[Wish | str | None]
    off: bool = False
    unreachable: bool = False
    ending: bool = False
    end_wish: None = None
    said: list[str] = field(default_factory=list)

    def wait(self, _: float) -> Wish | None:
        step = self.steps.pop(0)
        if isinstance(step, str):
            setattr(self, step, True)
            return None
        return step

    def is_off(self) -> bool:
        if self.unreachable:
            self.unreachable = False
            raise MonitorError("libvirt is away")
        return self.off

    def displaced(self, why: str) -> None:
        self.said.append(why)

    def alive(self) -> None:
        """Not of interest here."""


def aside(*steps: Wish | str | None, off: bool = False) -> Aside:
    world = Aside(list(steps), off=off)
    order = CaptureOrder(cast("Hypervisor", world), Path("nowhere"), 0, 0, 0.0)
    stand_aside(Displaced(None), order, cast("Told", world), cast("Wishes", world))
    assert world.said == ([] if off else ["it is captured by another run somewhere else"])
    return world


def test_standing_aside_ends_by_a_wish_by_the_end_and_when_the_vm_is_off() -> None:
    answers: list[object] = []
    assert aside(None, None, "off").steps == []
    assert aside(None, off=True).steps == [None], "one that was moved to another host is waited for, without a word"
    assert aside("unreachable", None, "ending").steps == []
    mark, resume = Mark("now", answers.append), Resume(answers.append)
    assert aside(mark, resume, None).steps == [None]
    assert answers == [{"error": "it is captured by another run somewhere else"}, {"resumed": True}]


def test_an_epoch_that_falls_is_found_by_verify(repository: Repository) -> None:
    first = made(repository, None, 2, "1", b"one")
    made(repository, first, 1, "2", b"two")
    with judging(repository, Watching(lambda _a, _b: None, lambda _a, _b, _c: None), read_data=False) as judgement:
        (finding,) = judgement.verdict.findings
    assert "epoch 1 does not follow that of its parent" in finding.why
