# SPDX-License-Identifier: AGPL-3.0-or-later
"""Live migration of a VM under capture, from one real QEMU to another: it goes on, nothing is claimed of what is written where
nobody captures, and afterwards only what changed is stored. Both are on one host: two hosts with shared storage were not tried.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.capture import bitmaps, leftovers
from everywhen.capture.hypervisor import QmpSocket
from everywhen.capture.nodes import find_disks
from everywhen.capture.qmp import CommandFailed
from everywhen.formats.ids import PointId
from tests.bridged import MIB, STORED, captured, figures, filled, same
from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.long_forms import in_soak
from tests.migrating import Destination, leaves, migration, moves, run_state
from tests.program import Program, ended


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Hypervisor]:
    """Its guest runs: nothing but firmware that finds nothing to boot."""
    with filled(tmp_path / "first") as made:
        made.monitor.execute("cont")
        yield made


@pytest.fixture
def second(tmp_path: Path, first: Hypervisor) -> Iterator[Destination]:
    with Destination(first, tmp_path / "second") as made:
        yield made


def test_away_and_back(program: Program, first: Hypervisor, second: Destination, tmp_path: Path) -> None:
    with captured(program, first) as capture:
        first.write(0, MIB, 4096, 7)
        leaves(first, second)
        capture.reaches("off")
        same(program, second)  # the last write is in
        second.monitor.execute("cont")
        second.write(0, 2 * MIB, 4096, 8)
        assert not capture.ask({"wish": "status"})["in_sync"], "what it writes there is not captured"
        assert "the VM was migrated" in capture.said
        assert first.ours() == set() or all(name.startswith("everywhen-p-") for name in first.ours()), "bitmaps alone"
        first.quit()
        capture.stop()
    with captured(program, second) as capture, Destination(second, tmp_path / "third") as third:
        same(program, second)
        second.write(1, MIB, 4096, 9)
        moves(second, third)
        third.write(1, 3 * MIB, 4096, 10)
        capture.reaches("off")
        capture.stop()
        second.quit()
        with captured(program, third) as capture:
            capture.stop()
        same(program, third)
    stored = figures(program, "bytes_stored")
    assert max(stored.values()) < STORED, stored


@in_soak
def test_where_it_will_arrive_capture_waits(program: Program, first: Hypervisor, second: Destination) -> None:
    done = program.run("protect", "web1", "--qmp", second.qmp)
    assert done.code == 1, done
    assert "about to arrive by migration" in done.err
    with captured(program, first) as capture:
        capture.stop()
    with Capture(program, "web1", second.qmp, "--pace", "0") as capture:
        capture.reaches("off")
        first.write(0, MIB, 4096, 7)
        moves(first, second)
        capture.reaches("following")
        second.write(0, 2 * MIB, 4096, 8)
        capture.stop()
    same(program, second)
    assert max(figures(program, "bytes_stored").values()) < STORED


def test_a_migration_that_fails_costs_nothing(program: Program, first: Hypervisor, second: Destination) -> None:
    with captured(program, first) as capture:
        first.monitor.execute("migrate-set-parameters", {"max-bandwidth": 65536})
        first.monitor.execute("migrate", {"uri": second.address})
        eventually(lambda: migration(first) == "active", "it is under way")
        first.write(0, MIB, 4096, 7)
        second.kill()
        eventually(lambda: migration(first) == "failed", "it fails")
        assert run_state(first) == "running"
        first.write(0, 2 * MIB, 4096, 8)
        assert first.write_errors(0) == 0
        assert capture.state() == "following"
        capture.stop()
        assert "capture was lost" not in capture.said
    same(program, first)


@in_soak
@pytest.mark.parametrize("meanwhile", ["following", "paused", "ended"])
def test_back_in_the_qemu_that_it_had_left(
    program: Program, first: Hypervisor, second: Destination, meanwhile: str, tmp_path: Path
) -> None:
    """Where it had gone it wrote, and that QEMU crashed: bitmaps in the first one have nothing of that."""
    with captured(program, first) as capture:
        if meanwhile == "paused":
            assert "error" not in capture.ask({"wish": "pause", "seconds": 600})
            capture.reaches("paused")
        elif meanwhile == "ended":
            capture.stop()
        moves(first, second)
        second.write(0, 2 * MIB, 4096, 8)
        if meanwhile == "following":
            capture.reaches("off")
        second.kill()
        first.monitor.execute("cont")
        if meanwhile == "paused":
            capture.ask({"wish": "resume"})
        if meanwhile != "ended":
            capture.reaches("following")
            first.write(0, 5 * MIB, 4096, 9)
            capture.stop()
    with captured(program, first) as capture:
        capture.stop()
    same(program, first)
    assert max(figures(program, "bytes_stored").values()) < STORED


def saved(hypervisor: Hypervisor, rate: int = 1 << 30) -> None:
    """Its guest is written to a file, and goes on: to QEMU that is a migration. `rate`: bytes a second."""
    hypervisor.monitor.execute("migrate-set-parameters", {"max-bandwidth": rate})
    hypervisor.monitor.execute("migrate", {"uri": f"exec:cat > {hypervisor.folder}/saved"})
    eventually(lambda: migration(hypervisor) in ("completed", "failed"), "it is saved")
    assert migration(hypervisor) == "completed", hypervisor.monitor.execute("query-migrate")
    hypervisor.monitor.execute("cont")


def test_a_migration_is_dealt_with_once(tmp_path: Path) -> None:
    """This guest stands still, and would be sent with the same figures again, were it not slower."""
    point = PointId("p-" + "2" * 12)
    with Hypervisor(tmp_path, [MIB]) as running, QmpSocket(str(running.qmp)).monitor() as monitor:
        disks, name = find_disks(monitor), f"everywhen-{point}-vd0"
        for rate in (1 << 30, 1 << 20):
            bitmaps.begin(monitor, {"node0": "vd0"}, point)
            saved(running, rate)
            running.monitor.execute("stop")
            assert name in running.ours()
            QmpSocket(str(running.qmp)).clear_outdated(monitor, disks)
            assert name not in running.ours()
            bitmaps.begin(monitor, {"node0": "vd0"}, point)
            QmpSocket(str(running.qmp)).clear_outdated(monitor, disks)
            assert [one.point for one in bitmaps.recordings(monitor, "node0")] == [point]
            bitmaps.remove(monitor, "node0", name)
        assert len(running.ours()) == 1, "a note on the last one"
        leftovers.clear_bitmaps(monitor)
        assert running.ours() == set()


@in_soak
@pytest.mark.parametrize("then", ["protect", "unprotect"])
def test_saved_while_a_capture_reads_what_has_changed_and_is_killed(
    program: Program, first: Hypervisor, then: str, tmp_path: Path
) -> None:
    """What it exports holds a bitmap. All is read once: from then on bitmaps are believed again, until it is saved again."""
    with captured(program, first) as capture:
        capture.kill()
    (tmp_path / "noise").write_bytes(os.urandom(MIB))
    first.io(0, f"write -s {tmp_path}/noise {4 * MIB} {MIB}")
    with Capture(program, "web1", first.qmp, "--pace", "100k") as capture:
        eventually(lambda: {"everywhen-frozen", "everywhen-export"} <= first.ours(), "what has changed is read")
        capture.process.send_signal(signal.SIGSTOP)  # or it would see that the guest stands still
        saved(first)
        capture.kill()
    assert {"everywhen-frozen", "everywhen-export"} <= first.ours()
    if then == "unprotect":
        program.ok("unprotect", "web1", "--qmp", first.qmp)
        assert first.ours() == set()
    assert read_again(program, first, 5) > MIB, "all is read"
    assert read_again(program, first, 6) <= 65536, "only what has changed"
    saved(first, 1 << 20)
    assert read_again(program, first, 7) > MIB, "all is read"
    program.ok("unprotect", "web1", "--qmp", first.qmp)
    assert first.ours() == set()


def read_again(program: Program, hypervisor: Hypervisor, value: int) -> int:
    """Bytes of the first disk that a capture reads where 4 KiB have changed since the one before."""
    hypervisor.write(0, value * 4096, 4096, value)
    before = len(program.ok("points", "web1"))
    with captured(program, hypervisor) as capture:
        capture.stop()
    same(program, hypervisor)
    return int(program.ok("points", "web1")[-1 - before]["disks"]["vd0"]["bytes_read"])


@in_soak
def test_during_the_first_copy(program: Program, first: Hypervisor, second: Destination) -> None:
    process = program.start("protect", "web1", "--qmp", first.qmp, "--pace", "200k")
    try:
        eventually(lambda: "everywhen-export" in first.ours(), "the copy goes on")
        moves(first, second)
        done = ended(process)
    finally:
        process.kill()
    assert done.code == 1, done
    assert "the VM was migrated" in done.err
    assert all(name.startswith("everywhen-p-") for name in first.ours()), "bitmaps"
    second.write(0, MIB, 4096, 7)
    assert second.write_errors(0) == 0


def test_not_while_a_disk_is_pushed(program: Program, tmp_path: Path) -> None:
    """A push writes by itself, and QEMU 7.2 ended itself over that at the end of a migration, each of three times."""
    with (
        filled(tmp_path / "first", "qcow2", content=8 * MIB, iothread=True, scsi=True) as first,
        Destination(first, tmp_path / "second") as second,
    ):
        first.monitor.execute("cont")
        with Capture(program, "web1", first.qmp, "--pace", "1M") as capture:
            eventually(lambda: 0 < pushed(first) < 8 * MIB, "it is pushed")
            for _ in range(2):
                with pytest.raises(CommandFailed, match="'everywhen-sends-a-disk-just-now' does not support live migration"):
                    first.monitor.execute("migrate", {"uri": second.address})
                capture.kill()  # and what it leaves is the same
        first.monitor.execute("migrate-set-parameters", {"max-bandwidth": 65536})
        program.ok("unprotect", "web1", "--qmp", first.qmp)
        assert first.ours() == set()
        first.monitor.execute("migrate", {"uri": second.address})
        done = program.run("protect", "web1", "--qmp", first.qmp)
        assert done.code == 1, done
        assert "QEMU does not keep its VM from moving meanwhile: disallowing migration blocker (migration" in done.err
        first.monitor.execute("migrate-set-parameters", {"max-bandwidth": 1 << 30})
        eventually(lambda: run_state(second) == "paused", "the guest has arrived")
        second.write(0, MIB, 4096, 7)
        with captured(program, second) as capture:
            capture.stop()
        second.io(0, "flush")
        same(program, second)


def pushed(hypervisor: Hypervisor) -> int:
    """Bytes of a disk that a push has dealt with."""
    return max((int(job["offset"]) for job in hypervisor.monitor.execute("query-block-jobs")), default=0)


def test_doctor_says_that_the_guest_has_left(program: Program, first: Hypervisor, second: Destination) -> None:
    leaves(first, second)
    done = program.run("doctor", "--qmp", first.qmp, "--json")
    assert done.code == 5, done
    (check,) = [check for check in done.document["vms"][0]["checks"] if check["check"] == "guest"]
    assert "its guest runs in another QEMU" in check["words"]
    assert program.run("doctor", "--qmp", second.qmp).code == 0


def test_where_all_must_be_migratable_no_disk_is_pushed(program: Program, tmp_path: Path) -> None:
    more = ["-only-migratable"]
    with Hypervisor(tmp_path, [MIB], iothread=True, scsi=True, image_format="qcow2", more=more) as running:
        done = program.run("protect", "web1", "--qmp", running.qmp)
        assert done.code == 1, done
        assert "QEMU does not keep its VM from moving meanwhile: disallowing migration blocker (--only-migratable)" in done.err
        assert running.ours() == set()
    assert not list(program.folder.rglob("empty.vhd"))
