# SPDX-License-Identifier: AGPL-3.0-or-later
"""A repository for tests: tiny sparse disks, a clock that is set by hand, and an audit that says what is wrong.

`World` is what lies outside of the repository's store: time, caches, and the truth about every point that anybody tried
to make. The truth is noted before the commit, so that after a crash each point that is listed can be compared.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from everywhen.block.device import BLOCK_SIZE, Extent
from everywhen.formats.ids import CHUNK_NAME_SIZE, ChunkName, PointId
from everywhen.formats.node import Names
from everywhen.formats.point import Disk, RecoveryPoint, Tree
from everywhen.repository import packs
from everywhen.repository.blockmap import BlockMap
from everywhen.repository.errors import Damaged
from everywhen.repository.gc import gc
from everywhen.repository.gc.roots import find_roots
from everywhen.repository.intake import Ranges
from everywhen.repository.keys import keys
from everywhen.repository.keys.keyslots import Cost
from everywhen.repository.ledger import Drop, Ledger
from everywhen.repository.presence import SECOND, Holder
from everywhen.repository.repository import Repository, Surroundings
from everywhen.repository.twins import twin_of
from everywhen.repository.writer import PointWriter, parent_link, write_point
from everywhen.storage.base import ObjectStore

HOUR = 3600 * SECOND
PASSPHRASE = "correct horse"  # noqa: S105 - of repositories that live for a second
CHEAP = Cost(8, 1, 1)

Blocks = dict[int, bytes]
"""Contents of the blocks that are not all zero, by number."""


def names_of(*names: ChunkName) -> Names:
    """(n, 32): the names, for what takes many."""
    return np.frombuffer(b"".join(names), np.uint8).reshape(-1, CHUNK_NAME_SIZE)


def block(seed: object, length: int = BLOCK_SIZE) -> bytes:
    """A block of its own for each seed: 1 KiB that does not compress, repeated with a counter in each page."""
    core = random.Random(repr(seed)).randbytes(1024)
    return b"".join(core + bytes(3064) + page.to_bytes(8, "little") for page in range(16))[:length]


def touched(content: bytes, seed: object) -> bytes:
    """The block with one page changed a little, as a guest's write does: a small delta."""
    fresh = random.Random(repr(seed)).randbytes(200)
    at = 4096 * random.Random(repr(seed)).randrange(16)
    return content[:at] + fresh + content[at + 200 :]


@dataclass(slots=True)
class SparseDisk:
    """A disk of which only some blocks are not zero. A BlockDevice."""

    size: int
    blocks: Blocks = field(default_factory=dict)

    def read(self, offset: int, length: int) -> bytes:
        first, end = offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)
        content = b"".join(self.blocks.get(number, bytes(BLOCK_SIZE)).ljust(BLOCK_SIZE, b"\0") for number in range(first, end))
        return content[offset - first * BLOCK_SIZE :][:length]

    def read_blocks(self, blocks: list[int]) -> list[bytes]:
        """Some blocks, from anywhere."""
        return [self.blocks.get(number, bytes(BLOCK_SIZE)) for number in blocks]

    def extents(self) -> Iterator[Extent]:
        at = 0
        for number in sorted(self.blocks):
            start = number * BLOCK_SIZE
            if start > at:
                yield Extent(at, start - at, zero=True)
            at = min(start + BLOCK_SIZE, self.size)
            yield Extent(start, at - start, zero=False)
        if at < self.size:
            yield Extent(at, self.size - at, zero=True)

    def close(self) -> None:
        """Nothing is held."""

    def copy(self) -> SparseDisk:
        return SparseDisk(self.size, dict(self.blocks))

    def meaning(self) -> tuple[int, Blocks]:
        """What two disks of equal content have in common: zeroes do not count, ends are padded."""
        padded = {number: content.ljust(BLOCK_SIZE, b"\0") for number, content in self.blocks.items()}
        return self.size, {number: content for number, content in padded.items() if any(content)}


@dataclass(frozen=True, slots=True)
class Truth:
    """What a point must give back."""

    disks: dict[str, tuple[int, Blocks]]
    files: dict[str, bytes]


class Clock:
    """Nanoseconds since 1970; moves only when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


class World:
    """See the module."""

    def __init__(self, folder: Path, *, seed: int = 0) -> None:
        self.folder = folder
        self.clock = Clock()
        self.random = random.Random(seed)
        self.truths: dict[PointId, Truth] = {}
        self._caches = 0

    def mint(self) -> keys.Mint:
        return keys.Mint(self.random.randbytes, self.clock(), CHEAP)

    def create(self, store: ObjectStore, *, encrypted: bool) -> keys.Unlocked:
        """A new repository in the store."""
        return keys.create(store, self.mint(), passphrase=PASSPHRASE if encrypted else None).unlocked

    def open(
        self, store: ObjectStore, unlocked: keys.Unlocked | None = None, *, cache: str | None = None, host: str = "h1"
    ) -> Repository:
        """Open the repository, with a cache of its own unless one is named. Hosts are not this one: no pid is looked at."""
        if unlocked is None:
            superblock = keys.read_superblock(store)
            unlocked = keys.unlock(store, superblock, PASSPHRASE if superblock.encrypted else None)
        self._caches += 1
        place = self.folder / (cache or f"cache-{self._caches}")
        place.mkdir(exist_ok=True, parents=True)
        holder = Holder(f"{host}.test", "boot", 1, "tester")
        return Repository(store, unlocked, Surroundings(self.clock, self.random.randbytes, holder, place))

    def back_up(
        self,
        repository: Repository,
        disks: Mapping[str, SparseDisk],
        files: Mapping[str, bytes] | None = None,
        *,
        parent: RecoveryPoint | None = None,
        changed: Mapping[str, Ranges] | None = None,
        vm: str = "0" * 32,
    ) -> RecoveryPoint:
        """What `services.backup` does, without images and locks."""
        files = files or {}
        truth = Truth({name: disk.copy().meaning() for name, disk in disks.items()}, dict(files))
        with write_point(repository, "backup", first_copy=parent is None) as writer:
            self.truths[writer.point] = truth
            point = self._point(repository, writer, disks, files, parent, changed or {}, vm)
            writer.commit(point)
        return point

    def _point(
        self,
        repository: Repository,
        writer: PointWriter,
        disks: Mapping[str, SparseDisk],
        files: Mapping[str, bytes],
        parent: RecoveryPoint | None,
        changed: Mapping[str, Ranges],
        vm: str,
    ) -> RecoveryPoint:
        taken: dict[str, Disk] = {}
        for name, disk in disks.items():
            base = parent.disks[name].tree if parent and name in parent.disks else None
            intake = writer.take(disk, base, changed.get(name), lambda _: None)
            taken[name] = Disk(intake.tree, "raw", intake.bytes_read, intake.bytes_changed, intake.bytes_stored)
        return RecoveryPoint(
            point=writer.point,
            vm=vm,
            time_ns=self.clock(),
            number=parent.number + 1 if parent else 1,
            epoch=1,
            parent=parent_link(repository, parent),
            asked="crash",
            reached="crash",
            why="",
            disks=taken,
            files={name: writer.take_file(content) for name, content in files.items()},
        )

    def drop(self, repository: Repository, *points: RecoveryPoint, delay_s: float = 0) -> Drop:
        """Drop points, to take effect after `delay_s`."""
        now = self.clock()
        drop = Drop(
            self.random.randbytes(6).hex(), [p.point for p in points], now, now + int(delay_s * SECOND), "test", "tester"
        )
        Ledger(repository.documents).put_drop(drop)
        return drop

    def collect(self, repository: Repository, *, wait: bool = True, dry_run: bool = False) -> gc.Collected:
        """A gc run whose waiting moves the clock."""
        return gc.collect(repository, wait=wait, dry_run=dry_run, note=lambda *_: None, pause=self.clock.advance)

    def audit(self, repository: Repository, expected: set[PointId], *, twins: bool = False) -> None:
        """Raises AssertionError unless all `expected` points are listed, and every listed one is whole and as it was.

        `twins`: also that nothing that has a twin lacks it (true when nothing was interrupted).
        """
        repository.refresh()
        assert not repository.unreadable_packs
        points, _, unreadable = repository.points.list()
        assert not unreadable
        listed = {point.point: point for point in points}
        assert expected <= listed.keys(), f"vanished: {expected - listed.keys()}"
        for point in points:
            assert truth_of(repository, point) == self.truths[point.point], f"{point.point} is not as it was"
        marks = gc.mark(repository, find_roots(repository), set(), lambda *_: None)
        assert (marks.missing.count, marks.broken.count) == (0, 0)
        if twins:
            names = {found.name for found in repository.store.list()}
            for name in names:
                if (
                    name.startswith(("points/", "vms/", "drops/", "undone/", "holds/", "condemned/", "keys/"))
                    or name == "everywhen"
                ):
                    assert twin_of(name) in names, f"{name} has no twin"
                if name.startswith("twins/"):
                    assert name.removeprefix("twins/") in names, f"{name} has no first"


def truth_of(repository: Repository, point: RecoveryPoint) -> Truth:
    """Everything in a point, read back. Raises Damaged."""
    disks = {name: content_of(repository, disk.tree) for name, disk in point.disks.items()}
    files = {}
    for name, tree in point.files.items():
        size, blocks = content_of(repository, tree)
        files[name] = b"".join(blocks.get(number, bytes(BLOCK_SIZE)) for number in range(-(-size // BLOCK_SIZE)))[:size]
    return Truth(disks, files)


def content_of(repository: Repository, tree: Tree) -> tuple[int, Blocks]:
    """Size and blocks of a tree. Raises Damaged."""
    blocks: Blocks = {}
    for index, names in BlockMap(repository.fetcher.read_many, tree).leaves():
        used = np.flatnonzero(names.any(axis=1))
        contents = repository.fetcher.read_many(names[used])
        codec = repository.codec
        for slot, content in zip(used.tolist(), contents, strict=True):
            if codec.name(content) != names[slot].tobytes():
                raise Damaged(f"block {index * 256 + slot} is not what its name says")
            blocks[index * 256 + slot] = content
    return tree.size, blocks


def shrink_packs(monkeypatch: pytest.MonkeyPatch, size: int = 24 << 10) -> None:
    """Let packs be so small that small disks need several, and none of them counts as small."""
    monkeypatch.setattr(packs, "PACK_SIZE", size)
    monkeypatch.setattr(gc, "_SMALL_PACK", size // 8)
