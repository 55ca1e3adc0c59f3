# SPDX-License-Identifier: AGPL-3.0-or-later
"""A repository against a model: random backups, restores, drops, holds, gc runs, verifications beside dictionaries (I-4, I-7).

Every point that the model still has must be as it was, whatever was done since; what gc says it freed must be so; and
equal disks have equal roots, however they came about (design 4.9.5).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.ids import PointId
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.errors import NoSuchPoint
from everywhen.repository.ledger import Drop, Hold, Ledger, Undone
from everywhen.repository.reading import copy_disk_in_order, opened_points
from everywhen.repository.repository import Repository
from everywhen.repository.verify.verify import Watching, judging
from everywhen.storage.memory import MemoryStore
from tests.interleaving import no_threads
from tests.laboratory import SparseDisk, World, block, shrink_packs, touched, truth_of
from tests.long_forms import SOAK

VMS = ("0" * 32, "1" * 32)
SLACK_S = 601
WATCHING = Watching(lambda *_: None, lambda *_: None)

numbers = st.one_of(st.integers(0, 12), st.integers(250, 262), st.integers(65530, 65540))
contents = st.integers(0, 5)
sizes = st.sampled_from([1, 1000, BLOCK_SIZE, 5 * BLOCK_SIZE + 512, 256 * BLOCK_SIZE, 257 * BLOCK_SIZE, 65537 * BLOCK_SIZE - 7])

changes = st.lists(
    st.one_of(
        st.tuples(st.just("write"), numbers, contents, st.booleans()),
        st.tuples(st.just("write"), numbers, contents, st.booleans()),
        st.tuples(st.just("zero"), numbers, st.booleans()),
        st.tuples(st.just("resize"), sizes),
        st.tuples(st.just("second_disk"), contents),
    ),
    max_size=8,
)


class Whole:
    """A sink that keeps what it is given, and wants it in order."""

    def __init__(self) -> None:
        self.at = 0
        self.data: dict[int, bytes] = {}

    def write(self, offset: int, data: bytes) -> None:
        assert offset == self.at
        self.at += len(data)
        self.data |= {(offset + at) // BLOCK_SIZE: data[at : at + BLOCK_SIZE] for at in range(0, len(data), BLOCK_SIZE)}

    def zero(self, offset: int, length: int) -> None:
        assert offset == self.at
        self.at += length


class RepositoryModel(RuleBasedStateMachine):
    """`live`: what must be there, by VM, oldest first. `dropped`: what may still come back."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        shrink_packs(self.patch, 12 << 10)
        no_threads(self.patch)
        self.folder = Path(tempfile.mkdtemp())
        self.world = World(self.folder)
        self.store = MemoryStore()
        self.disks: dict[str, dict[str, SparseDisk]] = {vm: {"vda": SparseDisk(257 * BLOCK_SIZE)} for vm in VMS}
        self.changed: dict[str, set[int]] = {vm: set() for vm in VMS}
        """Blocks of vda that differ from the VM's newest point, and perhaps more."""
        self.resized: set[str] = set()
        self.live: dict[str, list[RecoveryPoint]] = {vm: [] for vm in VMS}
        self.drops: list[Drop] = []
        self.gone: set[PointId] = set()
        self.holds: dict[PointId, Hold] = {}

    @initialize(encrypted=st.booleans(), alike=st.booleans())
    def begin(self, encrypted: bool, alike: bool) -> None:
        for vm in VMS:
            seed = 0 if alike else vm
            self.disks[vm]["vda"].blocks = {number: block((seed, number)) for number in [*range(0, 24, 2), 255, 256]}
        self.unlocked = self.world.create(self.store, encrypted=encrypted)
        self.repository = self.opened("cache")
        for vm in VMS:
            self.back_up(vm, [], scan=True)

    def opened(self, cache: str | None) -> Repository:
        return self.world.open(self.store, self.unlocked, cache=cache)

    def teardown(self) -> None:
        if hasattr(self, "repository"):
            self.repository.close()
            with self.opened(None) as repository:
                self.world.audit(repository, {point.point for there in self.live.values() for point in there}, twins=True)
        shutil.rmtree(self.folder)
        self.patch.undo()

    # What guests do

    def write(self, vm: str, number: int, content: int, small: bool) -> None:
        disk = self.disks[vm]["vda"]
        number %= -(-disk.size // BLOCK_SIZE)
        length = min(BLOCK_SIZE, disk.size - number * BLOCK_SIZE)
        before = disk.blocks.get(number, b"")
        fresh = touched(before, content) if small and len(before) == BLOCK_SIZE else block(content, length)
        disk.blocks[number] = fresh[:length]
        self.changed[vm].add(number)

    def zero(self, vm: str, number: int, known: bool) -> None:
        disk = self.disks[vm]["vda"]
        number %= -(-disk.size // BLOCK_SIZE)
        if known:
            disk.blocks.pop(number, None)
        else:
            disk.blocks[number] = bytes(min(BLOCK_SIZE, disk.size - number * BLOCK_SIZE))
        self.changed[vm].add(number)

    def resize(self, vm: str, size: int) -> None:
        """What a disk has beyond its end is gone; what it gets is zero. The change is not in the list of changes.

        Only when it is the second one: then the size alone does not tell what became of the end.
        """
        disk = self.disks[vm]["vda"]
        end = -(-size // BLOCK_SIZE)
        if vm in self.resized:
            self.changed[vm] |= set(range(65538))
        self.resized.add(vm)
        for number in [number for number in disk.blocks if number >= end]:
            del disk.blocks[number]
        last = end - 1
        if last in disk.blocks:
            length = min(BLOCK_SIZE, size - last * BLOCK_SIZE)
            disk.blocks[last] = disk.blocks[last][:length].ljust(length, b"\0")
        before = -(-disk.size // BLOCK_SIZE) - 1
        if before in disk.blocks and before < last:
            disk.blocks[before] = disk.blocks[before].ljust(BLOCK_SIZE, b"\0")
        disk.size = size

    def second_disk(self, vm: str, content: int) -> None:
        if self.disks[vm].pop("vdb", None) is None:
            self.disks[vm]["vdb"] = SparseDisk(2 * BLOCK_SIZE, {1: block(content)})

    # What people do

    @rule(vm=st.sampled_from(VMS), changes=changes)
    def back_up_by_scan(self, vm: str, changes: list[tuple[Any, ...]]) -> None:
        self.back_up(vm, changes, scan=True)

    @rule(vm=st.sampled_from(VMS), changes=changes)
    def back_up_what_changed(self, vm: str, changes: list[tuple[Any, ...]]) -> None:
        self.back_up(vm, changes, scan=False)

    def back_up(self, vm: str, changes: list[tuple[Any, ...]], *, scan: bool) -> None:
        for change, *arguments in changes:
            getattr(self, change)(vm, *arguments)
        self.world.clock.advance(600)
        parent = self.live[vm][-1] if self.live[vm] else None
        changed = None if scan or parent is None else {"vda": [(number, number + 1) for number in sorted(self.changed[vm])]}
        files = {"vm.xml": repr(sorted(self.disks[vm])).encode()}
        point = self.world.back_up(self.repository, self.disks[vm], files, parent=parent, changed=changed, vm=vm)
        self.live[vm].append(point)
        self.changed[vm] = set()
        self.resized.discard(vm)
        for name, disk in point.disks.items():
            truth = self.world.truths[point.point].disks[name]
            for other in (other for there in self.live.values() for other in there if name in other.disks):
                alike = self.world.truths[other.point].disks[name] == truth
                assert alike == (other.disks[name].tree == disk.tree)

    @precondition(lambda self: any(self.live.values()))
    @rule(picks=st.data(), delay=st.sampled_from([0, 3600, 72 * 3600]))
    def drop(self, picks: st.DataObject, delay: int) -> None:
        points = [point for points in self.live.values() for point in points]
        chosen = picks.draw(st.lists(st.sampled_from(points), min_size=1, max_size=3, unique_by=lambda point: point.point))
        self.drops.append(self.world.drop(self.repository, *chosen, delay_s=delay))
        self.hide({point.point for point in chosen})

    @rule()
    def drop_old_ones_and_collect(self) -> None:
        """What prune does: all but the newest of each VM."""
        old = [point for there in self.live.values() for point in there[:-1]]
        if old:
            self.drops.append(self.world.drop(self.repository, *old))
            self.hide({point.point for point in old})
        self.collect(False, SLACK_S)

    def hide(self, points: set[PointId]) -> None:
        for vm, there in self.live.items():
            if there and there[-1].point in points:
                # The next backup's parent is an older point: everything may differ from it.
                self.changed[vm] = set(range(65538))
            self.live[vm] = [point for point in there if point.point not in points]

    @precondition(lambda self: self.drops)
    @rule(picks=st.data())
    def undo(self, picks: st.DataObject) -> None:
        drop = picks.draw(st.sampled_from(self.drops))
        if drop.effective_ns < self.world.clock():
            return
        self.drops.remove(drop)
        undone = Undone(self.world.random.randbytes(6).hex(), drop.drop, drop.points, self.world.clock(), "tester")
        Ledger(self.repository.documents).put_undone(undone)
        still = {point for other in self.drops for point in other.points}
        points, _, _ = self.repository.points.list()
        for point in points:
            if point.point in drop.points and point.point not in still:
                self.live[point.vm].append(point)
                self.live[point.vm].sort(key=lambda one: (one.time_ns, one.number, one.point))
                self.changed[point.vm] = set(range(65538))
        assert {point for point in drop.points if point not in still} <= {point.point for point in points}

    @precondition(lambda self: any(self.live.values()))
    @rule(picks=st.data(), seconds=st.sampled_from([0, 3600]))
    def hold(self, picks: st.DataObject, seconds: int) -> None:
        point = picks.draw(st.sampled_from([point for points in self.live.values() for point in points]))
        if point.point not in self.holds:
            until = self.world.clock() + seconds * 10**9 if seconds else 0
            hold = Hold(self.world.random.randbytes(6).hex(), point.point, "law", until, "tester")
            Ledger(self.repository.documents).put_hold(hold)
            self.holds[point.point] = hold

    @precondition(lambda self: self.holds)
    @rule(picks=st.data())
    def release(self, picks: st.DataObject) -> None:
        point = picks.draw(st.sampled_from(sorted(self.holds)))
        Ledger(self.repository.documents).release(self.holds.pop(point))

    @rule(dry_run=st.booleans(), seconds=st.sampled_from([0, SLACK_S, 4000, 80 * 3600]))
    def collect_later(self, dry_run: bool, seconds: int) -> None:
        self.collect(dry_run, seconds)

    def collect(self, dry_run: bool, seconds: int) -> None:
        self.world.clock.advance(seconds)
        now = self.world.clock()
        kept = {point for point, hold in self.holds.items() if hold.active(now)}
        doomed = {PointId(p) for d in self.drops if d.effective_ns + 600 * 10**9 <= now for p in d.points} - kept - self.gone
        before = self.store.snapshot()
        collected = self.world.collect(self.repository, dry_run=dry_run)
        assert collected.points_deleted == len(doomed)
        assert not collected.missing
        assert not collected.damaged
        after = self.store.snapshot()
        if dry_run:
            assert before == after
            return
        self.gone |= doomed
        assert collected.packs_deleted == len({name for name in before.keys() - after.keys() if name.startswith("packs/")})
        freed = sum(len(before[name].content) for name in before.keys() - after.keys() if "packs/" in name)
        assert collected.bytes_freed == freed
        assert not any(name.startswith(("condemned/", "sessions/", "lock/")) for name in after)

    @rule(keep_cache=st.booleans())
    def reopen(self, keep_cache: bool) -> None:
        self.repository.close()
        self.repository = self.opened("cache" if keep_cache else None)
        self.repository.refresh()

    @precondition(lambda self: any(self.live.values()))
    @rule(picks=st.data())
    def restore(self, picks: st.DataObject) -> None:
        point = picks.draw(st.sampled_from([point for points in self.live.values() for point in points]))
        with opened_points(self.repository, "restore", [point]) as leased:
            assert leased
            for name, disk in point.disks.items():
                size, expected = self.world.truths[point.point].disks[name]
                sink = Whole()
                copy_disk_in_order(self.repository.fetcher, disk.tree, sink, lambda _: None)
                assert sink.at == size
                assert {number: data.ljust(BLOCK_SIZE, b"\0") for number, data in sink.data.items()} == expected
                used = self.repository.used_ranges.of(disk.tree)
                assert used.units(BLOCK_SIZE).within(0, size).tolist() == sorted(expected)
                assert used.end <= size

    @rule(read_data=st.booleans())
    def verify(self, read_data: bool) -> None:
        """Nothing that was done is damage, and verify changes nothing."""
        before = self.store.snapshot()
        with judging(self.repository, WATCHING, read_data=read_data) as judgement:
            verdict = judgement.verdict
        assert not verdict.findings
        assert not verdict.notes
        dropped = {point for drop in self.drops for point in drop.points} - self.gone
        assert verdict.points == len(dropped) + sum(map(len, self.live.values()))
        assert before == self.store.snapshot()

    @precondition(lambda self: self.gone)
    @rule(picks=st.data())
    def open_what_is_gone(self, picks: st.DataObject) -> None:
        with pytest.raises(NoSuchPoint):
            self.repository.points.get(picks.draw(st.sampled_from(sorted(self.gone))))

    @invariant()
    def everything_is_as_it_was(self) -> None:
        if not hasattr(self, "repository"):
            return
        points, stones, unreadable = self.repository.points.list()
        assert not stones
        assert not unreadable
        promised = {point.point for points in self.live.values() for point in points}
        promised |= {PointId(point) for drop in self.drops for point in drop.points} - self.gone
        assert {point.point for point in points} == promised
        for point in points:
            assert truth_of(self.repository, point) == self.world.truths[point.point]


TestRepositoryModel = RepositoryModel.TestCase
TestRepositoryModel.settings = settings(
    max_examples=500 if SOAK else 16,
    stateful_step_count=60 if SOAK else 25,
    suppress_health_check=list(HealthCheck),
)
