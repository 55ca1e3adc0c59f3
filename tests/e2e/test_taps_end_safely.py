# SPDX-License-Identifier: AGPL-3.0-or-later
"""A tap is taken off while writes are under way (K5): QEMU 7.2 frees what they still use where its job is ended by force, or by
an error. Of a disk of 4 GiB and more that is memory of its own, and QEMU dies at once; of a smaller one its heap is damaged.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from everywhen.capture import bitmaps, leftovers
from everywhen.capture.nodes import find_disks
from everywhen.capture.qmp import MonitorError, QmpMonitor
from everywhen.capture.reception import Reception
from everywhen.capture.tap import Tap, TapEnded, all_stand
from everywhen.formats.ids import PointId
from tests.hypervisor import eventually
from tests.long_forms import in_soak
from tests.receptions import reception

SIZE = 8 << 30
LATENCY_NS = 5_000_000
"""Of the disk: so there are always writes that it has not done yet, and that are still to be sent to the sink."""


class SlowDisk:
    """A storage daemon with a large slow disk that holds nothing, and somebody who writes to it, 16 requests at once."""

    def __init__(self, folder: Path, *, readable: bool = True, writes_per_s: int = 16 * 10**9 // LATENCY_NS) -> None:
        self.qmp, serves = folder / "qmp.sock", folder / "nbd.sock"
        command = ["qemu-storage-daemon", "--chardev", f"socket,id=qmp,path={self.qmp},server=on,wait=off"]
        command += ["--monitor", "chardev=qmp", "--nbd-server", f"addr.type=unix,addr.path={serves}"]
        throttled = ["--object", f"throttle-group,id=slow,x-iops-write={writes_per_s}"]
        if readable and writes_per_s < 1000:  # each write by itself, not 16 together
            command += [*throttled, "--blockdev", f"driver=null-co,node-name=nothing,size={SIZE}"]
            command += ["--blockdev", "driver=throttle,node-name=disk,throttle-group=slow,file=nothing"]
        elif readable:
            command += ["--blockdev", f"driver=null-co,node-name=disk,size={SIZE},latency-ns={LATENCY_NS}"]
        else:
            with (folder / "disk").open("wb") as file:
                file.write(bytes(range(256)) * 4096)
                file.truncate(SIZE)
            command += [*throttled, "--blockdev", f"driver=file,node-name=file,filename={folder / 'disk'}"]
            broken = "inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.errno=5"
            command += ["--blockdev", f"driver=blkdebug,node-name=broken,image=file,{broken}"]
            command += ["--blockdev", "driver=throttle,node-name=disk,throttle-group=slow,file=broken"]
        command += ["--export", "type=nbd,id=disk,node-name=disk,name=disk,writable=on"]
        self.daemon = subprocess.Popen(command)
        eventually(serves.exists, "the disk is served")
        uri = f"nbd+unix:///disk?socket={serves}"
        command = ["qemu-img", "bench", "-w", "-q", "-d", "16", "-c", "1000000", "-s", "4k", "-S", "1M", "-f", "raw", uri]
        self.writer = subprocess.Popen(command)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in (self.writer, self.daemon):
            process.kill()
            process.wait()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SlowDisk]:
    with SlowDisk(tmp_path) as running:
        yield running


@contextmanager
def tap_for(disk: SlowDisk, folder: Path) -> Iterator[tuple[QmpMonitor, Reception, Tap]]:
    """Not attached yet."""
    with QmpMonitor.connect(str(disk.qmp)) as monitor, reception(folder, [SIZE]) as sink:
        yield monitor, sink, Tap(monitor, find_disks(monitor)[0], 0)


@contextmanager
def tapped(disk: SlowDisk, folder: Path) -> Iterator[tuple[QmpMonitor, Reception, Tap]]:
    """With writes on their way to the sink."""
    with tap_for(disk, folder) as (monitor, sink, tap):
        tap.attach(str(sink.socket_path))
        began = sink.taken
        eventually(lambda: sink.taken > began + 100, "writes come")
        assert all_stand(monitor, [tap])
        yield monitor, sink, tap


def goes_on(disk: SlowDisk, monitor: QmpMonitor) -> None:
    """Nothing is left, and the writer has seen no error."""
    nodes = monitor.execute("query-named-block-nodes", {"flat": True})
    assert not [node["node-name"] for node in nodes if node["node-name"].startswith("everywhen-")]
    assert disk.daemon.poll() is None
    assert disk.writer.poll() is None


def test_an_end_in_order(disk: SlowDisk, tmp_path: Path) -> None:
    for number in range(5):
        with tapped(disk, tmp_path / str(number)) as (monitor, sink, tap):
            assert sink.let_go()
            taken = sink.taken
            assert all_stand(monitor, [tap]), "QEMU has not noticed"
            leftovers.clear(monitor, answered=True)
            assert sink.taken == taken, "what came after that was forgotten"
            goes_on(disk, monitor)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_sink_is_lost(disk: SlowDisk, tmp_path: Path, number: signal.Signals) -> None:
    for attempt in range(5):
        with tapped(disk, tmp_path / str(attempt)) as (monitor, sink, tap):
            os.kill(sink.sink.pid, number)
            eventually(lambda: not sink.alive, "the watchdog has taken it away")
            assert not sink.let_go()
            eventually(lambda: tap.ended(0) is not None, "a write could not be sent")
            assert tap.refused
            assert not all_stand(monitor, [tap])
            leftovers.clear(monitor, answered=False)
            goes_on(disk, monitor)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_sink_is_lost_as_the_tap_is_attached(
    disk: SlowDisk, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU needs no answer of its to make the job ready, and then it is paused."""
    for attempt in range(3):
        with tap_for(disk, tmp_path / str(attempt)) as (monitor, sink, tap):
            execute = monitor.execute

            def losing(name: str, *arguments: Any, execute: Any = execute, pid: int = sink.sink.pid, **more: Any) -> Any:
                if name == "blockdev-mirror":
                    os.kill(pid, number)
                return execute(name, *arguments, **more)

            with monkeypatch.context() as patch, suppress(TapEnded):
                patch.setattr(monitor, "execute", losing)
                tap.attach(str(sink.socket_path))
            eventually(lambda: not sink.alive, "the watchdog has taken it away")
            leftovers.clear(monitor, answered=False)
            goes_on(disk, monitor)


def test_the_sink_is_lost_before_the_job_is_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine that takes a while. A job that a write ends then, while others are under way, takes QEMU with it: so it
    begins with nothing to send to, and no write can fail."""
    with SlowDisk(tmp_path, writes_per_s=40) as disk:
        for attempt in range(3):
            with tap_for(disk, tmp_path / str(attempt)) as (monitor, sink, tap):
                execute = monitor.execute

                def late(name: str, *arguments: Any, execute: Any = execute, sink: Reception = sink, **more: Any) -> Any:
                    if name == "block-job-pause":
                        sink.sink.kill()
                        eventually(lambda: not sink.alive, "it is gone")
                        time.sleep(0.5)  # 20 writes
                    return execute(name, *arguments, **more)

                with monkeypatch.context() as patch, suppress(TapEnded):
                    patch.setattr(monitor, "execute", late)
                    tap.attach(str(sink.socket_path))
                leftovers.clear(monitor, answered=False)
                goes_on(disk, monitor)


def test_another_tap_follows_on_the_same_monitor(disk: SlowDisk, tmp_path: Path) -> None:
    """What is still told of the one that was lost is not of it: it has the same name."""
    with QmpMonitor.connect(str(disk.qmp)) as monitor:
        for number in range(3):
            with reception(tmp_path / str(number), [SIZE]) as sink:
                tap = Tap(monitor, find_disks(monitor)[0], 0)
                tap.attach(str(sink.socket_path))
                eventually(lambda: sink.taken > 100, "writes come")
                assert tap.ended(0) is None
                sink.sink.kill()
                eventually(lambda: not sink.alive, "it is noticed")
            leftovers.clear(monitor, answered=False)
        goes_on(disk, monitor)


def test_a_disk_that_cannot_be_read_is_no_end_of_its_push(tmp_path: Path) -> None:
    with SlowDisk(tmp_path, readable=False) as disk:
        with tap_for(disk, tmp_path / "first") as (monitor, sink, tap):
            tap.push(str(sink.socket_path), 1 << 30)
            eventually(lambda: (tap.ended(0) or "") == "it cannot be read", "it pauses")
            assert [job["status"] for job in monitor.execute("query-block-jobs")] == ["paused"]
            began = sink.taken
            eventually(lambda: sink.taken > began + 100, "writes come all the same")
            disk.writer.kill()  # a storage daemon has no guest that could be stopped
            disk.writer.wait()
            # What it had under way goes on without it. New bitmaps are begun when that is over.
            bitmaps.begin(monitor, {"disk": "disk"}, PointId("p-0123456789ab"))
            assert sink.let_go()
            leftovers.clear(monitor, answered=True)
        assert disk.daemon.poll() is None


def test_what_a_killed_run_leaves(disk: SlowDisk, tmp_path: Path) -> None:
    """Its job is paused, so QEMU does not end it, however long nobody comes."""
    with tapped(disk, tmp_path / "first") as (_, sink, tap):
        sink.sink.kill()
        sink.watchdog.kill()
        eventually(lambda: tap.ended(0) is not None, "a write could not be sent")
    with QmpMonitor.connect(str(disk.qmp)) as again:
        assert [job["status"] for job in again.execute("query-block-jobs")] == ["standby"]
        leftovers.clear(again, answered=False)
        goes_on(disk, again)


@in_soak
def test_a_job_that_is_ended_by_force_takes_qemu_with_it(disk: SlowDisk, tmp_path: Path) -> None:
    """Why it is never done: QEMU died in 7 of 8 runs. Should this fail again and again, QEMU does not do that any more."""
    with tapped(disk, tmp_path / "first") as (monitor, _, tap):
        with suppress(MonitorError):
            monitor.execute("block-job-cancel", {"device": tap.name, "force": True})
        assert disk.daemon.wait(10) == -signal.SIGSEGV
