# SPDX-License-Identifier: AGPL-3.0-or-later
"""Snapshots and reverts by the monitor of a QEMU under capture: a revert that a bitmap missed would make the next point wrong.

QEMU changes the disk below everything that records writes then. That it refuses to where a bitmap of ours is, each of these
tests sees; and whatever it answers, the next point must be what the disk holds.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everywhen.capture.qmp import CommandFailed
from tests.bridged import MIB, STORED, captured, figures, filled, same
from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.long_forms import in_soak
from tests.program import Program

REFUSED = "Device has active dirty bitmaps"
MEANWHILE = pytest.mark.parametrize(
    "meanwhile", ["paused", pytest.param("following", marks=in_soak), pytest.param("ended", marks=in_soak)]
)


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    """With an internal snapshot `before` of both disks, and writes since."""
    with filled(tmp_path / "vm", "qcow2") as made:
        assert not hmp(made, "savevm before")
        made.write(0, 6 * MIB, 65536, 3)
        yield made


def hmp(hypervisor: Hypervisor, line: str) -> str:
    """What the human monitor says; nothing when it did it."""
    return str(hypervisor.monitor.execute("human-monitor-command", {"command-line": line}))


def job(hypervisor: Hypervisor, command: str, tag: str, nodes: list[str]) -> str:
    """Why a job of QEMU's with a snapshot of these nodes failed; nothing when it did not."""
    arguments: dict[str, Any] = {"job-id": "snapshot", "tag": tag, "devices": nodes}
    if command != "snapshot-delete":
        arguments["vmstate"] = nodes[0]
    hypervisor.monitor.execute(command, arguments)

    def found() -> dict[str, Any]:
        return next(one for one in hypervisor.monitor.execute("query-jobs") if one["id"] == "snapshot")

    eventually(lambda: found()["status"] == "concluded", f"{command} ends")
    error = str(found().get("error", ""))
    hypervisor.monitor.execute("job-dismiss", {"id": "snapshot"})
    return error


def pause(capture: Capture) -> None:
    assert "error" not in capture.ask({"wish": "pause", "seconds": 600})
    capture.reaches("paused")


def resume(capture: Capture) -> None:
    assert "error" not in capture.ask({"wish": "resume"})
    capture.reaches("following")


def settled(hypervisor: Hypervisor) -> None:
    """The images hold what the guest has written: a format's tables are written late."""
    for number in range(len(hypervisor.images)):
        hypervisor.io(number, "flush")


def then(capture: Capture, meanwhile: str) -> None:
    """What capture does while the disks are set back."""
    if meanwhile == "paused":
        pause(capture)
    elif meanwhile == "ended":
        capture.stop()


def afterwards(capture: Capture, hypervisor: Hypervisor, meanwhile: str, offset: int) -> None:
    """The guest writes there, and capture ends."""
    if meanwhile == "paused":
        resume(capture)
    if meanwhile != "ended":
        hypervisor.write(0, offset, 4096, 9)
        capture.stop()


@MEANWHILE
def test_a_revert_is_never_missed(program: Program, hypervisor: Hypervisor, meanwhile: str) -> None:
    with captured(program, hypervisor) as capture:
        hypervisor.write(0, MIB, 4096, 7)
        then(capture, meanwhile)
        said = hmp(hypervisor, "loadvm before")
        refused = job(hypervisor, "snapshot-load", "before", ["node0", "node1"])
        hypervisor.write(0, 5 * MIB, 4096, 9)
        afterwards(capture, hypervisor, meanwhile, 7 * MIB)
    with captured(program, hypervisor) as capture:
        capture.stop()
    settled(hypervisor)
    same(program, hypervisor)
    assert ("everywhen-tap-0" if meanwhile == "following" else REFUSED) in said
    assert REFUSED in refused


@in_soak
def test_after_unprotect_a_revert_works_and_costs_what_changed(program: Program, hypervisor: Hypervisor) -> None:
    with captured(program, hypervisor) as capture:
        hypervisor.write(0, MIB, 4096, 7)
        program.ok("unprotect", "web1")
        assert capture.process.wait(60) == 0, capture.said
    assert hypervisor.ours() == set()
    assert not hmp(hypervisor, "loadvm before")
    with captured(program, hypervisor) as capture:
        hypervisor.write(0, 5 * MIB, 4096, 9)
        capture.stop()
    settled(hypervisor)
    assert hypervisor.content(0)[6 * MIB] == 0, "it was set back"
    same(program, hypervisor)
    assert max(figures(program, "bytes_stored").values()) < STORED


def test_snapshots_by_the_monitor(program: Program, hypervisor: Hypervisor) -> None:
    """What docs/capture.md says of each, while captured and in a pause; none changes what the disks hold."""
    one = {"device": "node1", "name": "one"}
    with captured(program, hypervisor) as capture:
        assert "'everywhen-tap-0' is writable but does not support snapshots" in hmp(hypervisor, "savevm second")
        assert not job(hypervisor, "snapshot-save", "second", ["node0", "node1"])
        hypervisor.write(0, MIB, 4096, 7)
        assert not job(hypervisor, "snapshot-delete", "second", ["node0", "node1"])
        assert "Need a root block node" in refusal(hypervisor, "blockdev-snapshot-internal-sync", one)
        assert capture.state() == "following"
        assert "capture was lost" not in capture.said
        pause(capture)
        assert not hmp(hypervisor, "savevm third")
        hypervisor.write(0, 2 * MIB, 4096, 8)
        assert not refusal(hypervisor, "blockdev-snapshot-internal-sync", one)
        assert not hmp(hypervisor, "delvm third")
        resume(capture)
        capture.stop()
    settled(hypervisor)
    same(program, hypervisor)
    assert figures(program, "bytes_read")["vd1"] == 0, "only what changed was read"


def refusal(hypervisor: Hypervisor, command: str, arguments: dict[str, Any]) -> str:
    """Why QEMU refuses it; nothing when it does not."""
    try:
        hypervisor.monitor.execute(command, arguments)
    except CommandFailed as error:
        return str(error)
    return ""


@in_soak
@MEANWHILE
def test_a_revert_below_a_filter(program: Program, tmp_path: Path, meanwhile: str) -> None:
    """The disk's topmost node is a throttle; what reverts, if it is named, is the one below."""
    image = tmp_path / "disk0.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"], check=True)
    more = ["-object", "throttle-group,id=group", "-blockdev", f"driver=file,node-name=file0,filename={image}"]
    more += ["-blockdev", "driver=qcow2,node-name=node0,file=file0"]
    more += ["-blockdev", "driver=throttle,node-name=slow0,file=node0,throttle-group=group"]
    more += ["-device", "virtio-blk-pci,drive=slow0,id=vd0"]
    with Hypervisor(tmp_path, [], more=more) as hypervisor:
        hypervisor.replace([image], "qcow2")
        hypervisor.write(0, 0, MIB, 1)
        assert not job(hypervisor, "snapshot-save", "before", ["node0"])
        hypervisor.write(0, 2 * MIB, MIB, 2)
        with captured(program, hypervisor) as capture:
            then(capture, meanwhile)
            refused = job(hypervisor, "snapshot-load", "before", ["node0"])
            afterwards(capture, hypervisor, meanwhile, 5 * MIB)
        with captured(program, hypervisor) as capture:
            capture.stop()
        settled(hypervisor)
        same(program, hypervisor)
        assert REFUSED in refused


@in_soak
def test_an_external_snapshot_that_was_thrown_away(program: Program, tmp_path: Path) -> None:
    """The disk is on its old node again, with the bitmap of then, which has nothing of what was captured on the overlay."""
    with filled(tmp_path / "vm", scsi=True) as hypervisor, captured(program, hypervisor) as capture:
        old, monitor = hypervisor.images[0], hypervisor.monitor
        hypervisor.write(0, MIB, 4096, 7)
        pause(capture)
        overlay = tmp_path / "overlay.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", old, "-F", "raw", overlay], check=True)
        file = {"driver": "file", "filename": str(overlay)}
        monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": "over", "file": file, "backing": None})
        monitor.execute("blockdev-snapshot", {"node": "node0", "overlay": "over"})
        resume(capture)
        hypervisor.write(0, 2 * MIB, MIB, 8)
        pause(capture)
        assert program.ok("points", "web1")[0]["disks"]["vd0"]["bytes_changed"] > 0, "what is to be thrown away is in a point"
        monitor.execute("device_del", {"id": "vd0"})
        eventually(lambda: "vd0" not in str(monitor.execute("query-block")), "it is detached")
        monitor.execute("blockdev-del", {"node-name": "over"})
        again = {"driver": "raw", "node-name": "node0", "file": "file0", "read-only": False}
        monitor.execute("blockdev-reopen", {"options": [again]})  # below an overlay it was not written to
        monitor.execute("device_add", {"driver": "scsi-hd", "drive": "node0", "id": "vd0"})
        resume(capture)
        hypervisor.write(0, 5 * MIB, 4096, 9)
        capture.stop()
        same(program, hypervisor)
        assert figures(program, "bytes_read")["vd1"] == 0


@in_soak
def test_an_external_snapshot_that_was_committed(program: Program, tmp_path: Path) -> None:
    chance = random.Random(2)
    with filled(tmp_path / "vm", "qcow2") as hypervisor, captured(program, hypervisor) as capture:
        monitor = hypervisor.monitor
        pause(capture)
        overlay = tmp_path / "overlay.qcow2"
        base = ["-b", str(hypervisor.images[0]), "-F", "qcow2"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, overlay], check=True)
        file = {"driver": "file", "filename": str(overlay)}
        monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": "over", "file": file, "backing": None})
        monitor.execute("blockdev-snapshot", {"node": "node0", "overlay": "over"})
        resume(capture)
        for _ in range(20):
            hypervisor.write(0, chance.randrange(256) * 65536, 4096, chance.randrange(1, 255))
        pause(capture)
        monitor.execute("block-commit", {"job-id": "commit", "device": "over"})
        eventually(lambda: [one["ready"] for one in monitor.execute("query-block-jobs")] == [True], "it is committed")
        monitor.execute("block-job-complete", {"device": "commit"})
        eventually(lambda: not monitor.execute("query-block-jobs"), "the overlay is out")
        monitor.execute("blockdev-del", {"node-name": "over"})
        hypervisor.write(0, 3 * MIB, 4096, 6)
        resume(capture)
        hypervisor.write(0, 4 * MIB, 4096, 6)
        capture.stop()
        settled(hypervisor)
        same(program, hypervisor)
        assert figures(program, "bytes_stored")["vd0"] < STORED
        newest = program.ok("points", "web1")[0]["id"]
        assert hypervisor.ours() == {f"everywhen-{newest}-vd{number}" for number in range(2)}, "no older bitmap is left"
