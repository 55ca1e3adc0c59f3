# SPDX-License-Identifier: AGPL-3.0-or-later
"""A spool that is consumed before there is a moment: what was read is gone, and nothing is gone that was not read."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, cast

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.block.patched import Patches
from everywhen.capture import spool_writer
from everywhen.capture.counters import CLOSED, DURABLE, FINE, ROLL, ROLLED, STATE, Counters
from everywhen.capture.spool_writer import SpoolWriter
from everywhen.formats.point import Tree
from everywhen.formats.segment import MARK, WRITE, Group
from everywhen.repository.disk import PointDisk
from everywhen.repository.journal import Journal
from everywhen.repository.repository import Repository
from everywhen.repository.writer import write_point
from everywhen.services.protect.consuming import Consumer
from everywhen.services.protect.local_recipient import LocalMaking
from everywhen.services.protect.recipient import Making
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.protect.spooling import Spool
from everywhen.services.replay import Replay
from everywhen.storage.memory import MemoryStore
from tests.hypervisor import eventually
from tests.laboratory import World
from tests.spools import sink_order

STREAM = "ab" * 16
SIZE = 64 * BLOCK_SIZE
LIMIT = 1 << 20


class Receiving:
    """The spool's writer as protect sees it, without the processes around it."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        self._counters = Counters.create()
        order = sink_order(folder, [SIZE], repository.unlocked.keyset, repository=repository.id, stream=STREAM, limit=LIMIT)
        self.writer = SpoolWriter(order.place(), self._counters)
        self.disk = bytearray(SIZE)
        self.taken = 0
        for text in (b'{"mark":"tap opened"}', b'{"mark":"complete"}'):
            self._take(MARK, 0, text)

    def write(self, block: int) -> None:
        """A block that does not compress, durable."""
        data = os.urandom(BLOCK_SIZE)
        self.disk[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE] = data
        self._take(WRITE, block * BLOCK_SIZE, data)

    def _take(self, kind: int, offset: int, data: bytes) -> None:
        assert self.writer.take([(kind, 0, offset, len(data), data)]) == self.taken
        self.taken += 1
        eventually(lambda: self._counters.get(DURABLE) >= self.taken or self._counters.get(STATE) != FINE, "durable")
        assert self._counters.get(STATE) == FINE

    def roll(self) -> None:
        self._counters.put(ROLL, self._counters.get(ROLL) + 1)

    @property
    def rolled(self) -> bool:
        return self._counters.get(ROLL) == self._counters.get(ROLLED)

    @property
    def closed(self) -> int:
        return self._counters.get(CLOSED)

    def close(self) -> None:
        self.writer.close()
        self._counters.close()


class Interrupted(Spool):
    """Something happens when all records were read that are there."""

    then: Callable[[], None] | None = None

    def groups(self, since: int) -> Iterator[Group]:
        yield from super().groups(since)
        if self.then is not None:
            happening, self.then = self.then, None
            happening()


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    world, store = World(tmp_path), MemoryStore()
    with world.open(store, world.create(store, encrypted=True)) as opened:
        yield opened


@pytest.fixture
def receiving(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiving]:
    monkeypatch.setattr(spool_writer, "_GROUP_SECONDS", 0.005)
    monkeypatch.setattr(spool_writer, "_SYNC_SECONDS", 0.0)
    (tmp_path / "spool").mkdir()
    running = Receiving(repository, tmp_path / "spool")
    yield running
    running.close()


@pytest.fixture
def spool(repository: Repository, tmp_path: Path) -> Interrupted:
    return Interrupted(repository, tmp_path / "spool", 1, STREAM)


@pytest.fixture
def sealer(repository: Repository) -> Iterator[Sealer]:
    with write_point(repository, "test", first_copy=True) as writer:
        yield Sealer(repository, writer, [SealedDisk("vda", SIZE, Tree(SIZE, None))], Replay([Patches()], 0, following=False))


def making(spool: Spool, sealer: Sealer) -> Making:
    return LocalMaking(("a" * 32, 1, STREAM), sealer._writer, sealer, spool, [])


def consumer(receiving: Any, spool: Spool, sealer: Sealer) -> Consumer:
    until = lambda done: eventually(done, "the sink did it")  # noqa: E731
    return Consumer(receiving, spool, making(spool, sealer), LIMIT, until, monotonic)


def content(repository: Repository, sealer: Sealer) -> bytes:
    point = sealer.commit(None, Origin("a" * 32, 1, STREAM, {}), 0)
    return PointDisk(repository.fetcher, point.disks["vda"].tree).read(0, SIZE)


def test_many_times_the_limit_goes_through(
    repository: Repository, receiving: Receiving, spool: Interrupted, sealer: Sealer
) -> None:
    consuming, rests = consumer(receiving, spool, sealer), 0
    for number in range(4 * LIMIT // BLOCK_SIZE):
        receiving.write(number % 50)
        if consuming.is_due:
            consuming.run(lambda _: None)
            assert spool.files() == []
            assert not consuming.is_due
            rests += 1
    assert rests > 8
    consuming.run(lambda _: None)
    assert content(repository, sealer) == receiving.disk
    assert Journal(repository, STREAM).numbers() == [], "before the first moment there is no journal"


def test_it_goes_on_while_much_comes_in(receiving: Receiving, spool: Interrupted, sealer: Sealer) -> None:
    receiving.write(0)
    bursts = iter([10, 10, 1])

    def advance(_: int) -> None:
        for number in range(next(bursts, 0)):
            receiving.write(number)

    consumer(receiving, spool, sealer).run(advance)
    assert next(bursts, None) is None
    assert sealer.replay.sequence == receiving.taken - 1, "what came in last is less than half of the spool"
    assert 0 < spool.size() <= LIMIT // 2


def test_whoever_waits_is_told_while_the_spool_is_consumed(receiving: Receiving, spool: Interrupted, sealer: Sealer) -> None:
    """Into a repository that is slow that takes hours. Here 0.4 s pass at each look at the clock."""
    for number in range(12):
        receiving.write(number)
    seconds, at = itertools.count(0, 0.4), list[int]()
    there, until = cast("Any", receiving), lambda done: eventually(done, "the sink did it")
    consuming = Consumer(there, spool, making(spool, sealer), LIMIT, until, lambda: next(seconds))
    consuming.run(lambda _: at.append(sealer.replay.sequence))
    assert 2 <= len(at) < 12
    assert at[0] < at[1] < receiving.taken, "while records were read, and not for each of them"
    assert at[-1] == receiving.taken


@pytest.mark.parametrize("closes", [True, False])
def test_what_comes_in_while_records_are_read_stays(
    repository: Repository, receiving: Receiving, spool: Interrupted, sealer: Sealer, *, closes: bool
) -> None:
    """Also where its file is closed before the others are removed: the writer does that by itself at 64 MiB."""
    receiving.write(0)

    def meanwhile() -> None:
        receiving.write(1)
        if closes:
            receiving.roll()
            eventually(lambda: receiving.rolled, "it is closed")

    spool.then = meanwhile
    consuming = consumer(receiving, spool, sealer)
    consuming.run(lambda _: None)
    assert len(spool.files()) == 1
    receiving.write(2)
    consuming.run(lambda _: None)
    assert (spool.files(), sealer.replay.sequence) == ([], receiving.taken)
    assert content(repository, sealer) == receiving.disk
