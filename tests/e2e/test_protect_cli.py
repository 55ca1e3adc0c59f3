# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect` on a real QEMU: every write comes back, nothing of ours is left, and the guest never sees an error."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.capture.spool_reader import read_spooled, spool_files
from everywhen.formats.keyslot import Keyset
from everywhen.formats.segment import SegmentHeader
from everywhen.interfaces.control_socket import NobodyThere, ask
from everywhen.repository.keys.cipher import Cipher
from everywhen.repository.keys.segment_keys import open_segment
from tests.bridged import same
from tests.captures import child
from tests.hypervisor import Hypervisor, eventually
from tests.long_forms import in_soak
from tests.program import Done, Program, ended

MIB = 1 << 20
SIZES = [24 * MIB, 8 * MIB + 4096]
_RUNNING: list[subprocess.Popen[str]] = []


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path, SIZES) as running:
        running.write(0, 0, 2 * MIB, 1)
        running.write(1, 3 * MIB, MIB, 2)
        yield running


@pytest.fixture(autouse=True)
def running() -> Iterator[list[subprocess.Popen[str]]]:
    """Captures that a failed test leaves behind are ended."""
    _RUNNING.clear()
    yield _RUNNING
    for process in _RUNNING:
        if process.poll() is None:
            process.kill()
        ended(process)


def started(program: Program, hypervisor: Hypervisor, *more: str) -> subprocess.Popen[str]:
    """Capture, until it follows every write."""
    process = program.start("protect", "web1", "--qmp", hypervisor.qmp, "--pace", "0", *more)
    _RUNNING.append(process)
    eventually(lambda: process.poll() is not None or state(program) == "following", "it follows")
    assert process.poll() is None, ended(process)
    return process


def state(program: Program) -> str | None:
    """What the capture says of itself."""
    try:
        return str(ask(program.folder / "host" / "web1", {"wish": "status"})["state"])
    except NobodyThere:
        return None


def stopped(process: subprocess.Popen[str]) -> Done:
    """The capture ended in order."""
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.code == 0, done
    return done


def restored(program: Program, number: int) -> bytes:
    path = program.folder / "back.raw"
    program.restore(f"web1/vd{number}", path, "--overwrite")
    return path.read_bytes()


def test_writes_come_back(program: Program, hypervisor: Hypervisor) -> None:
    chance = random.Random(7)
    process = started(program, hypervisor, "--seal-every", "1s")
    for points in (2, 3):
        for _ in range(150):
            disk = chance.randrange(2)
            offset = chance.randrange(SIZES[disk] // 512 - 64) * 512
            how = chance.choice(["-z", "-P 3", "-P 4", "-P 5"])
            hypervisor.io(disk, f"write {how} {offset} {512 * chance.randrange(1, 64)}")
        eventually(lambda points=points: len(program.ok("points")) >= points, "points while it runs")  # type: ignore[misc]
    hypervisor.write(0, 5 * MIB, 4096, 9)
    stopped(process)
    same(program, hypervisor)
    newest = program.ok("points", "web1")[0]
    assert newest["consistency"] == "crash"
    # Only the bitmap that remembers what changes from now on is left.
    assert hypervisor.ours() == {f"everywhen-{newest['id']}-vd{number}" for number in range(2)}
    assert program.run("verify", "--read-data").code == 0


def test_after_any_end_of_ours_only_what_changed_is_read(program: Program, hypervisor: Hypervisor) -> None:
    process = started(program, hypervisor)
    hypervisor.write(0, 7 * MIB, 65536, 4)
    process.kill()
    ended(process)
    hypervisor.write(0, 9 * MIB, 65536, 5)
    hypervisor.write(1, 0, 4096, 6)
    assert hypervisor.write_errors(0) == hypervisor.write_errors(1) == 0
    process = started(program, hypervisor)
    stopped(process)
    same(program, hypervisor)
    disks = program.ok("points", "web1")[0]["disks"]
    assert disks["vd0"]["bytes_read"] <= 3 * 65536, "only what changed was read"


def test_a_killed_sink_costs_the_guest_nothing(program: Program, hypervisor: Hypervisor) -> None:
    process = started(program, hypervisor)
    points = len(program.ok("points"))
    os.kill(child(process.pid, "sink_process"), signal.SIGKILL)
    hypervisor.write(0, 11 * MIB, MIB, 8)
    eventually(lambda: len(program.ok("points")) > points, "capture begins again by itself")
    hypervisor.write(1, MIB, 4096, 8)
    done = stopped(process)
    assert "capture was lost" in done.err
    assert hypervisor.write_errors(0) == 0
    same(program, hypervisor)


def test_a_hung_sink_stalls_a_write_for_the_watchdogs_limit_at_most(program: Program, hypervisor: Hypervisor) -> None:
    process = started(program, hypervisor)
    points = len(program.ok("points"))
    os.kill(child(process.pid, "sink_process"), signal.SIGSTOP)
    before = hypervisor.writes_answered(0)
    began = time.monotonic()
    hypervisor.io(0, f"aio_write -P 7 {12 * MIB} 65536")
    eventually(lambda: hypervisor.writes_answered(0) > before, "the write is answered")
    # 200 ms is the limit, 20 ms the watchdog's step; the rest is for a busy machine.
    assert time.monotonic() - began < 2
    eventually(lambda: len(program.ok("points")) > points, "capture begins again by itself")
    stopped(process)
    assert hypervisor.write_errors(0) == 0
    same(program, hypervisor)


def test_when_the_watchdog_hangs_too_nothing_is_asked_of_qemu_that_waits_for_them(
    program: Program, hypervisor: Hypervisor
) -> None:
    process = started(program, hypervisor, "--seal-every", "1s")
    for module in ("watchdog", "sink_process"):
        os.kill(child(process.pid, module), signal.SIGSTOP)
    before, slowest = hypervisor.writes_answered(0), 0.0
    hypervisor.io(0, f"aio_write -P 7 {12 * MIB} 65536")
    began = time.monotonic()
    while time.monotonic() - began < 20:
        asked = time.monotonic()
        answered = hypervisor.writes_answered(0) > before
        slowest = max(slowest, time.monotonic() - asked)
        if answered:
            break
    assert answered, "the guest's write"
    assert slowest < 1, "its monitor was blocked, so all of it was"
    eventually(lambda: state(program) == "detached", "the loss is noticed", 60)
    eventually(lambda: state(program) == "following", "capture begins again by itself", 60)
    stopped(process)
    assert hypervisor.write_errors(0) == 0
    same(program, hypervisor)


def test_a_full_spool_costs_the_guest_nothing(program: Program, hypervisor: Hypervisor) -> None:
    process = started(program, hypervisor, "--spool-limit", "1M")
    points = len(program.ok("points"))
    noise = program.folder / "noise"
    noise.write_bytes(random.Random(5).randbytes(4 * MIB))
    hypervisor.io(0, f"write -s {noise} {16 * MIB} {4 * MIB}")
    eventually(lambda: len(program.ok("points")) > points, "capture begins again by itself")
    done = stopped(process)
    assert "the spool is full" in done.err
    assert hypervisor.write_errors(0) == 0
    same(program, hypervisor)


def test_a_repository_that_is_away_does_not_end_capture(program: Program, hypervisor: Hypervisor) -> None:
    process = started(program, hypervisor, "--seal-every", "1s")
    sink = child(process.pid, "sink_process")
    away = program.repo.with_name("away")
    program.repo.rename(away)
    hypervisor.write(0, 17 * MIB, 65536, 6)
    said = ""
    while "Capture goes on" not in said:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said, "it ended"
        assert "capture was lost" not in said
    hypervisor.write(1, 2 * MIB, 4096, 6)
    away.rename(program.repo)
    points = len(program.ok("points"))
    eventually(lambda: len(program.ok("points")) > points, "a point when the repository is back")
    assert child(process.pid, "sink_process") == sink
    stopped(process)
    same(program, hypervisor)


def test_the_last_writes_before_the_guest_ended_are_in(program: Program, hypervisor: Hypervisor) -> None:
    process = started(program, hypervisor)
    points = len(program.ok("points"))
    for number in range(40):
        hypervisor.write(number % 2, MIB + 4096 * number, 4096, 40 + number)
    hypervisor.quit()
    eventually(lambda: len(program.ok("points")) > points, "a point of the last writes")
    stopped(process)
    same(program, hypervisor)


def test_what_a_killed_sink_had_written_is_a_point(program: Program, hypervisor: Hypervisor) -> None:
    process = started(program, hypervisor)
    first = program.ok("points")[0]["id"]
    before = spooled(program.folder)
    hypervisor.write(0, 20 * MIB, 65536, 77)
    eventually(lambda: spooled(program.folder) > before, "the write is in the spool")
    os.kill(child(process.pid, "sink_process"), signal.SIGKILL)
    hypervisor.kill()  # so that nothing but the spool can know it
    eventually(lambda: program.ok("points")[0]["id"] != first, "a point of what was durable")
    stopped(process)
    assert restored(program, 0)[20 * MIB : 20 * MIB + 65536] == bytes([77]) * 65536


def test_after_a_crash_of_qemu_the_disks_are_compared(program: Program, hypervisor: Hypervisor) -> None:
    process = started(program, hypervisor)
    hypervisor.kill()
    stopped(process)
    hypervisor.start()
    hypervisor.write(0, 13 * MIB, 4096, 3)
    stopped(started(program, hypervisor))
    same(program, hypervisor)


@in_soak
def test_another_repository_does_not_believe_our_bitmap(program: Program, hypervisor: Hypervisor) -> None:
    stopped(started(program, hypervisor))
    hypervisor.write(0, 15 * MIB, 4096, 4)  # the other's bitmaps will begin after this
    other = Program(program.folder, "other").init()
    stopped(started(other, hypervisor))
    hypervisor.write(0, 14 * MIB, 4096, 3)
    stopped(started(program, hypervisor))
    same(program, hypervisor)


@in_soak
def test_a_bitmap_is_not_believed_over_a_point_of_something_else(program: Program, hypervisor: Hypervisor) -> None:
    """The newest point may show another disk by the same name: what changed here since an older one says nothing of it."""
    stopped(started(program, hypervisor))
    other = program.folder / "other.raw"
    other.write_bytes(random.Random(3).randbytes(SIZES[0]))
    program.backup("web1", f"vd0={other}")
    hypervisor.write(0, 15 * MIB, 4096, 4)
    stopped(started(program, hypervisor))
    same(program, hypervisor)


def test_a_second_capture_of_the_same_vm_changes_nothing(program: Program, hypervisor: Hypervisor) -> None:
    process = started(program, hypervisor)
    sink = child(process.pid, "sink_process")
    hypervisor.write(0, 15 * MIB, 4096, 4)
    eventually(lambda: spooled(program.folder) > 0, "there is a spool that could be taken for a killed run's")
    done = program.run("protect", "web1", "--qmp", hypervisor.qmp, "--json")
    assert done.error["code"] == "busy"
    assert child(process.pid, "sink_process") == sink
    done = stopped(process)
    assert "capture was lost" not in done.err
    same(program, hypervisor)


def test_a_spool_is_not_brought_in_while_the_sink_of_a_killed_run_writes_to_it(
    program: Program, hypervisor: Hypervisor
) -> None:
    process = started(program, hypervisor)
    sink = child(process.pid, "sink_process")
    before = spooled(program.folder)
    hypervisor.write(0, 15 * MIB, 4096, 4)
    eventually(lambda: spooled(program.folder) > before, "there is something to be brought in")
    os.kill(sink, signal.SIGSTOP)  # as one whose disk hangs
    process.kill()
    process.wait()
    there = sorted((program.folder / "host" / "web1" / "spool").iterdir())
    try:
        done = program.run("protect", "web1", "--qmp", hypervisor.qmp)
    finally:
        os.kill(sink, signal.SIGKILL)
    assert "still writes" in done.err
    assert sorted((program.folder / "host" / "web1" / "spool").iterdir()) == there
    stopped(started(program, hypervisor))
    same(program, hypervisor)


def test_another_tools_job_on_a_disk(program: Program, hypervisor: Hypervisor) -> None:
    """The first disk can be tapped, the second cannot: then neither is."""
    hypervisor.monitor.execute("blockdev-add", {"driver": "null-co", "node-name": "theirs", "size": SIZES[1]})
    job = {"job-id": "theirs", "device": "node1", "target": "theirs", "sync": "none"}
    hypervisor.monitor.execute("blockdev-mirror", job)
    done = program.run("protect", "web1", "--qmp", hypervisor.qmp)
    assert done.code == 4, done
    assert "web1 cannot be captured: vd1" in done.err
    assert hypervisor.ours() == set()
    assert [found["device"] for found in hypervisor.monitor.execute("query-block-jobs")] == ["theirs"]


@in_soak
def test_the_first_copy_can_be_given_up(program: Program, hypervisor: Hypervisor) -> None:
    process = program.start("protect", "web1", "--qmp", hypervisor.qmp, "--pace", "200k")
    _RUNNING.append(process)
    eventually(lambda: "everywhen-export" in hypervisor.ours(), "the copy goes on")
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.code == 0, done
    assert "capture ended; newest recovery point none" in done.out
    assert "are stored and will not be read again" in done.err
    (bitmap,) = hypervisor.ours()
    assert bitmap.startswith("everywhen-p-"), "by which it goes on"
    assert program.ok("points") == []
    assert program.ok("unprotect", "web1", "--qmp", hypervisor.qmp) == {"vm": "web1", "bitmaps_taken_off": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_reaches_all_processes_ends_them_in_order(program: Program, hypervisor: Hypervisor, number: int) -> None:
    """A terminal sends Ctrl-C to sink and watchdog, too, which are to stay until `protect` has what it needs of them."""
    process = program.start("protect", "web1", "--qmp", hypervisor.qmp, "--pace", "0", prefix=("setsid",))
    _RUNNING.append(process)
    eventually(lambda: state(program) == "following", "it follows")
    hypervisor.write(0, 0, 4096, 9)
    os.killpg(process.pid, number)
    done = ended(process)
    assert (done.code, "Traceback" in done.err, "could not be made" in done.err) == (0, False, False), done
    same(program, hypervisor)


def test_a_terminal_that_is_closed_ends_it_in_order_and_a_pipe_that_nobody_reads_does_not(
    program: Program, hypervisor: Hypervisor
) -> None:
    """No tap is to stay in QEMU because a shell was left."""
    as_from_a_shell = ("env", "--default-signal=HUP", "setsid")  # nohup has it ignored, which `protect` keeps to
    process = program.start("protect", "web1", "--qmp", hypervisor.qmp, "--pace", "0", prefix=as_from_a_shell)
    _RUNNING.append(process)
    eventually(lambda: state(program) == "following", "it follows")
    assert process.stderr is not None
    process.stderr.close()
    hypervisor.write(0, 0, 4096, 9)
    program.ok("mark", "web1", "nobody reads that it is made")
    hypervisor.write(0, 65536, 4096, 10)
    assert state(program) == "following"
    for _ in range(2):  # the kernel's and the shell's
        os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(60) == 0
    assert all(name.startswith("everywhen-p-") for name in hypervisor.ours()), "bitmaps alone"
    same(program, hypervisor)


def test_who_hangs_up_at_once_ends_nothing(program: Program, hypervisor: Hypervisor) -> None:
    process = started(program, hypervisor)
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as passer_by:
            passer_by.connect(str(program.folder / "host" / "web1" / "sockets" / "sink.sock"))
    hypervisor.write(0, 18 * MIB, 4096, 5)
    done = stopped(process)
    assert "capture was lost" not in done.err
    same(program, hypervisor)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--seal-every", "0s"], "points are at least a second apart"),
        (["--spool-limit", "0"], "--spool-limit 0: at least 1M"),
    ],
)
def test_settings_that_can_only_fail_are_refused(program: Program, tmp_path: Path, options: list[str], why: str) -> None:
    done = program.run("protect", "web1", "--qmp", tmp_path / "qmp.sock", *options)
    assert done.code == 2, done
    assert why in done.err


def test_what_is_no_socket_is_no_vm_that_is_off(program: Program, tmp_path: Path) -> None:
    done = program.run("protect", "web1", "--qmp", tmp_path)
    assert done.code == 1, done
    assert f"{tmp_path} is no socket" in done.err


def test_a_wrong_monitor_is_said_at_once_although_the_vm_has_points(program: Program, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(MIB))
    program.backup("web1", f"vda={image}")
    done = program.run("protect", "web1", "--qmp", tmp_path / "none.sock")
    assert done.code == 1, done
    assert "cannot be captured" in done.err


@pytest.mark.parametrize("kind", ["missing", "stale", pytest.param("silent", marks=in_soak)])
def test_a_monitor_that_is_none(program: Program, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "qmp.sock"
    listening = socket.socket(socket.AF_UNIX)
    if kind != "missing":
        listening.bind(str(path))
    if kind == "silent":
        listening.listen()
    done = program.run("protect", "web1", "--qmp", path)
    listening.close()
    assert done.code == 1, done
    assert "cannot be captured" in done.err
    assert ("serves one client at a time" in done.err) == (kind == "silent")
    assert "Traceback" not in done.err
    assert program.ok("status")["vms"] == [], "of what was mistyped nothing stays in the repository"


def test_a_folder_that_can_have_no_sockets_is_named(program: Program, tmp_path: Path) -> None:
    program.environment["EVERYWHEN_STATE"] = str(tmp_path / ("x" * 80))
    done = program.run("protect", "web1", "--qmp", tmp_path / "qmp.sock")
    assert done.code == 2, done
    assert "which no socket's name may be" in done.err
    assert "EVERYWHEN_STATE" in done.err


def spooled(folder: Path) -> int:
    """How many records are in the spool's files."""

    def opener(header: SegmentHeader) -> Cipher:
        return open_segment(Keyset(b"", {}), header.repository, header.cipher, header.generation, header.key)

    return sum(
        len(group)
        for file in spool_files(folder / "host" / "web1" / "spool")
        for group, _ in read_spooled(file, opener, last=True)
    )


@in_soak
def test_a_damaged_spool_is_set_aside_and_capture_goes_on(program: Program, hypervisor: Hypervisor) -> None:
    process = started(program, hypervisor)
    host = program.folder / "host" / "web1"
    hypervisor.write(0, 7 * MIB, 65536, 4)
    eventually(lambda: ask(host, {"wish": "status"})["durable"] >= 5, "spooled: four marks and the write")
    process.kill()
    ended(process)
    (file,) = [one.path for one in spool_files(host / "spool")]
    content = bytearray(file.read_bytes())
    file.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    process = started(program, hypervisor)
    done = stopped(process)
    assert "spool-damaged-" in done.err
    assert len(list(host.glob("spool-damaged-*/*.segment"))) == 1
    same(program, hypervisor)
