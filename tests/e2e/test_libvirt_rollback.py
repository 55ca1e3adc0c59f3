# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen rollback` of domains of a real libvirtd: stopped, set back, started, and captured on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from everywhen.interfaces.control_socket import NobodyThere, ask
from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.long_forms import in_soak
from tests.moments import rfc3339
from tests.program import Done, Program, ended
from tests.shared_clocks import forgotten

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
    """To an instant between two points, which the journal alone knows."""
    capture.start("--seal-every", "1h")
    guest.write(0, 4 * MIB + 512, 512, 6)
    then = [guest.content(number) for number in (0, 1)]
    when = rfc3339(time.time_ns())
    guest.write(0, 5 * MIB, 65536, 7)
    guest.write(1, 0, 4096, 8)
    now = [guest.content(number) for number in (0, 1)]

    refused = rolled_back(capture, f"web1@{when}")
    assert (refused.code, "--yes-stop web1" in refused.error["do"][0]) == (2, True)
    assert guest.domain.runs
    points = len(capture.points())

    done = rolled_back(capture, f"web1@{when}", "--yes-stop", "web1")
    assert done.code == 0, done
    found = done.document["vms"]["web1"]
    assert found["started"]
    assert guest.domain.runs
    assert [guest.content(number) for number in (0, 1)] == then
    back = next(point for point in capture.points() if point["rolled_back"])
    made = [point for point in capture.points() if point["time"] <= back["time"]]  # capture may have gone on already
    assert len(made) - points <= 3, "the end of what was captured, and the one that was made"
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


@in_soak
def test_a_group_goes_back_to_one_instant(libvirtd: Libvirtd, tmp_path: Path) -> None:
    """Two domains in write order; one of them alone is told how far apart it will be."""
    with (
        Guest(libvirtd, "shop", [(2 * MIB, "raw")]) as shop,
        Guest(libvirtd, "stock", [(2 * MIB, "qcow2")]) as stock,
        forgotten(libvirtd.folder / "group"),
        ExitStack() as stack,
    ):
        program = Program(tmp_path, more={"EVERYWHEN_STATE": str(libvirtd.folder / "group")}).init()
        guests = (shop, stock)
        for guest in guests:
            guest.start()
            words = ["protect", guest.name, "--libvirt", libvirtd.uri, "--pace", "0", "--group", "erp", "--seal-every", "1h"]
            stack.enter_context(ending(program.start(*words)))
        for guest in guests:
            eventually(lambda guest=guest: state(program, guest) == "following", "it follows")  # type: ignore[misc]
            guest.write(0, 0, 4096, 1)
        program.ok("mark", "group:erp", "before")
        then = [guest.content(0) for guest in guests]
        for guest in guests:
            guest.write(0, MIB, 4096, 2)
        asked = ["--libvirt", libvirtd.uri, "--power-off"]
        alone = program.run("rollback", 'shop@"before"', *asked, "--dry-run")
        assert alone.code == 0, alone
        assert "of which others are not rolled back: they will be" in alone.err
        assert program.run("rollback", 'group:erp@"before"', *asked, "--yes-stop", "shop").code == 2
        both = program.ok("rollback", 'group:erp@"before"', *asked, "--yes-stop", "shop", "--yes-stop", "stock")["vms"]
        assert {vm: done["branch"] for vm, done in both.items()} == {"shop": "shop~1", "stock": "stock~1"}
        assert len({done["to"] for done in both.values()}) == 1
        assert [guest.content(0) for guest in guests] == then
        for guest in guests:
            eventually(lambda guest=guest: state(program, guest) == "following", "it follows again")  # type: ignore[misc]
        forward = program.ok("rollback", "shop~1", "stock~1", *asked, "--yes-stop", "shop", "--yes-stop", "stock")["vms"]
        assert {done["branch"] for done in forward.values()} == {"shop~2", "stock~2"}
        assert [guest.content(0)[MIB] for guest in guests] == [2, 2]


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        ended(process)


def state(program: Program, guest: Guest) -> str | None:
    try:
        return str(ask(Path(program.environment["EVERYWHEN_STATE"]) / guest.name, {"wish": "status"})["state"])
    except NobodyThere:
        return None


@in_soak
def test_with_its_definition(guest: Guest, capture: LibvirtCapture) -> None:
    capture.start("--seal-every", "1h")
    mark = capture.program.ok("mark", "web1", "before")["point"]
    persistent = libvirt.VIR_DOMAIN_AFFECT_CONFIG
    guest.raw.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "the new one", None, None, persistent)
    guest.raw.updateDeviceFlags(guest.disk_xml(1).replace("vdb.qcow2", "moved.qcow2"), persistent)
    guest.images[1].rename(guest.folder / "moved.qcow2")
    guest.raw.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
    done = rolled_back(capture, f"web1@{mark}", "--config")
    assert done.code == 0, done
    assert "defined as it was then" in done.document["vms"]["web1"]["said"]
    xml = guest.domain.xml(running=False)
    assert ("the new one" in xml, "moved.qcow2" in xml) == (False, True), "but where its images are now"
    assert not guest.domain.runs, "it was off"
    assert rolled_back(capture, "web1~1", "--config").code == 0
    assert "the new one" in guest.domain.xml(running=False)
    guest.start()
    capture.follows()
    capture.stop()


def test_what_is_refused(guest: Guest, capture: LibvirtCapture) -> None:
    guest.raw.destroy()
    images = [f"{image.stem}={image}" for image in guest.images]
    point = capture.program.backup("web1", *images)["point"]
    assert rolled_back(capture, f"web1@{point}").code == 6, "libvirt calls it office"
    guest.images[1].rename(guest.folder / "away")
    gone = rolled_back(capture, f"web1@{point}", "--domain", "office")
    assert (gone.code, "is not there" in gone.error["what"]) == (6, True)
    (guest.folder / "away").rename(guest.images[1])
    guest.raw.undefine()
    guest.libvirtd.connection.createXML(guest.xml, libvirt.VIR_DOMAIN_START_PAUSED)
    transient = rolled_back(capture, f"web1@{point}", "--domain", "office", "--yes-stop", "web1")
    assert (transient.code, "transient" in transient.error["what"]) == (1, True)
    assert guest.domain.runs
