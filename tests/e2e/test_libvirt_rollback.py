# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen rollback` of domains of a real libvirtd: stopped, set back, started, and captured on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.program import Done

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20


@pytest.fixture
def guest(libvirtd: Libvirtd) -> Iterator[Guest]:
    with Guest(libvirtd, "office", [(8 * MIB, "raw"), (4 * MIB, "qcow2")]) as made:
        made.start()
        made.write(0, 0, 2 * MIB, 1)
        made.write(1, MIB, MIB, 2)
        yield made


@pytest.fixture
def capture(tmp_path: Path, guest: Guest) -> Iterator[LibvirtCapture]:
    with LibvirtCapture(tmp_path, guest) as made:
        yield made


def rolled_back(capture: LibvirtCapture, *arguments: str) -> Done:
    return capture.program.run("rollback", *arguments, "--libvirt", capture.guest.libvirtd.uri, "--power-off", "--json")


def test_a_captured_domain_is_set_back_and_captured_on(capture: LibvirtCapture, guest: Guest) -> None:
    capture.start("--seal-every", "1h")
    then = [guest.content(number) for number in (0, 1)]
    mark = capture.program.ok("mark", "web1", "before update")["point"]
    guest.write(0, 5 * MIB, 65536, 7)
    guest.write(1, 0, 4096, 8)
    now = [guest.content(number) for number in (0, 1)]

    refused = rolled_back(capture, f"web1@{mark}")
    assert (refused.code, "--yes-stop web1" in refused.error["do"][0]) == (2, True)
    assert guest.domain.runs
    points = len(capture.points())

    done = rolled_back(capture, f"web1@{mark}", "--yes-stop", "web1")
    assert done.code == 0, done
    found = done.document["vms"]["web1"]
    assert found["started"]
    assert guest.domain.runs
    assert [guest.content(number) for number in (0, 1)] == then
    back = next(point for point in capture.points() if point["rolled_back"])
    assert len(capture.points()) - points <= 3, "the end of what was captured, and the one that was made"
    assert found["bytes_written"] == back["disks"]["vda"]["bytes_changed"] + back["disks"]["vdb"]["bytes_changed"] == 2 * 65536

    for moment, contents in (("web1~1", now), (f"web1@{back['id']}", then)):
        folder = capture.program.folder / moment
        capture.program.restore(moment, folder)
        assert [(folder / f"web1-{disk}.raw").read_bytes() for disk in ("vda", "vdb")] == contents

    capture.follows()
    after = capture.points()[0]
    assert after["parent"] == back["id"]
    assert sum(disk["bytes_stored"] for disk in after["disks"].values()) == 0, "nothing is stored twice"
    guest.write(0, 6 * MIB, 4096, 9)
    capture.stop()
    capture.same()
    line = capture.program.ok("timeline", "web1")
    assert len(line["gaps"]) == 1, "from the start until it was captured again"
    assert line["gaps"][0]["from"] >= back["time"]
