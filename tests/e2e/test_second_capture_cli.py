# SPDX-License-Identifier: AGPL-3.0-or-later
"""A VM under capture, and somebody who makes points of it, too: another capture, a backup; or takes one away from under it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.repository.ledger import Vm
from everywhen.services.identities import record
from everywhen.storage.posix import PosixStore
from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.laboratory import World
from tests.long_forms import in_soak
from tests.moments import rfc3339
from tests.program import Program
from tests.records import CAPTURED, made

MIB = 1 << 20
SIZES = [4 * MIB, 2 * MIB]
OPTIONS = ("--pace", "0", "--seal-every", "1h")


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    """With a second monitor, for a second capture."""
    more = ["-qmp", f"unix:{tmp_path}/second.sock,server=on,wait=off"]
    with Hypervisor(tmp_path, SIZES, more=more) as running:
        running.write(0, 0, MIB, 1)
        yield running


@pytest.fixture
def capture(program: Program, hypervisor: Hypervisor) -> Iterator[Capture]:
    with Capture(program, "web1", hypervisor.qmp, *OPTIONS) as running:
        yield running.followed()


@pytest.fixture
def elsewhere(program: Program, tmp_path: Path) -> Program:
    """The same repository as another host would have it open: its own state and caches."""
    # A short name: sockets lie below, and 107 bytes are the kernel's limit for theirs.
    (tmp_path / "b").mkdir()
    return Program(tmp_path / "b", str(program.repo))


def restored(program: Program, moment: str) -> list[bytes]:
    folder = program.folder / "back"
    program.restore(moment, folder, "--overwrite")
    return [(folder / f"web1-vd{number}.raw").read_bytes() for number in range(len(SIZES))]


def contents(hypervisor: Hypervisor) -> list[bytes]:
    return [hypervisor.content(number) for number in range(len(SIZES))]


def now() -> str:
    """This instant, as an address has it; the next write is in a later microsecond."""
    return rfc3339(time.time_ns())


def backed_up(program: Program, hypervisor: Hypervisor) -> str:
    """A backup of the images that the running VM writes to."""
    disks = [f"vd{number}={image}" for number, image in enumerate(hypervisor.images)]
    done = program.run("backup", "web1", *disks, "--live", "--json")
    assert done.code in (0, 5), done
    return str(done.document["point"])


def healthy(program: Program, hypervisor: Hypervisor) -> None:
    """No guest's write failed, and the repository is whole, also when gc has been there."""
    assert [hypervisor.write_errors(number) for number in range(len(SIZES))] == [0, 0]
    for _ in range(2):
        done = program.run("verify", "--read-data")
        assert done.code == 0, done
        program.ok("gc")


def test_what_lies_beside_is_told(program: Program, tmp_path: Path) -> None:
    """An older capture has made a point just after the first one of a later capture."""
    world, store = World(tmp_path), PosixStore(program.repo)
    with world.open(store) as repository:
        record(repository, Vm(CAPTURED, "web1", "web1", "", "", 0))
        first = made(repository, None, 1, "1", b"one")
        later = made(repository, first, 2, "2", b"two")
        beside = made(repository, first, 1, "1", b"late")
    assert program.ok("timeline", "web1")["beside"] == [beside.point]
    said = program.run("timeline", "web1").out
    assert "BESIDE" in said
    assert "1 recovery point of another capture of this VM, until 1970-01-01 00:00:00: everywhen points web1" in said
    assert program.ok("status", "web1")["vms"][0]["newest"]["point"] == later.point
    assert {point["id"] for point in program.ok("points", "web1")} == {first.point, later.point, beside.point}
    for moment, content in (("latest", b"two"), (beside.point, b"one")):
        program.restore(f"web1/vda@{moment}", tmp_path / "vda.raw", "--overwrite")
        assert (tmp_path / "vda.raw").read_bytes()[65536:65539] == content


def test_by_another_name_it_is_not_taken_from_who_has_it(program: Program, hypervisor: Hypervisor, capture: Capture) -> None:
    """Each would take it back from the other, by turns and for ever: none would stand aside for another VM."""
    second = hypervisor.qmp.with_name("second.sock")
    for command in ("protect", "unprotect"):
        done = program.run(command, "web2", "--qmp", second, "--json")
        assert done.code == 4, done
        assert "has" in done.error["what"]
        assert "as web1" in done.error["what"]
    assert [vm["vm"] for vm in program.ok("status")["vms"]] == ["web1"]
    assert capture.state() == "following"
    assert "lost" not in capture.said


@in_soak
def test_a_backup_beside_a_capture(program: Program, hypervisor: Hypervisor, capture: Capture) -> None:
    """Made between two points of the capture, and after its newest one: it is in the history, and every write is still."""
    (first,) = [point["id"] for point in program.ok("points", "web1")]
    hypervisor.write(0, 8192, 4096, 2)
    beside = backed_up(program, hypervisor)
    moments = []
    for value in (3, 4):
        hypervisor.write(1, 4096 * value, 4096, value)
        moments.append((now(), contents(hypervisor)))
    marked = capture.ask({"wish": "mark", "text": "after it"})["point"]
    for moment, content in moments:
        assert restored(program, f"web1@{moment}") == content, "a moment between the backup and the capture's next point"
    newest = backed_up(program, hypervisor)
    hypervisor.write(0, 65536, 4096, 5)
    assert restored(program, "web1@latest") == contents(hypervisor), "a moment after the newest point, which is the backup's"
    assert restored(program, "web1@latest~1") == moments[-1][1]
    assert {point["id"] for point in program.ok("points", "web1")} == {first, beside, marked, newest}
    line = program.ok("timeline", "web1")
    assert (len(line["every_write"]), line["gaps"], line["beside"]) == (1, [], [])
    assert capture.state() == "following"
    capture.stop()
    assert restored(program, "web1@latest") == contents(hypervisor)
    with Capture(program, "web1", hypervisor.qmp, *OPTIONS) as again:
        again.followed()
        hypervisor.write(0, 3 * MIB, 4096, 6)
        again.stop()
    assert restored(program, "web1@latest") == contents(hypervisor)
    healthy(program, hypervisor)


def test_a_second_capture_of_the_same_qemu_takes_over_and_back(
    program: Program, elsewhere: Program, hypervisor: Hypervisor, capture: Capture, tmp_path: Path
) -> None:
    hypervisor.write(0, 8192, 4096, 2)
    before, first = now(), contents(hypervisor)
    with Capture(elsewhere, "web1", tmp_path / "second.sock", *OPTIONS) as second:
        second.followed()
        capture.reaches("displaced")
        assert "stands aside" in capture.said
        assert "everywhen resume web1" in capture.said
        hypervisor.write(1, 4096, 4096, 3)
        between, content = now(), contents(hypervisor)
        refused = capture.ask({"wish": "mark", "text": "here"})
        assert "captured by another run on" in refused["error"]
        (status,) = program.ok("status", "web1")["vms"]
        assert status["capture"]["state"] == "displaced"
        assert any("stands aside" in need for need in status["needs"])
        assert second.state() == "following", "what one took off its taps the other did not"
        assert restored(elsewhere, "web1@latest") == content
        second.stop()
    assert capture.state() == "displaced", "it does not begin again by itself"
    hypervisor.write(0, 3 * MIB, 4096, 4)
    assert capture.ask({"wish": "resume"}) == {"resumed": True}
    capture.followed()
    hypervisor.write(0, 3 * MIB + 4096, 4096, 5)
    capture.stop()
    assert restored(program, "web1@latest") == contents(hypervisor)
    assert restored(program, f"web1@{between}") == content
    assert restored(program, f"web1@{before}") == first
    points = program.ok("points", "web1")
    assert hypervisor.ours() == {f"everywhen-{points[0]['id']}-vd{number}" for number in range(2)}
    healthy(program, hypervisor)


@in_soak
def test_the_end_of_a_run_that_stands_aside_takes_nothing_from_the_other(
    program: Program, elsewhere: Program, hypervisor: Hypervisor, capture: Capture, tmp_path: Path
) -> None:
    with Capture(elsewhere, "web1", tmp_path / "second.sock", *OPTIONS) as second:
        second.followed()
        capture.reaches("displaced")
        assert program.ok("unprotect", "web1")["bitmaps_taken_off"] == 0
        assert capture.process.wait(30) == 0
        hypervisor.write(0, 8192, 4096, 2)
        assert second.state() == "following"
        second.stop()
    assert restored(program, "web1@latest") == contents(hypervisor)


@in_soak
def test_the_same_vm_on_two_hosts_is_two_branches(
    program: Program, elsewhere: Program, hypervisor: Hypervisor, capture: Capture
) -> None:
    """A copy of a VM is started elsewhere and captured by the same name: what each wrote stays its own."""
    hypervisor.write(0, 8192, 4096, 2)
    with Hypervisor(elsewhere.folder, SIZES) as copy:
        copy.write(0, 0, 2 * MIB, 7)
        with Capture(elsewhere, "web1", copy.qmp, *OPTIONS) as second:
            second.followed()
            assert capture.state() == "following", "it has not looked yet"
            hypervisor.write(0, 12288, 4096, 3)
            assert "captured by another run on" in capture.ask({"wish": "mark", "text": "late"})["error"]
            capture.reaches("displaced")
            eventually(lambda: not _taps(hypervisor), "its taps are off")
            hypervisor.write(0, 16384, 4096, 4)
            copy.write(1, 4096, 4096, 8)
            second.ask({"wish": "mark", "text": "copy"})
            assert restored(elsewhere, "web1@latest") == contents(copy)
            assert capture.ask({"wish": "resume"}) == {"resumed": True}
            capture.followed()
            capture.ask({"wish": "mark", "text": "back"})
            assert restored(program, "web1@latest") == contents(hypervisor)
            assert restored(program, 'web1@"copy"') == contents(copy)
            copy.write(1, 8192, 4096, 9)
            second.ask({"wish": "ship"})
            second.reaches("displaced")
            assert restored(program, "web1@latest") == contents(hypervisor), "a late write of the other line is not in it"
    capture.stop()
    healthy(program, hypervisor)


@in_soak
def test_a_parent_that_is_deleted_under_an_idle_capture(program: Program, hypervisor: Hypervisor, capture: Capture) -> None:
    """As gc deletes a point that was dropped days ago: all is read again, and the next point is whole."""
    points = [point["id"] for point in program.ok("points", "web1")]
    for name in ("points", "twins/points"):
        for point in points:
            (program.repo / name / point).unlink()
    for pack in program.repo.glob("**/packs/*/*"):
        pack.unlink()
    hypervisor.write(0, 8192, 4096, 2)
    assert "was lost" in capture.ask({"wish": "mark", "text": "x"})["error"]
    capture.says("recovery point p-")
    capture.followed()
    hypervisor.write(0, 12288, 4096, 3)
    capture.stop()
    assert "all is read" in capture.said
    assert restored(program, "web1@latest") == contents(hypervisor)
    healthy(program, hypervisor)


def _taps(hypervisor: Hypervisor) -> set[str]:
    return {name for name in hypervisor.ours() if "tap" in name}
