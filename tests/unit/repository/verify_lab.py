# SPDX-License-Identifier: AGPL-3.0-or-later
"""A repository of known content for tests of verify and repair, and what verify must say about parts of it."""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.repository import Repository
from everywhen.repository.verify.findings import Loss, Verdict
from everywhen.repository.verify.repair import Repaired, repair
from everywhen.repository.verify.repair_sources import Source
from everywhen.repository.verify.verify import Watching, judging
from everywhen.storage.posix import PosixStore
from tests import damage_recipes as broken
from tests.laboratory import SparseDisk, World, block, touched, truth_of

VM, OTHER = "a" * 32, "b" * 32
SIZE = 600 * BLOCK_SIZE - 1000
WATCHING = Watching(lambda *_: None, lambda *_: None)


class BrokenLab:
    """Three points of one VM (its disk's block 3 changes in the second, block 300 in the third), one of another VM."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.store = PosixStore(str(folder / "repository"))
        self.unlocked = self.world.create(self.store, encrypted=True)
        disk = SparseDisk(SIZE, {number: block(number) for number in (0, 3, 4, 5, 300, 599)})
        disk.blocks[599] = block(599, BLOCK_SIZE - 1000)
        other = SparseDisk(40 * BLOCK_SIZE, {number: block(("other", number)) for number in range(30)})
        with self.open() as repository:
            self.points = [self._back_up(repository, disk, None)]
            disk.blocks[3] = touched(disk.blocks[3], "second")
            self.points.append(self._back_up(repository, disk, self.points[-1]))
            disk.blocks[300] = random.Random(1).randbytes(BLOCK_SIZE)  # no delta of what was there
            self.points.append(self._back_up(repository, disk, self.points[-1]))
            self.other = self.world.back_up(repository, {"vda": other}, vm=OTHER)
        self.disk = disk

    def _back_up(self, repository: Repository, disk: SparseDisk, parent: RecoveryPoint | None) -> RecoveryPoint:
        self.world.clock.advance(3600)
        return self.world.back_up(repository, {"vda": disk}, {"vm.xml": b"<domain/>" * 50}, parent=parent, vm=VM)

    def open(self) -> Repository:
        return self.world.open(self.store, self.unlocked)

    def verify(self, *, read_data: bool = False, repository: Repository | None = None) -> Verdict:
        with repository or self.open() as opened, judging(opened, WATCHING, read_data=read_data) as judgement:
            return judgement.verdict

    def repair(self, *sources: Source, read_data: bool = False, give_up: Collection[str] = ()) -> tuple[Verdict, Repaired]:
        with self.open() as opened, judging(opened, WATCHING, read_data=read_data) as judgement:
            repaired = repair(opened, judgement, list(sources), lambda *_: None, give_up)
            return judgement.verdict, repaired

    def contents(self) -> dict[str, bytes]:
        """Every object below the names that twins and packs have."""
        prefixes = ("packs/", "twins/", "points/", "keys/", "vms/")
        found = {line.name for prefix in prefixes for line in self.store.list(prefix)} | {"everywhen"}
        return {name: self.store.get(name) for name in sorted(found)}

    def read_all(self) -> None:
        """Every moment can be read, and is what it was."""
        with self.open() as opened:
            opened.refresh()
            for point in (*self.points, self.other):
                assert truth_of(opened, point) == self.world.truths[point.point]

    def audit(self) -> None:
        """`read_all`, and nothing that was broken is left."""
        self.read_all()
        with self.open() as opened:
            self.world.audit(opened, {point.point for point in (*self.points, self.other)}, twins=True)

    def place(self, point: int, number: int) -> broken.Place:
        with self.open() as repository:
            return broken.place_of_block(repository, self.points[point].disks["vda"].tree, number)

    def node(self, point: int, level: int, index: int) -> broken.Place:
        with self.open() as repository:
            return broken.place_of_node(repository, self.points[point].disks["vda"].tree, level, index)

    def loss(self, blocks: list[tuple[int, int]], *points: int, disk: str = "vda") -> Loss:
        ranges = tuple((first * BLOCK_SIZE, min(end * BLOCK_SIZE, SIZE)) for first, end in blocks)
        at = tuple((self.points[number].point, self.points[number].time_ns) for number in points)
        return Loss(VM, "disk", disk, ranges, at)
