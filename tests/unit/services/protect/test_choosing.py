# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which disks a capture takes, what it leaves out and says so, and when it refuses the VM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from everywhen.capture.answers import Drive, Job
from everywhen.capture.nodes import DiskNode, NoDisks
from everywhen.capture.survey import DiskSeen, Survey
from everywhen.services.protect.choosing import NOT_NAMED, NOT_THERE, CannotCapture, choose


def seen(device: str, node: str, *below: str) -> DiskSeen:
    disk = DiskNode(device, node, 1 << 20, False, f"/machine/peripheral/{device}")
    facts = ("virtio-blk-pci", ("raw", "file"), f"/images/{device}", None, (), ())
    return DiskSeen(disk, *facts, shared=False, passed_through=False, nodes=(node, *below))


STATE = Path("/nonexistent")
FIRST, SECOND, ODD = seen("vd0", "node0", "base"), seen("vd1", "node1", "base"), seen("device[3]", "node3", "old")
VM = Survey((7, 2, 22), (), (FIRST, SECOND, ODD), (), {}, (), ours=False)
SHARED = replace(VM, disks=(FIRST, replace(SECOND, shared=True), ODD))


def refusal(found: Survey, named: dict[str, str], *known: str) -> CannotCapture:
    with pytest.raises(CannotCapture) as caught:
        choose(found, named, known, STATE)
    return caught.value


def test_all_that_can_be_written_to() -> None:
    choice = choose(VM, {}, (), STATE)
    assert choice.disks == {"vd0": FIRST.disk, "vd1": SECOND.disk, "device-3": ODD.disk}
    assert choice.left_out == {}


def test_those_that_are_named() -> None:
    choice = choose(VM, {"vd1": "", "root": "node0", "odd": "old"}, (), STATE)
    assert choice.disks == {"vd1": SECOND.disk, "root": FIRST.disk, "odd": ODD.disk}
    assert choice.left_out == {}
    choice = choose(VM, {"device-3": ""}, (), STATE)
    assert choice.disks == {"device-3": ODD.disk}
    assert choice.left_out == {"vd0": NOT_NAMED, "vd1": NOT_NAMED}


def test_one_that_cannot_be_captured_refuses_the_vm() -> None:
    error = refusal(SHARED, {})
    assert str(error).startswith("vd1: it may be written to by others")
    assert error.do[-1] == "Or protect only what can be: --disk vd0 --disk device-3"
    assert choose(SHARED, {"vd0": ""}, (), STATE).left_out == {"vd1": NOT_NAMED, "device-3": NOT_NAMED}
    error = refusal(SHARED, {"vd0": "", "vd1": ""})
    assert error.do[-1] == "Or protect only what can be: --disk vd0"


def test_all_that_cannot_are_counted() -> None:
    busy = replace(FIRST, jobs=(Job("theirs", "backup", "running"),))
    error = refusal(replace(SHARED, disks=(busy, *SHARED.disks[1:])), {})
    assert str(error) == 'vd0: another tool\'s block job "theirs" (backup) is on it (1 more cannot: everywhen doctor)'


def test_a_disk_that_qemu_does_not_see() -> None:
    found = replace(VM, devices={"user0": "vhost-user-blk-pci", "nic": "virtio-net-pci", "gpu": "vfio-pci"})
    assert str(refusal(found, {})).startswith("user0: a vhost-user disk")
    left_out = choose(found, {"vd0": "", "vd1": "", "device-3": ""}, (), STATE).left_out
    assert set(left_out) == {"user0", "gpu"}
    assert "vhost-user" in left_out["user0"]
    only = replace(VM, disks=(), devices={"user0": "vhost-user-blk-pci"})
    assert "vhost-user" in str(refusal(only, {}))


def test_flash_and_media_are_no_disks() -> None:
    flash = Drive("pflash1", "/machine/system.flash1", False, "#block1", read_only=False)
    medium = Drive("cd", "/machine/peripheral/cd", True, "iso", read_only=True)
    choice = choose(replace(VM, flash=(flash,), left_out=(medium,)), {}, (), STATE)
    assert list(choice.left_out) == ["system.flash1"]
    assert "UEFI" in choice.left_out["system.flash1"]


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ({"vd7": ""}, "it has no disk vd7"),
        ({"root": "nowhere"}, "no disk stands on a node nowhere"),
        ({"root": "base"}, "2 disks stand on the node base"),
    ],
)
def test_what_is_not_there(named: dict[str, str], why: str) -> None:
    error = refusal(VM, named)
    assert str(error) == why
    assert error.do


def test_one_that_was_there_before_may_be_away() -> None:
    choice = choose(VM, {"vd0": "", "vd7": ""}, ["vd7"], STATE)
    assert choice.disks == {"vd0": FIRST.disk}
    assert choice.left_out == {"vd7": NOT_THERE, "vd1": NOT_NAMED, "device-3": NOT_NAMED}
    with pytest.raises(NoDisks):
        choose(VM, {"vd7": ""}, ["vd7"], STATE)


def test_nothing_and_too_little() -> None:
    with pytest.raises(NoDisks):
        choose(replace(VM, disks=()), {}, (), STATE)
    assert "blockdev-mirror" in str(refusal(replace(VM, missing=("blockdev-mirror",)), {}))


def test_what_comes_and_goes() -> None:
    every, some = choose(VM, {}, (), STATE), choose(VM, {"vd0": ""}, (), STATE)
    nodes = [one.disk for one in VM.disks]
    assert not every.changed(nodes, named=False)
    assert every.changed(nodes[:2], named=False)
    assert not some.changed(nodes[:1], named=True)
    assert not some.changed(nodes, named=True)
    assert some.changed([replace(nodes[0], node="overlay"), *nodes[1:]], named=True)
    assert some.changed(nodes[1:], named=True)
