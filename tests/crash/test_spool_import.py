# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a killed capture left is brought in, cut after every change of the repository, and brought in again: no moment that
was durable on the host is lost or wrong (I-1, I-9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest

from everywhen.block.patched import PatchedDevice, Patches
from everywhen.capture.spool_reader import spool_files
from everywhen.formats.point import JournalPosition
from everywhen.repository.disk import PointDisk
from everywhen.repository.journal import Journal
from everywhen.repository.repository import Repository
from everywhen.repository.verify.verify import Watching, judging
from everywhen.repository.writer import parent_link, write_point
from everywhen.services.addresses import parse_address
from everywhen.services.catalog import read_catalog
from everywhen.services.opening import open_moment
from everywhen.services.protect.spool_import import ForeignSpool, import_left
from everywhen.storage.base import Buffer, ObjectStore
from everywhen.storage.forwarding import ForwardingStore
from everywhen.storage.memory import MemoryStore
from tests.laboratory import World
from tests.spools import STREAM, VM, WRITES, spooled, states


class Cut(BaseException):
    """The end of the process: nothing may catch it."""


class CutStore(ForwardingStore):
    """Takes so many changes, and then ends the process at the next one, before it or after it took effect."""

    def __init__(self, inner: ObjectStore, changes: int, *, after: bool) -> None:
        super().__init__(inner)
        self.left = changes
        self._after = after

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        if self._last() and not self._after:
            raise Cut
        self.inner.put(name, parts, if_absent=if_absent)
        self._took()

    def delete(self, name: str) -> None:
        if self._last() and not self._after:
            raise Cut
        self.inner.delete(name)
        self._took()

    def _last(self) -> bool:
        return self.left == 0

    def _took(self) -> None:
        if self._last():
            raise Cut
        self.left -= 1


def brought_in(repository: Repository, folder: Path) -> None:
    import_left(repository, folder, read_catalog(repository).points_of(VM), lambda: None, all_known=True)


def content(repository: Repository, back: int) -> bytes:
    """The disk so many writes before the newest one."""
    address = parse_address(f"web1@latest~{back}" if back else "web1@latest")
    _, opened = open_moment(repository, read_catalog(repository), address, now_ns=1 << 61, zone=UTC, exact=False)
    tree = opened.point.disks["vda"].tree
    below = PointDisk(repository.fetcher, tree)
    return PatchedDevice(below, opened.patches.get("vda", Patches()), tree.size).read(0, tree.size)


def copied(store: MemoryStore) -> MemoryStore:
    copy = MemoryStore()
    for found in store.list():
        copy.put(found.name, [store.get(found.name)])
    return copy


@pytest.mark.parametrize("after", [False, True], ids=["before it took effect", "before its answer came"])
@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "not encrypted"])
def test_cut_after_every_change(tmp_path: Path, *, encrypted: bool, after: bool) -> None:
    world, origin, left = World(tmp_path), MemoryStore(), tmp_path / "left"
    left.mkdir()
    unlocked = world.create(origin, encrypted=encrypted)
    with world.open(origin, unlocked) as repository:
        spooled(repository, left)
    expected = states()
    cut = True
    changes = 0
    while cut:
        store, folder = copied(origin), tmp_path / f"spool{changes}"
        folder.mkdir()
        for file in spool_files(left):
            (folder / file.path.name).write_bytes(file.path.read_bytes())
        try:
            with world.open(CutStore(store, changes, after=after), unlocked) as repository:
                brought_in(repository, folder)
            cut = False
        except Cut:
            pass
        with world.open(store, unlocked) as repository:
            brought_in(repository, folder)
            assert spool_files(folder) == []
            for back in range(WRITES + 1):
                assert content(repository, back) == expected[-1 - back], f"cut after {changes} changes, ~{back}"
            with judging(repository, Watching(lambda _a, _b: None, lambda _a, _b, _c: None), read_data=True) as judgement:
                # The twin of an object whose put was cut off may be missing: nothing is lost by it.
                assert all(finding.spare and not finding.losses for finding in judgement.verdict.findings)
        changes += 1
    assert changes > 8, "there was something to cut"


def test_what_is_for_another_repository_is_not_touched(tmp_path: Path) -> None:
    world, store, folder = World(tmp_path), MemoryStore(), tmp_path / "left"
    folder.mkdir()
    with world.open(store, world.create(store, encrypted=True)) as repository:
        point = spooled(repository, folder)
    there = [file.path.read_bytes() for file in spool_files(folder)]
    other = MemoryStore()
    with (
        world.open(other, world.create(other, encrypted=True)) as repository,
        pytest.raises(ForeignSpool, match="another repository"),
    ):
        import_left(repository, folder, [point], lambda: None, all_known=True)
    assert [file.path.read_bytes() for file in spool_files(folder)] == there


@pytest.mark.parametrize("captured", [True, False], ids=["by another capture", "of images"])
def test_another_line_of_history_makes_no_point(tmp_path: Path, *, captured: bool) -> None:
    """The VM has a newer point: where a later capture made it, what was left here is shipped, and lies beside it."""
    world, store, folder = World(tmp_path), MemoryStore(), tmp_path / "left"
    folder.mkdir()
    with world.open(store, world.create(store, encrypted=False)) as repository:
        point = spooled(repository, folder)
        with write_point(repository, "another", first_copy=False) as making:
            other = JournalPosition("cd" * 16, 7, ("vda",), point.time_ns + 1) if captured else None
            epoch = point.epoch + captured
            later = replace(
                point, point=making.point, number=2, epoch=epoch, parent=parent_link(repository, point), journal=other
            )
            making.commit(later)
        alive = list[bool]()
        made = import_left(repository, folder, [point, later], lambda: alive.append(True), all_known=True)
        assert len(alive) == 3 if captured else len(alive) > 3, "for each file that is shipped, and while a point is made"
        assert (made is None) == captured
        assert spool_files(folder) == []
        assert len(Journal(repository, STREAM).numbers()) == 3
        assert len(repository.points.list()[0]) == (2 if captured else 3)
