# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect --interval`: points through losses of every kind, and between two of them neither a moment nor a job
of ours on the disks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import bridged
from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.long_forms import in_soak
from tests.moments import nanoseconds, rfc3339
from tests.monitor_proxy import MonitorProxy, Rules
from tests.program import Program

MIB = 1 << 20
SIZES = [12 * MIB, 2 * MIB + 4096]


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path, SIZES) as running:
        running.write(0, 0, MIB, 1)
        running.write(1, MIB, MIB, 2)
        yield running


def captured(program: Program, qmp: Path, interval: str, *more: str) -> Capture:
    return Capture(program, "web1", qmp, "--pace", "0", "--interval", interval, *more)


def restored(program: Program, disk: int, when: str = "latest", *more: str) -> bytes:
    path = program.folder / "back.raw"
    program.restore(f"web1/vd{disk}@{when}", path, "--overwrite", *more)
    return path.read_bytes()


def same(program: Program, hypervisor: Hypervisor) -> None:
    """The newest point holds what the disks hold, and the guest saw no error."""
    bridged.same(program, hypervisor)
    assert hypervisor.write_errors(0) == hypervisor.write_errors(1) == 0


def newest(program: Program) -> Any:
    return program.ok("points", "web1")[0]


def bitmaps(program: Program) -> set[str]:
    """Names of what is on the disks while no point is being made."""
    return {f"everywhen-{newest(program)['id']}-vd{disk}" for disk in range(len(SIZES))}


def rests(program: Program, hypervisor: Hypervisor) -> None:
    """Wait until no point is being made."""
    eventually(lambda: hypervisor.ours() == bitmaps(program), "its taps are off")


def middle(one: Any, other: Any) -> str:
    """An instant between two points."""
    return rfc3339((nanoseconds(one["time"]) + nanoseconds(other["time"])) // 2)


def test_points_are_the_only_moments(program: Program, hypervisor: Hypervisor) -> None:
    with captured(program, hypervisor.qmp, "1h").followed() as capture:
        for value in (5, 6):
            hypervisor.write(0, 3 * MIB, 65536, value)
            program.ok("mark", "web1", f"mark {value}")
            rests(program, hypervisor)
        hypervisor.write(0, 3 * MIB, 65536, 7)
        (row,) = program.ok("status", "web1")["vms"]
        assert (row["capture"]["state"], row["capture"]["interval_seconds"]) == ("following", 3600)
        assert 0 < row["capture"]["tapped_seconds"] < 60
        shown = program.run("status").out
        assert ("every 1 h" in shown, "only bitmaps on its disks" in shown, "every write" in shown) == (True, True, False)
        b, a, _ = program.ok("points", "web1")
        assert restored(program, 0, middle(a, b))[3 * MIB] == 5
        for when in (middle(a, b), "latest~1"):
            assert program.run("restore", f"web1/vd0@{when}", "--to", "no.raw", "--exact").code == 6
        assert restored(program, 0)[3 * MIB] == 6
        capture.stop()
    same(program, hypervisor)  # its end has made a point, too
    assert hypervisor.ours() == bitmaps(program)
    assert newest(program)["disks"]["vd0"]["bytes_read"] == 65536, "only what changed was read"
    line = program.ok("timeline", "web1")
    assert (line["every_write"], line["gaps"], len(line["points"])) == ([], [], 4)
    drawn = program.run("timeline", "web1").out
    assert not any(line.startswith("writes") for line in drawn.splitlines()), drawn
    assert program.run("verify", "--read-data").code == 0
    assert program.run("gc").code == 0


@in_soak
def test_points_come_by_themselves_and_missing_ones_are_a_gap(program: Program, hypervisor: Hypervisor) -> None:
    with captured(program, hypervisor.qmp, "1s").followed() as capture:
        for value in range(2):
            hypervisor.write(1, 4096 * value, 4096, 10 + value)
            capture.another_point()
        made = len(program.ok("points", "web1"))
        assert made >= 3
        program.ok("pause", "web1", "--for", "1h")
        assert hypervisor.ours() == bitmaps(program)
        hypervisor.write(1, 0, 4096, 20)
        assert program.ok("timeline", "web1")["gaps"][-1]["why"] == "paused"
        in_it = time.time_ns()
        time.sleep(2)  # more than one and a half times the interval, or no point was missed
        program.ok("resume", "web1")
        capture.another_point()
        capture.stop()
    same(program, hypervisor)
    line = program.ok("timeline", "web1")
    (gap,) = [gap for gap in line["gaps"] if nanoseconds(gap["from"]) < in_it < nanoseconds(gap["to"])]
    assert gap["why"] == "paused"
    assert line["every_write"] == []


@in_soak
def test_a_lost_round_costs_the_guest_nothing_and_is_made_up_for(program: Program, hypervisor: Hypervisor) -> None:
    """A sink that is killed, and one that hangs with a write in flight; all that QEMU is told is held against the rules."""
    proxy = MonitorProxy(program.folder / "proxy", hypervisor.qmp)
    with proxy, captured(program, proxy.path, "1h", "--pace", "4M").followed() as capture:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            rests(program, hypervisor)
            hypervisor.write(0, 4 * MIB, 4 * MIB, number)
            asking = ThreadPoolExecutor().submit(program.run, "mark", "web1", "lost")
            eventually(lambda: {"everywhen-tap-0", "everywhen-tap-1"} <= hypervisor.ours(), "a round is under way")
            points = capture.said.count("recovery point p-")
            os.kill(capture.sink(), number)
            hypervisor.io(0, f"aio_write -P 9 {2 * MIB} 65536")
            hypervisor.write(1, 65536, 65536, 9)
            assert asking.result().code == 1, "the mark was refused"
            eventually(lambda: capture.said.count("recovery point p-") > points, "it begins again by itself")  # noqa: B023
        capture.stop()
        log = proxy.log
    same(program, hypervisor)
    assert capture.said.count("capture was lost") >= 2
    assert Rules().broken(log) == []


@in_soak
def test_after_any_end_only_what_changed_is_read(program: Program, hypervisor: Hypervisor) -> None:
    """Killed between two points; killed in a round; from points alone to every write, and back."""
    with captured(program, hypervisor.qmp, "1h").followed() as capture:
        rests(program, hypervisor)
        hypervisor.write(0, 5 * MIB, 65536, 3)
        capture.kill()
    hypervisor.write(1, 0, 4096, 4)
    with captured(program, hypervisor.qmp, "1h", "--pace", "512k").followed() as capture:
        assert [disk["bytes_read"] for disk in newest(program)["disks"].values()] == [65536, 65536]
        rests(program, hypervisor)
        hypervisor.write(0, 6 * MIB, MIB, 5)
        asking = ThreadPoolExecutor().submit(program.run, "mark", "web1", "killed")
        eventually(lambda: "everywhen-tap-0" in hypervisor.ours(), "a round is under way")
        capture.kill()
        assert asking.result().code == 1, "nobody has answered it"
    with Capture(program, "web1", hypervisor.qmp, "--pace", "0").followed() as capture:
        hypervisor.write(1, MIB, 4096, 6)
        capture.stop()
    same(program, hypervisor)
    assert sum(disk["bytes_read"] for disk in newest(program)["disks"].values()) <= MIB + 65536
    with captured(program, hypervisor.qmp, "1h").followed() as capture:
        assert sum(disk["bytes_read"] for disk in newest(program)["disks"].values()) <= 65536
        capture.stop()
    same(program, hypervisor)
    assert len(program.ok("timeline", "web1")["every_write"]) == 1


@in_soak
def test_a_vm_that_ends_and_starts_again(program: Program, hypervisor: Hypervisor) -> None:
    with captured(program, hypervisor.qmp, "1s").followed() as capture:
        hypervisor.write(0, 2 * MIB, 65536, 3)
        hypervisor.quit()
        capture.reaches("off")
        hypervisor.start()
        hypervisor.write(1, 65536, 65536, 4)
        capture.followed()
        capture.stop()
    same(program, hypervisor)


@in_soak
def test_a_raw_disk_with_an_iothread_is_read_beside_qemu(program: Program, tmp_path: Path) -> None:
    with Hypervisor(tmp_path, SIZES, iothread=True, scsi=True) as running:
        running.write(0, 0, MIB, 1)
        running.write(1, MIB, MIB, 2)
        proxy = MonitorProxy(tmp_path / "proxy", running.qmp)
        with proxy, captured(program, proxy.path, "1h").followed() as capture:
            rests(program, running)
            running.write(0, 3 * MIB, 65536, 5)
            program.ok("mark", "web1", "once more")
            rests(program, running)
            running.write(1, 65536, 4096, 6)
            capture.stop()
            log = proxy.log
        same(program, running)
    read = [[disk["bytes_read"] for disk in point["disks"].values()] for point in program.ok("points", "web1")[:2]]
    assert read == [[0, 65536], [65536, 0]], "only what changed"
    assert program.ok("timeline", "web1")["every_write"] == []
    assert Rules(frozenset(["node0", "node1"])).broken(log) == []


def test_a_disk_that_would_be_sent_whole_each_time_is_refused(program: Program, tmp_path: Path) -> None:
    """Before a tap is attached to another one, which could be read."""
    readable = tmp_path / "readable.raw"
    readable.write_bytes(bytes(MIB))
    more = ["-blockdev", f"driver=file,node-name=node9,filename={readable}", "-device", "virtio-blk-pci,drive=node9,id=vd9"]
    with (
        Hypervisor(tmp_path, SIZES, iothread=True, scsi=True, image_format="qcow2", more=more) as running,
        MonitorProxy(program.folder / "proxy", running.qmp) as proxy,
    ):
        done = program.run("protect", "web1", "--qmp", proxy.path, "--interval", "1h")
        assert done.code == 1, done
        assert "vd0: an iothread serves it" in done.err
        assert "so it is with vd1" in done.err
        assert running.ours() == set()
        assert not [said for said in proxy.log if "blockdev-mirror" in str(said)]
        assert [said for said in proxy.log if "query-named-block-nodes" in str(said)]
    assert program.ok("points") == []


def test_an_interval_of_nothing(program: Program, hypervisor: Hypervisor) -> None:
    for wrong in (["0s"], ["soon"], ["1h", "--group", "shop"]):
        assert program.run("protect", "web1", "--qmp", hypervisor.qmp, "--interval", *wrong).code == 2
