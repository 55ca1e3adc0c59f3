# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is kept of a copy is believed only with the bitmap that was there before it was read."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from everywhen.capture.nodes import DiskNode
from everywhen.capture.qmp import CommandFailed, Monitor, MonitorError
from everywhen.formats.fields import Json
from everywhen.services.protect import protection
from everywhen.services.protect.capture_order import CaptureOrder
from everywhen.services.protect.unfinished_copy import Keeping, UnfinishedCopies, is_kept, together

KEPT = {"root": "x"}


class Qemu:
    """One node with bitmaps. A Monitor, as far as it is asked."""

    def __init__(self) -> None:
        self.bitmaps: dict[str, bool] = {}
        """Whether each records."""
        self.refuses = False

    def execute(self, name: str, arguments: Json) -> Any:
        if name == "transaction":
            for action in arguments["actions"]:
                if self.refuses:
                    raise CommandFailed(name, "GenericError", "no")
                if action["type"] == "block-dirty-bitmap-add":
                    self.bitmaps[action["data"]["name"]] = True
                else:
                    del self.bitmaps[action["data"]["name"]]
            return {}
        dirty = [{"name": one, "recording": on, "granularity": 65536, "count": 0} for one, on in self.bitmaps.items()]
        return [{"node-name": "node0", "drv": "raw", "image": {"virtual-size": 1}, "dirty-bitmaps": dirty}]


def node(size: int = 1 << 20) -> dict[str, DiskNode]:
    return {"vda": DiskNode("vd0", "node0", size, iothread=False)}


def begun(folder: Path, qemu: Qemu, disks: dict[str, DiskNode]) -> UnfinishedCopies:
    copies = UnfinishedCopies(folder, os.urandom)
    copies.begin(cast("Monitor", qemu), disks)
    return copies


@pytest.fixture
def qemu(tmp_path: Path) -> Qemu:
    """Of whose disk something was kept."""
    made = Qemu()
    begun(tmp_path, made, node()).keep("vda", [(3, 16)], KEPT)
    return made


def test_a_copy_goes_on_with_its_bitmap(tmp_path: Path, qemu: Qemu) -> None:
    copies = begun(tmp_path, qemu, node())
    one = copies.of("vda")
    assert one is not None
    assert (one.left, copies.kept, len(qemu.bitmaps)) == ([(3, 16)], {"vda": KEPT}, 1)
    assert set(qemu.bitmaps) == {f"everywhen-{one.since}-vda"}
    copies.forget()
    assert list(tmp_path.iterdir()) == []


def test_without_its_bitmap_nothing_is_believed(tmp_path: Path, qemu: Qemu) -> None:
    (name,) = qemu.bitmaps
    for bitmaps in ({}, {name: False}, {f"{name}b": True}):
        qemu.bitmaps = bitmaps
        copies = begun(tmp_path, qemu, node())
        assert copies.kept == {}
        copies.keep("vda", [(3, 16)], KEPT)
        assert name not in [one for one, on in qemu.bitmaps.items() if on], "a new bitmap has a new name"


def test_of_another_size(tmp_path: Path, qemu: Qemu) -> None:
    before = set(qemu.bitmaps)
    assert begun(tmp_path, qemu, node(2 << 20)).kept == {}
    assert (len(qemu.bitmaps), before & set(qemu.bitmaps)) == (1, set())


def test_a_bitmap_is_begun_only_when_nothing_is_kept_in_its_name(tmp_path: Path, qemu: Qemu) -> None:
    qemu.bitmaps, qemu.refuses = {}, True
    with pytest.raises(CommandFailed):
        begun(tmp_path, qemu, node())
    assert UnfinishedCopies(tmp_path, os.urandom).kept == {}


def test_nothing_to_be_read_whole(tmp_path: Path, qemu: Qemu) -> None:
    begun(tmp_path, qemu, {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_not_written_by_us(tmp_path: Path) -> None:
    one = '{"since":"p-0123456789ab","size":1,"kept":{},"left":%s}'
    broken = [one % left for left in ("5", "[5]", "[[1]]", "[[1,-2]]", "[[true,2]]")]
    for content in ("", "[]", '{"disks":{"vda":{}}}', *(f'{{"disks":{{"vda":{disk}}}}}' for disk in broken)):
        (tmp_path / "copy.json").write_text(content)
        assert UnfinishedCopies(tmp_path, os.urandom).kept == {}
    (tmp_path / "copy.json").write_text(f'{{"disks":{{"vda":{one % "[[4,5],[1,3],[2,4]]"}}}}}')
    found = UnfinishedCopies(tmp_path, os.urandom).of("vda")
    assert found is not None
    assert found.left == [(1, 5)]


def test_together() -> None:
    assert together([(5, 7), (1, 2)], [(2, 4), (6, 9)], []) == [(1, 4), (5, 9)]


def test_now_and_then() -> None:
    now, put = [0.0], list[list[tuple[int, int]]]()
    keeping = Keeping(put.append, lambda: now[0])
    assert not keeping.is_due
    now[0] = 5.0
    assert keeping.is_due
    keeping.keep([(1, 2)])
    assert (keeping.is_due, put) == (False, [[(1, 2)]])


def test_what_is_left_of_one_that_ended(tmp_path: Path, qemu: Qemu) -> None:
    copies = UnfinishedCopies(tmp_path, os.urandom)
    disks = node() | {"vdb": DiskNode("vd1", "node0", 1 << 20, iothread=False)}
    copies.begin(cast("Monitor", qemu), disks)
    assert len(qemu.bitmaps) == 2
    copies.leave(cast("Monitor", qemu), disks)
    assert ([name[-3:] for name in qemu.bitmaps], is_kept(tmp_path)) == (["vda"], True), "nothing of the other one was kept"
    qemu.bitmaps = {}
    copies = begun(tmp_path, qemu, node())
    copies.leave(cast("Monitor", qemu), node())
    assert (qemu.bitmaps, is_kept(tmp_path)) == ({}, False)


def test_what_is_unprotected_has_no_copy_to_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "copy.json").write_text('{"disks": {}}')
    order = cast(CaptureOrder, SimpleNamespace(hypervisor=None, sink=None, folder=tmp_path))

    def fails(_place: object, _sink: object) -> int:
        raise MonitorError("no answer")

    monkeypatch.setattr(protection, "withdraw", fails)
    assert "error" in protection._withdrawn(order)
    assert is_kept(tmp_path), "its bitmaps may still be there"
    monkeypatch.setattr(protection, "withdraw", lambda _place, _sink: 2)
    assert protection._withdrawn(order) == {"taken_off": 2}
    assert not is_kept(tmp_path)
