# SPDX-License-Identifier: AGPL-3.0-or-later
"""A store that ignores the condition of a put: writers take turns, or nothing is safe (design 4.9.1)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.point import Tombstone
from everywhen.repository.alone import PREFIX, alone, alone_in_need, at_keys
from everywhen.repository.epochs import claim
from everywhen.repository.errors import Busy, Fenced
from everywhen.repository.gc import gc
from everywhen.repository.keys import keys
from everywhen.repository.presence import SECOND
from everywhen.repository.repository import Repository
from everywhen.repository.writer import write_point
from everywhen.storage.base import Buffer
from everywhen.storage.forwarding import ForwardingStore
from everywhen.storage.memory import MemoryStore
from tests.laboratory import SparseDisk, World

DISK = SparseDisk(BLOCK_SIZE, {0: b"x" * BLOCK_SIZE})


class Careless(ForwardingStore):
    """Puts whatever stands there."""

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        super().put(name, parts)


class Place:
    def __init__(self, folder: Path, *, one_writer: bool = True) -> None:
        self.world = World(folder)
        self.store = Careless(MemoryStore(clock_ns=self.world.clock))
        keys.create(self.store, self.world.mint(), passphrase=None, one_writer=one_writer)

    def open(self, host: str) -> Repository:
        return self.world.open(self.store, host=host)

    @property
    def turns(self) -> list[str]:
        return [found.name for found in self.store.list("lock/")]


def refused(place: Place, repository: Repository) -> None:
    """Neither a point nor a gc, and nothing is left of the try."""
    before = {found.name for found in place.store.list()}
    with pytest.raises(Busy, match=r"is writing to memory: .*, and this store cannot keep two writers apart"):
        place.world.back_up(repository, {"vda": DISK})
    with pytest.raises(Busy, match="cannot keep two writers apart"):
        place.world.collect(repository)
    assert {found.name for found in place.store.list()} == before


def test_who_comes_second_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.open("h1") as one, place.open("h2") as two:
        with write_point(one, "backup", first_copy=True):
            refused(place, two)
        place.world.back_up(two, {"vda": DISK})

        # While gc runs, too: it says what it does, and then another one comes.
        came = []

        def come(step: str, _done: int, _total: int | None) -> None:
            with pytest.raises(Busy, match=r"gc is writing to memory: on h2\.test"):
                place.world.back_up(one, {"vda": DISK})
            came.append(step)

        gc.collect(two, wait=False, dry_run=False, note=come, pause=place.world.clock.advance)
        assert came
        assert place.turns == []
        place.world.back_up(one, {"vda": DISK})


def test_a_turn_of_which_nothing_is_heard_is_over_and_its_writer_commits_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.open("h1") as one, place.open("h2") as two, ExitStack() as stack:
        stack.enter_context(pytest.raises(Fenced, match="another writer began; nothing was committed"))
        writer = stack.enter_context(write_point(one, "backup", first_copy=True))
        place.world.clock.advance(601)
        with write_point(two, "backup", first_copy=True):
            assert len(place.turns) == 1, "what is over is cleared away"
            writer.commit(None)  # type: ignore[arg-type]  # it does not come so far
    assert list(place.store.list("points/")) == []


def test_a_writer_that_was_fenced_meanwhile_commits_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.open("h1") as one, place.open("h2") as two, ExitStack() as stack:
        stack.enter_context(pytest.raises(Fenced))
        writer = stack.enter_context(write_point(one, "backup", first_copy=True))
        place.world.clock.advance(601)
        place.world.collect(two)
        assert isinstance(two.points.list()[1][0], Tombstone)
        writer.commit(None)  # type: ignore[arg-type]  # it does not come so far
    assert place.world.clock() > 601 * SECOND
    assert one.points.is_decided(writer.point)


def test_elsewhere_nobody_takes_turns(tmp_path: Path) -> None:
    place = Place(tmp_path, one_writer=False)
    with place.open("h1") as one, place.open("h2") as two, write_point(one, "backup", first_copy=True):
        assert not any(name.startswith(PREFIX) for name in place.turns)
        place.world.back_up(two, {"vda": DISK})


def test_who_changes_keys_takes_a_turn(tmp_path: Path) -> None:
    """Two rotations at once would each drop the other's slots."""
    place = Place(tmp_path)
    with place.open("h1") as one, place.open("h2") as two:
        keys_alone = at_keys(place.store, two.unlocked, two.surroundings)
        with (
            alone(one, "key"),
            pytest.raises(Busy, match=r"key is writing to memory: on h1\.test"),
            alone_in_need(keys_alone, "key"),
        ):
            pytest.fail("it is the other one's turn")
        with alone_in_need(keys_alone, "key"), pytest.raises(Busy, match=r"key is writing to memory: on h2\.test"):
            place.world.back_up(one, {"vda": DISK})
    assert place.turns == []


def test_who_claims_a_capture_takes_a_turn(tmp_path: Path) -> None:
    """Without put-if-absent two claims of one number would both succeed."""
    place = Place(tmp_path)
    with place.open("h1") as one, place.open("h2") as two:
        with alone(one, "capture"), pytest.raises(Busy, match=r"capture is writing to memory: on h1\.test"):
            claim(two, "0" * 32, above=0)
        assert claim(two, "0" * 32, above=0) == 1
        assert claim(one, "0" * 32, above=0) == 2
    assert place.turns == []


def test_a_turn_that_cannot_be_read_ends_as_others_do(tmp_path: Path) -> None:
    """Its holder would have put it anew long ago."""
    place = Place(tmp_path)
    with place.open("h1") as one:
        place.store.put(f"{PREFIX}torn", [b"torn"])
        refused(place, one)
        place.world.clock.advance(601)
        place.world.back_up(one, {"vda": DISK})
    assert place.turns == []
