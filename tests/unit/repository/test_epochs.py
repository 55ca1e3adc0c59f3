# SPDX-License-Identifier: AGPL-3.0-or-later
"""Claims of epochs: no two captures get the same number, whatever comes between; none is given out again while it counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everywhen.repository.epochs import Claim, claim, claimed, latest_claim, leave
from everywhen.repository.errors import ForeignClaim
from everywhen.repository.presence import Holder
from everywhen.repository.repository import Repository
from everywhen.storage.base import Buffer, ObjectInfo, Unavailable
from everywhen.storage.forwarding import ForwardingStore
from everywhen.storage.memory import MemoryStore
from everywhen.storage.posix import PosixStore
from everywhen.storage.recording import RecordingStore, replay
from tests.interleaving import Bounds, Play, Switch, explore, no_threads
from tests.laboratory import World
from tests.records import made

VM, OTHER = "a" * 32, "b" * 32


def test_numbers_rise(world: World, repository: Repository) -> None:
    assert latest_claim(repository.documents, VM) is None
    assert [claim(repository, VM, above=0), claim(repository, VM, above=0)] == [1, 2]
    assert claim(repository, OTHER, above=0) == 1, "each VM has its own"
    assert claim(repository, VM, above=7) == 8, "above those of its points, which may know more"
    found = latest_claim(repository.documents, VM)
    assert found == Claim(8, Holder("h1.test", "boot", 1, "tester"), world.clock())


def test_what_is_left_of_a_capture(repository: Repository) -> None:
    for _ in range(3):
        claim(repository, VM, above=0)
    leave(repository, VM, 2, stood=True)
    assert claimed(repository.documents, VM) == [2, 3], "who came later is not touched"
    leave(repository, VM, 3, stood=False)
    assert claimed(repository.documents, VM) == [2]
    leave(repository, VM, 1, stood=True)
    leave(repository, VM, 1, stood=False)
    assert claimed(repository.documents, VM) == [2]


def test_what_cannot_be_read_counts(repository: Repository) -> None:
    claim(repository, VM, above=4)
    repository.store.put(f"epochs/{VM}/{9:016x}", [b"rotten"])
    repository.store.put(f"epochs/{VM}/notes", [b"somebody's"])
    assert latest_claim(repository.documents, VM) == Claim(9, Holder("", "", 0, ""), 0)
    assert claim(repository, VM, above=0) == 10
    assert claimed(repository.documents, VM) == [5, 9, 10]


@pytest.mark.parametrize("number", [1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_number_that_no_capture_can_have_is_not_counted_on(repository: Repository, number: int) -> None:
    """A point of a higher one could be read by nobody, and the name of a spool's file has no room for it."""
    claim(repository, VM, above=4)
    name = f"epochs/{VM}/{number:016x}"
    repository.store.put(name, [b"somebody's"])
    with pytest.raises(ForeignClaim, match=name):
        claim(repository, VM, above=0)
    assert claimed(repository.documents, VM) == [5, number]
    repository.store.delete(name)
    assert claim(repository, VM, above=0) == 6


def test_a_lost_claim_gives_no_number_of_a_point_again(world: World, repository: Repository) -> None:
    """Not that of one which was dropped, or lies on another branch."""
    points = [made(repository, None, 7, "1", b"one"), made(repository, None, 3, "2", b"two")]
    world.drop(repository, points[0], delay_s=72 * 3600)
    assert claim(repository, VM, above=3) == 8
    assert claim(repository, OTHER, above=3) == 4


class HalfTaken(ForwardingStore):
    """Takes points and not their twins; `blind`: lists none."""

    blind = False

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        if name.startswith("twins/points/"):
            raise Unavailable(name, "away")
        self.inner.put(name, parts, if_absent=if_absent)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if self.blind:
            raise Unavailable(prefix, "away")
        return self.inner.list(prefix)


def test_a_claim_stays_where_the_store_took_a_point_and_did_not_say_so(world: World) -> None:
    store = HalfTaken(MemoryStore())
    with world.open(store, world.create(store, encrypted=True)) as repository:
        numbers = [claim(repository, VM, above=0) for _ in range(2)]
        with pytest.raises(Unavailable):
            made(repository, None, numbers[1], "2", b"two")
        store.blind = True
        with pytest.raises(Unavailable):
            leave(repository, VM, numbers[1], stood=False)
        store.blind = False
        assert claimed(repository.documents, VM) == numbers, "nothing goes unseen"
        leave(repository, VM, numbers[1], stood=False)
        assert claimed(repository.documents, VM) == numbers[1:]


def test_many_at_once(world: World, tmp_path: Path) -> None:
    store = PosixStore(tmp_path / "repo")
    with world.open(store, world.create(store, encrypted=False)) as repository, ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: claim(repository, VM, above=0), range(40)))
    assert sorted(numbers) == list(range(1, 41))


def test_no_schedule_gives_a_number_twice(world: World, monkeypatch: pytest.MonkeyPatch, repository: Repository) -> None:
    """Two captures begin and end at once, of each of which there is a point or is none, and a third one comes later."""
    no_threads(monkeypatch)
    unlocked = repository.unlocked

    def scene(schedule: Sequence[Switch]) -> Play:
        store = MemoryStore()
        for found in repository.store.list():
            store.put(found.name, [repository.store.get(found.name)])
        play = Play(schedule, world.clock.advance)
        with world.open(store, unlocked) as whole:
            before = claim(whole, VM, above=0)

        def captured(name: str, *, stood: bool) -> int:
            with world.open(play.view(store, name), unlocked, cache=name) as mine:
                number = claim(mine, VM, above=0)
                leave(mine, VM, number, stood=stood)
            return number

        play.actor("one", lambda: captured("one", stood=True))
        play.actor("two", lambda: captured("two", stood=bool(len(schedule) % 2)))
        play.run()
        one, two = play.result("one"), play.result("two")
        assert isinstance(one, int), one
        assert isinstance(two, int), two
        assert one > before
        assert two > before
        with world.open(store, unlocked) as whole:
            left = claimed(whole.documents, VM)
            assert one in left or max(left) > one, "of one that stood, or of a later one, something stays"
            assert claim(whole, VM, above=0) > one
        return play

    assert explore(scene, Bounds(2)) > 20


def test_every_cut_leaves_numbers_that_rise(world: World, repository: Repository) -> None:
    """Captures that begin and end, cut after any change: the next one gets a number above all of which there may be points."""
    unlocked = repository.unlocked
    origin = {found.name: repository.store.get(found.name) for found in repository.store.list()}
    recording = RecordingStore(MemoryStore())
    for name, content in origin.items():
        recording.put(name, [content])
    there = len(recording.changes)
    stood: list[tuple[int, int]] = []
    """After how many changes there is a point of which epoch."""
    with world.open(recording, unlocked) as opened:
        for turn in range(4):
            number = claim(opened, VM, above=0)
            if turn != 2:
                stood.append((len(recording.changes), number))
            leave(opened, VM, number, stood=turn != 2)
    assert len(recording.changes) - there >= 7
    for count in range(there, len(recording.changes) + 1):
        store = MemoryStore()
        replay(recording.changes[:count], store)
        with world.open(store, unlocked) as opened:
            highest = max((number for at, number in stood if at <= count), default=0)
            assert claim(opened, VM, above=0) > highest, f"cut after {count - there} changes"
