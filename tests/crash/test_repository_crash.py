# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cut after every change (I-2, I-9): backups, drops and gc are interrupted between any two changes of the store.

A scenario is recorded once. Then for each prefix of its changes the repository is opened as a new machine would, without
caches: all that was acknowledged must be listed and come back bit for bit, nothing may be there by half, and a backup and
gc must work as if nothing had happened. By default every third prefix (all of them within gc); all under EVERYWHEN_SOAK=1.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from everywhen.formats.ids import PointId
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.errors import NotARepository
from everywhen.repository.keys import keys
from everywhen.repository.ledger import Ledger
from everywhen.repository.repository import Repository
from everywhen.storage.memory import MemoryStore
from everywhen.storage.posix import TEMPORARY, PosixStore
from everywhen.storage.recording import Change, Put, RecordingStore, leave_torn, replay
from tests.interleaving import no_threads
from tests.laboratory import SparseDisk, World, block, shrink_packs, touched
from tests.long_forms import SOAK

DAY = 24 * 3600


@dataclass(slots=True)
class Story:
    """What was done, and after how many changes which point was acknowledged or which drop promised."""

    world: World
    changes: list[Change] = field(default_factory=list)
    committed: list[tuple[int, PointId]] = field(default_factory=list)
    collecting: list[range] = field(default_factory=list)

    def acknowledged(self, count: int) -> set[PointId]:
        return {point for at, point in self.committed if at <= count}


def disks(generation: int) -> dict[str, SparseDisk]:
    """Two disks of one VM: some blocks stay, some get small changes, some are replaced; the second grows and shrinks."""
    first = {number: block(number) for number in range(0, 40, 2)} | {
        260 + number: block((generation, number)) for number in range(6)
    }
    first[4] = touched(block(4), generation)
    first[6 + 2 * generation] = touched(block(6), generation)
    size = 100_000 + 70_000 * (generation % 3)
    second = {0: block(("small", generation % 2)), 1: block(("tail", generation), min(65536, size - 65536))}
    return {"vda": SparseDisk(20 << 20, first), "vdb": SparseDisk(size, second)}


def told(folder: Path, *, encrypted: bool) -> Story:
    """The scenario: init, three backups, drops, gc that moves chunks, a backup of another VM, a drop, gc again."""
    world = World(folder)
    store = RecordingStore(MemoryStore())
    story = Story(world, store.changes)

    def back_up(repository: Repository, generation: int, parent: RecoveryPoint | None, vm: str = "0" * 32) -> RecoveryPoint:
        point = world.back_up(repository, disks(generation), {"vm.xml": b"<vm/>" * generation}, parent=parent, vm=vm)
        # The session's deletion came after the commit, and its twin: whoever was told has all three.
        story.committed.append((len(store.changes) - 1, point.point))
        world.clock.advance(600)
        return point

    def collect(repository: Repository) -> None:
        before = len(store.changes)
        world.collect(repository)
        story.collecting.append(range(before, len(store.changes) + 1))

    unlocked = world.create(store, encrypted=encrypted)
    with world.open(store, unlocked) as repository:
        one = back_up(repository, 1, None)
        two = back_up(repository, 2, one)
        three = back_up(repository, 3, two)
        world.drop(repository, one)
        world.drop(repository, two, delay_s=30 * DAY)
        world.clock.advance(3600)
        collect(repository)
        other = back_up(repository, 4, None, vm="1" * 32)
        world.drop(repository, three)
        world.clock.advance(3600)
        collect(repository)
        back_up(repository, 5, other, vm="1" * 32)
    return story


def effectively_dropped(repository: Repository) -> set[str]:
    now = repository.surroundings.clock()
    return {point for drop in Ledger(repository.documents).drops() if drop.effective_ns <= now for point in drop.points}


def examine(story: Story, store: MemoryStore | PosixStore, count: int) -> None:
    """Everything that must be true after the first `count` changes, and what must work from there."""
    world = story.world
    try:
        superblock = keys.read_superblock(store)
    except NotARepository:
        assert not story.acknowledged(count)
        assert world.create(store, encrypted=False)
        return
    unlocked = keys.unlock(store, superblock, "correct horse" if superblock.encrypted else None)
    with world.open(store, unlocked) as repository:
        expected = story.acknowledged(count) - effectively_dropped(repository)
        world.audit(repository, expected)
        points, _, _ = repository.points.list()
        base = next((point for point in reversed(points) if point.point in expected), None)
        new = world.back_up(repository, disks(7), {"vm.xml": b"<vm/>"}, parent=base)
        world.clock.advance(3600)
        world.collect(repository)
        world.audit(repository, expected | {new.point})
    world.clock.advance(2 * DAY)
    with world.open(store, unlocked) as repository:
        world.collect(repository)
        world.audit(repository, expected | {new.point})
        left = {found.name.split("/")[0] for found in store.list()}
        assert not left & {"condemned", "lock", "leases"}, left
        assert not list(store.list("twins/condemned/"))
        # A session may stay only as the sign that its point's writer may not know of its commit.
        committed = {point.point for point in repository.points.list()[0]}
        assert {found.name.removeprefix("sessions/") for found in store.list("sessions/")} <= committed
    world.clock.now -= (2 * DAY + 3600) * 10**9


def cuts(story: Story) -> Iterator[int]:
    """After how many changes to look."""
    for count in range(len(story.changes) + 1):
        if SOAK or count % 3 == 0 or any(count in run for run in story.collecting):
            yield count


@pytest.mark.parametrize("encrypted", [False, True])
def test_every_cut_leaves_what_was_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: bool) -> None:
    shrink_packs(monkeypatch)
    story = told(tmp_path, encrypted=encrypted)
    names = [change.name.split("/")[0] for change in story.changes]
    assert names.count("packs") > 20
    assert names.count("condemned") == 4  # put and deleted, by two runs
    no_threads(monkeypatch)
    counts = list(cuts(story))
    for count in counts if SOAK or not encrypted else counts[::5]:
        store = MemoryStore()
        replay(story.changes[:count], store)
        try:
            examine(story, store, count)
        except Exception as error:
            raise AssertionError(
                f"cut after {count} of {len(story.changes)}: {story.changes[count - 1 : count + 1]!r:.300}"
            ) from error


def test_a_put_of_prune_or_gc_that_is_torn_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real file system. Those of backups: `test_repository_killed.py`."""
    shrink_packs(monkeypatch)
    story = told(tmp_path, encrypted=False)
    no_threads(monkeypatch)
    torn = {
        count: change
        for count, change in enumerate(story.changes)
        if isinstance(change, Put) and ("drops/" in change.name or any(count in run for run in story.collecting))
    }
    assert {change.name.removeprefix("twins/").split("/")[0] for change in torn.values()} >= {"drops", "condemned", "packs"}
    for count, change in list(torn.items())[:: 1 if SOAK else 3]:
        root = tmp_path / f"torn-{count}"
        store = PosixStore(str(root))
        replay(story.changes[:count], store)
        leave_torn(change, str(root), length=len(change.content) // 2)
        assert not any(TEMPORARY in found.name for found in store.list())
        examine(story, store, count)
        store.close()
        shutil.rmtree(root)
