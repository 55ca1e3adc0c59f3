# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest with two disks that goes on while these are copied, as a model: its steps come between any two of the copy.

Between two extents, between two halves of a block that is read, before and after the journal is consumed. As QEMU does, it
writes to the disk first; the record follows some time later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeAlias

import numpy as np
from hypothesis import strategies as st

from everywhen.block.device import BLOCK_SIZE, Extent
from everywhen.block.patched import Patches
from everywhen.formats.point import RecoveryPoint, Tree
from everywhen.formats.segment import WRITE, ZERO, Group, decode_group, encode_group
from everywhen.repository.disk import PointDisk
from everywhen.repository.intake import Ranges
from everywhen.repository.repository import Repository
from everywhen.repository.writer import write_point
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.replay import Replay
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World
from tests.records import Made, mark

NAMES = ("vda", "vdb")
SIZE = 5 * BLOCK_SIZE + 700
STREAM = "ab" * 16

Write: TypeAlias = tuple[int, int, int, int]
"""Disk, offset, length, and the byte it is filled with (0: zeroes)."""

writes = st.tuples(
    st.integers(0, 1),
    st.one_of(st.integers(0, SIZE - 1), st.integers(0, 5).map(lambda block: block * BLOCK_SIZE)),
    st.sampled_from([1, 512, 4096, 30_000, BLOCK_SIZE, 2 * BLOCK_SIZE + 7]),
    st.integers(0, 5),
).map(lambda one: (one[0], one[1], min(one[2], SIZE - one[1]), one[3]))
steps = st.lists(st.one_of(writes, st.integers(0, 3), st.none()), min_size=40, max_size=80)
"""A write; or the record of one that is under way is taken, by its number among them; or nothing."""


class Guest:
    """Two disks of a guest that goes on: each step is made when somebody looks."""

    def __init__(self, disks: list[bytearray], script: Iterator[Write | int | None]) -> None:
        self.disks = disks
        self.sure = [bytearray(disk) for disk in disks]
        """What the disks have by the records that were taken."""
        self.under_way: list[Write] = []
        self.records: list[Made] = [mark(disk, "tap opened") for disk in range(2)]
        self.bitmaps: list[dict[str, set[int]]] = [{}, {}]
        """Blocks that were written since each bitmap of a disk was begun, by its name."""
        self._script = script

    def step(self) -> None:
        """One thing that happens, or nothing."""
        match next(self._script, None):
            case int(number):
                self.answer(number)
            case (_, _, _, _) as write:
                self.write(write)
                self.under_way.append(write)

    def write(self, write: Write) -> None:
        """It is on the disk, and QEMU remembers that."""
        disk, offset, length, _ = write
        lay(self.disks, write)
        for blocks in self.bitmaps[disk].values():
            blocks.update(range(offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)))

    def tapped(self) -> None:
        """Taps are attached anew: QEMU has drained, nothing is under way, and a new journal begins."""
        self.sure = [bytearray(disk) for disk in self.disks]
        self.under_way = []
        self.records = [mark(disk, "tap opened") for disk in range(2)]

    def answer(self, number: int) -> None:
        """Take the record of a write that is under way, unless one before it, which overlaps it, is not taken yet."""
        if not self.under_way:
            return
        number %= len(self.under_way)
        write = self.under_way[number]
        if any(_overlap(write, earlier) for earlier in self.under_way[:number]):
            return
        disk, offset, length, fill = self.under_way.pop(number)
        lay(self.sure, write)
        self.records.append((WRITE if fill else ZERO, disk, offset, bytes([fill]) * length))

    def group(self, since: int) -> Group | None:
        """The records from this number on."""
        rows = [(kind, disk, offset, len(data), at) for at, (kind, disk, offset, data) in enumerate(self.records[since:])]
        parts = [data for kind, *_, data in self.records[since:] if kind != ZERO]
        return decode_group(encode_group(since, 1000 + since, rows, parts, 1)) if rows else None


def lay(disks: list[bytearray], write: Write) -> None:
    disk, offset, length, fill = write
    disks[disk][offset : offset + length] = bytes([fill]) * length


def _overlap(one: Write, other: Write) -> bool:
    return one[0] == other[0] and one[1] < other[1] + other[2] and other[1] < one[1] + one[2]


class Exported:
    """A disk of a guest that goes on while it is read. A BlockDevice."""

    def __init__(self, guest: Guest, disk: int) -> None:
        self._guest = guest
        self._disk = disk
        self.size = SIZE

    def read(self, offset: int, length: int) -> bytes:
        half, parts = length // 2, []
        for first, end in ((offset, offset + half), (offset + half, offset + length)):
            self._guest.step()
            parts.append(bytes(self._guest.disks[self._disk][first:end]))
        return b"".join(parts)

    def extents(self) -> Iterator[Extent]:
        for start in range(0, SIZE, BLOCK_SIZE):
            self._guest.step()
            end = min(start + BLOCK_SIZE, SIZE)
            yield Extent(start, end - start, zero=not any(self._guest.disks[self._disk][start:end]))

    def close(self) -> None:
        """Nothing is held."""


class Consumed:
    """Stands for the spool's consumer, which is tested by itself: what was taken is fed, whenever it is said to be due."""

    def __init__(self, guest: Guest, sealer: Sealer, due: Iterator[bool]) -> None:
        self._guest = guest
        self._sealer = sealer
        self._due = due

    @property
    def is_due(self) -> bool:
        self._guest.step()
        return next(self._due, False)

    def run(self, advance: Callable[[int], None]) -> None:
        self._guest.step()
        if (group := self._guest.group(self._sealer.replay.sequence)) is not None:
            self._sealer.feed(group)
        self._guest.step()
        advance(0)


class Repositories:
    """One after the other, each for some examples: a point is made after a look at all that there are."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._opened = ExitStack()
        self._left = 0

    def close(self) -> None:
        self._opened.close()

    def next(self) -> Repository:
        """One that has few points."""
        if not self._left:
            self.close()
            store = MemoryStore()
            self._current = self._opened.enter_context(self._world.open(store, self._world.create(store, encrypted=False)))
            self._left = 25
        self._left -= 1
        return self._current


class Flat:
    """Some bytes. A BlockDevice."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size, zero=False)

    def close(self) -> None:
        """Nothing is held."""


def point_before(repository: Repository, vm: str, contents: list[bytes]) -> RecoveryPoint:
    """What the disks held when the gap began."""
    with write_point(repository, "test", first_copy=False) as writer:
        disks = [SealedDisk(name, len(one), Tree(len(one), None)) for name, one in zip(NAMES, contents, strict=True)]
        for disk, content in zip(disks, contents, strict=True):
            disk.take_in(writer, Flat(content), None, lambda _: None)
        sealer = Sealer(repository, writer, disks, Replay([Patches(), Patches()], 0, following=False))
        return sealer.commit(None, Origin(vm, 1, "cd" * 16, {}), 0)


def changed(before: bytes, now: bytes) -> Ranges:
    """What a bitmap would name."""
    end = min(len(before), len(now))
    spans = [(start, min(start + BLOCK_SIZE, end)) for start in range(0, end, BLOCK_SIZE)]
    blocks = [first // BLOCK_SIZE for first, last in spans if before[first:last] != now[first:last]]
    return [(block, block + 1) for block in blocks]


def explained(guest: Guest, disk: int, found: bytes) -> bool:
    """Whether a power cut at this instant could have left the disk like that: writes under way are there or not, or in part."""
    content = np.frombuffer(found, np.uint8)
    fine = content == np.frombuffer(guest.sure[disk], np.uint8)
    for number, offset, length, fill in guest.under_way:
        if number == disk:
            fine[offset : offset + length] |= content[offset : offset + length] == fill
    return bool(fine.all())


def contents(repository: Repository, point: RecoveryPoint) -> list[bytes]:
    return [PointDisk(repository.fetcher, point.disks[name].tree).read(0, SIZE) for name in NAMES]
