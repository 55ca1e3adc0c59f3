# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect` of disks that an iothread serves: never exported over NBD, and after a gap what changed is read.

The disks are a virtio-scsi controller's, whose iothread serves them also while the processor stands still (QEMU,
hw/scsi/virtio-scsi.c); that it does is shown by the first test.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from everywhen.nbd.connection import NbdConnection, NbdError
from tests.bridged import same
from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.long_forms import SOAK, in_soak
from tests.monitor_proxy import MonitorProxy, Rules
from tests.processes import running
from tests.program import Program

MIB = 1 << 20
SIZES = [24 * MIB, 8 * MIB + 4096]


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path, SIZES, iothread=True, scsi=True) as running:
        running.write(0, 0, 3 * MIB, 1)
        running.write(0, 22 * MIB, MIB, 2)
        running.write(1, SIZES[1] - 4096, 4096, 3)
        yield running


def test_such_an_export_ends_qemu(hypervisor: Hypervisor) -> None:
    """K1: should this fail, QEMU can do it, and what follows is needed no more; or no iothread is at work here."""
    path = hypervisor.folder / "export.sock"
    hypervisor.monitor.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(path)}}})
    hypervisor.monitor.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": "node0", "name": "e"})
    for _ in range(3):
        with suppress(NbdError):  # it has ended by now
            NbdConnection(str(path), "e", timeout=5).close()
    assert hypervisor.process.wait(20) == -signal.SIGABRT


@in_soak
def test_only_what_changed_is_read_after_a_gap(program: Program, hypervisor: Hypervisor) -> None:
    with MonitorProxy(hypervisor.folder / "proxy", hypervisor.qmp) as proxy:
        with Capture(program, "web1", proxy.path, "--pace", "0") as capture:
            capture.followed()
            hypervisor.write(0, 5 * MIB, MIB, 4)
            capture.kill()
        hypervisor.write(0, 7 * MIB + 512, 4096, 5)
        hypervisor.write(0, 20 * MIB, 65536, 6)
        hypervisor.write(1, 0, 4096, 7)
        with Capture(program, "web1", proxy.path, "--pace", "0") as capture:
            capture.followed()
            hypervisor.write(1, MIB, 4096, 8)
            capture.stop()
        log = proxy.log
    same(program, hypervisor)
    read = [disk["bytes_read"] for point in program.ok("points", "web1") for disk in point["disks"].values()]
    assert sum(sorted(read)[:-2]) <= 2 * MIB, f"only what changed: {read}"
    assert Rules(frozenset(["node0", "node1"])).broken(log) == []
    newest = program.ok("points", "web1")[0]
    assert hypervisor.ours() == {f"everywhen-{newest['id']}-vd{number}" for number in range(2)}
    assert hypervisor.write_errors(0) == hypervisor.write_errors(1) == 0


@in_soak
def test_a_disk_larger_than_the_spool_under_writes(program: Program, hypervisor: Hypervisor) -> None:
    fill(hypervisor)
    with Capture(program, "web1", hypervisor.qmp, "--pace", "10M", "--spool-limit", "1M") as capture:
        capture.says("capture attached")
        for number in range(150):
            hypervisor.write(0, number * 128 << 10, 512, number)
        capture.followed()
        assert "lost" not in capture.said
        capture.stop()
    same(program, hypervisor)


def test_what_cannot_be_read_is_pushed(program: Program, tmp_path: Path) -> None:
    """Through a spool much smaller than the disk, and again after a loss; the guest writes meanwhile."""
    with (
        Hypervisor(tmp_path, SIZES, iothread=True, scsi=True, image_format="qcow2") as running,
        MonitorProxy(tmp_path / "proxy", running.qmp) as proxy,
    ):
        fill(running, 20)
        for number in range(2):
            with Capture(program, "web1", proxy.path, "--pace", "0", "--spool-limit", "16M") as capture:
                capture.says("capture attached")
                for block in range(100):
                    running.write(block % 2, block * 64 << 10, 4096, 1 + number + block)
                capture.followed()
                assert "lost" not in capture.said, capture.said
                running.write(1, MIB, 4096, 8)
                capture.stop()
            same(program, running)
        log = proxy.log
        assert running.write_errors(0) == running.write_errors(1) == 0
        stored = [point["disks"]["vd0"]["bytes_stored"] for point in program.ok("points", "web1")]
        assert sum(sorted(stored)[:-1]) < 8 * MIB, f"what is sent again is not stored again: {stored}"
    in_all = sum(path.stat().st_size for path in program.repo.rglob("*") if path.is_file()) / MIB
    assert in_all < 32, f"what was pushed is no journal: {in_all:.0f} MiB"
    assert Rules(frozenset(["node0", "node1"])).broken(log) == []
    pushes = [message for message in log if message.name == "blockdev-mirror" and message.data.get("sync") == "full"]
    assert len(pushes) == 4


def test_another_file_in_the_image_s_place_is_not_read(program: Program, tmp_path: Path) -> None:
    """QEMU has the old one open, and writes there."""
    with Hypervisor(tmp_path, [MIB], iothread=True, scsi=True) as running:
        running.write(0, 0, 65536, 1)
        image = running.images[0]
        shutil.copy(image, tmp_path / "copy")
        image.rename(tmp_path / "old")
        (tmp_path / "copy").rename(image)
        running.write(0, 65536, 65536, 2)
        with Capture(program, "web1", running.qmp, "--pace", "0") as capture:
            capture.followed()
            capture.stop()
        program.restore("web1/vd0", tmp_path / "back.raw")
        assert (tmp_path / "back.raw").read_bytes() == (tmp_path / "old").read_bytes()


def test_disks_with_and_without_an_iothread(program: Program, tmp_path: Path) -> None:
    more = ["-blockdev", "driver=null-co,node-name=n,size=1048576", "-device", "virtio-blk-pci,drive=n,id=plain"]
    with Hypervisor(tmp_path, SIZES, iothread=True, scsi=True, more=more) as running:
        running.write(0, 0, MIB, 1)
        with Capture(program, "web1", running.qmp, "--pace", "0") as capture:
            capture.followed()
            capture.stop()
        same(program, running)
        assert set(program.ok("points", "web1")[0]["disks"]) == {"vd0", "vd1", "plain"}


@in_soak
def test_ended_in_the_middle_of_a_copy(program: Program, hypervisor: Hypervisor) -> None:
    """By kill, by a sink that is killed or hangs, and in order: nothing is left, and the guest's writes go on."""
    fill(hypervisor)
    for how in ("kill", "sink", "hung", "order") if SOAK else ("kill", "hung"):
        with Capture(program, "web1", hypervisor.qmp, "--pace", "6M") as capture:
            capture.reaches("copying")
            if how == "kill":
                capture.kill()
            elif how == "order":
                capture.stop()
            else:
                os.kill(capture.sink(), signal.SIGKILL if how == "sink" else signal.SIGSTOP)
                hypervisor.write(0, 0, 4096, 10)
                eventually(lambda: "capture was lost" in capture.said, "the loss is noticed", 60)
                capture.stop()
            hypervisor.write(0, 9 * MIB, 65536, 9)
            assert hypervisor.write_errors(0) == 0
            if how != "kill":
                assert all(name.startswith("everywhen-p-") for name in hypervisor.ours()), "bitmaps, by which it goes on"
    with Capture(program, "web1", hypervisor.qmp, "--pace", "0") as capture:
        capture.followed()
        capture.stop()
    same(program, hypervisor)


def fill(hypervisor: Hypervisor, count: int = 16) -> None:
    """So that a copy takes its time."""
    noise = hypervisor.folder / "noise"
    noise.write_bytes(random.Random(5).randbytes(count * MIB))
    hypervisor.io(0, f"write -s {noise} {4 * MIB} {count * MIB}")


@in_soak
def test_a_storage_daemon_with_an_iothread(program: Program, tmp_path: Path) -> None:
    """It does not tell which disks that serves: all are read as if it did."""
    (tmp_path / "disk.raw").write_bytes(random.Random(9).randbytes(MIB))
    command = ["qemu-storage-daemon", "--object", "iothread,id=io0"]
    command += ["--chardev", f"socket,id=qmp,path={tmp_path}/qmp.sock,server=on,wait=off", "--monitor", "chardev=qmp"]
    command += ["--blockdev", f"driver=file,node-name=node0,filename={tmp_path}/disk.raw"]
    export = f"type=vhost-user-blk,id=disk,node-name=node0,writable=on,iothread=io0,addr.type=unix,addr.path={tmp_path}/user"
    with running([*command, "--export", export], tmp_path, (tmp_path / "qmp.sock").exists) as daemon:
        with MonitorProxy(tmp_path / "proxy", tmp_path / "qmp.sock") as proxy:
            with Capture(program, "web1", proxy.path, "--pace", "0") as capture:
                capture.followed()
                capture.stop()
            with Capture(program, "web1", proxy.path, "--pace", "0") as capture:
                capture.followed()
                capture.stop()
            log = proxy.log
        assert Rules(frozenset(["node0"])).broken(log) == []
        assert daemon.poll() is None
    program.restore("web1/disk", tmp_path / "back.raw")
    assert (tmp_path / "back.raw").read_bytes() == (tmp_path / "disk.raw").read_bytes()
