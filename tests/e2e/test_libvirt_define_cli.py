# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen restore --define`: a domain that is gone is there again, starts, and its guest answers; beside the original; on
images that are there; and what is refused before the first byte."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from everywhen.interfaces.control_socket import NobodyThere, ask
from tests.bootable import bootable, needs_bootable
from tests.guest_agent import needs_agent
from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.long_forms import in_soak
from tests.program import Program, ended

pytestmark = [needs_bootable, pytest.mark.xdist_group("libvirt"), pytest.mark.timeout(300)]
MIB = 1 << 20
_KIB = 256 << 10
FIRMWARE = "<os firmware='efi'><firmware><feature enabled='no' name='secure-boot'/></firmware>"
CONSOLE = """<serial type='pty'/><console type='pty'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its guest shows a login prompt."""
    return bootable(tmp_path_factory.mktemp("disk"), "login")


@pytest.fixture
def guest(libvirtd: Libvirtd, disk: Path) -> Iterator[Guest]:
    """Shut off; it can boot."""
    with Guest(libvirtd, "web1", [(MIB, "raw"), (MIB, "qcow2")], more=CONSOLE) as made:
        shutil.copy(disk, made.images[0])
        for flag in (libvirt.VIR_DOMAIN_MEM_MAXIMUM, 0):
            made.raw.setMemoryFlags(_KIB, flag | libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        yield made


@pytest.fixture
def program(tmp_path: Path, guest: Guest) -> Program:
    """A repository that has the guest, with its definition."""
    with LibvirtCapture(tmp_path, guest) as capture:
        capture.begin()
        eventually(lambda: capture.state == "off" and capture.wish("status")["in_sync"], "its images are read")
        capture.stop()
        return capture.program


def gone(guest: Guest) -> None:
    """As if its host had died."""
    guest.raw.undefine()
    for image in guest.images:
        image.unlink()


def answers(program: Program, uri: str, *more: str, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    """What it says when the guest is up."""
    back = program.start("restore", "web1", "--define", uri, "--start", "--json", *more, prefix=prefix)
    try:
        out, err = back.communicate(timeout=200)
    finally:
        back.kill()
    assert back.returncode == 0, out + err
    said: dict[str, Any] = json.loads(out)
    assert (said["started"], said["seen_by"]) == (True, "login prompt")
    assert 0 < said["seconds_up"] <= said["seconds"]
    return said


def test_a_domain_that_is_gone_comes_back_and_answers(program: Program, guest: Guest) -> None:
    uuid, was = guest.domain.uuid, guest.raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    gone(guest)
    said = answers(program, guest.libvirtd.uri)
    assert (said["name"], said["uuid"], said["as"], said["genid"]) == ("web1", uuid, "original", "none")
    assert {disk: (one["path"], one["format"]) for disk, one in said["disks"].items()} == {
        "vda": (str(guest.images[0]), "raw"),
        "vdb": (str(guest.images[1]), "qcow2"),
    }
    assert guest.domain.uuid == uuid
    assert guest.domain.runs
    assert guest.raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == was, "in every letter"
    assert not list(Path(program.environment["EVERYWHEN_STATE"]).glob("_returning/*.json"))


@in_soak
@needs_agent
def test_the_agent_answers(program: Program, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> None:
    disk = bootable(tmp_path_factory.mktemp("agent"), "wait", agent=True)
    xml = guest.raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    gone(guest)
    definition = program.folder / "domain.xml"
    definition.write_text(xml)
    program.backup("web2", f"vda={disk}", f"vdb={disk}", "--config", definition)
    said = program.run("restore", "web2", "--define", guest.libvirtd.uri, "--start", "--json")
    assert said.code == 0, said
    assert said.document["seen_by"] == "guest agent"


@in_soak
def test_a_copy_runs_beside_its_original_which_is_captured(tmp_path: Path, guest: Guest) -> None:
    card = "<interface type='user'><mac address='52:54:00:aa:bb:cc'/></interface>"
    guest.raw.attachDeviceFlags(card, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    with LibvirtCapture(tmp_path, guest) as capture:
        guest.start()
        capture.start()
        guest.raw.resume()
        points = len(capture.points())
        said = answers(capture.program, guest.libvirtd.uri, "--as", "new", "--name", "web1-test")
        copy = guest.libvirtd.connection.lookupByName("web1-test")
        try:
            assert guest.domain.runs
            assert copy.isActive()
            assert said["network"].startswith("not connected")
            assert "<link state='down'/>" in copy.XMLDesc(0)
            assert capture.state == "following"
            assert len(capture.points()) >= points
        finally:
            copy.destroy()
            copy.undefine()
        guest.raw.suspend()
        capture.stop()


@in_soak
def test_what_firmware_wrote_comes_back_with_it(
    tmp_path: Path, libvirtd: Libvirtd, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = bootable(tmp_path_factory.mktemp("uefi"), "login", uefi=True)
    with Guest(libvirtd, "uefi", [(MIB, "raw")], more=CONSOLE) as guest:
        domain = guest.raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).replace("<os>", FIRMWARE)
        guest.libvirtd.connection.defineXML(domain)
        shutil.copy(disk, guest.images[0])
        for flag in (libvirt.VIR_DOMAIN_MEM_MAXIMUM, 0):
            guest.raw.setMemoryFlags(_KIB, flag | libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        with LibvirtCapture(tmp_path, guest) as capture:
            guest.start()
            nvram = guest.domain.parsed(running=True).nvram
            assert nvram is not None
            guest.raw.destroy()
            assert guest.domain.parsed(running=False).nvram is None, "libvirt says it of a running one alone"
            capture.begin(prefix=libvirtd.inside)
            eventually(lambda: capture.state == "off" and capture.wish("status")["in_sync"], "its images are read")
            capture.stop()
            guest.raw.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
            guest.images[0].unlink()
            said = answers(capture.program, libvirtd.uri, prefix=libvirtd.inside)
        assert nvram in said["files"]
        assert guest.domain.parsed(running=True).nvram == nvram


@in_soak
def test_a_group_comes_back_as_of_one_instant(tmp_path: Path, libvirtd: Libvirtd) -> None:
    program = Program(tmp_path, more={"EVERYWHEN_STATE": str(libvirtd.folder / "state-group")}).init()
    with (
        Guest(libvirtd, "erp", [(MIB, "raw")]) as erp,
        Guest(libvirtd, "erpdb", [(MIB, "qcow2")]) as database,
        ExitStack() as ends,
    ):
        guests, captures = [erp, database], []
        for guest in guests:
            guest.start()
            words = ("--libvirt", libvirtd.uri, "--group", "both", "--pace", "0")
            captures.append(program.start("protect", guest.name, *words))
            ends.callback(captures[-1].kill)
        sockets = [Path(program.environment["EVERYWHEN_STATE"]) / guest.name for guest in guests]
        eventually(lambda: all(following(one) for one in sockets), "both are followed", 60)
        erp.write(0, 4096, 4096, 7)
        database.write(0, 8192, 4096, 8)
        program.ok("mark", "group:both", "as one")
        erp.write(0, 4096, 4096, 9)
        for capture in captures:
            capture.send_signal(signal.SIGINT)
            assert ended(capture).code == 0
        for guest in guests:
            guest.raw.destroy()
        taken = program.run("restore", 'group:both@"as one"', "--define", libvirtd.uri, "--json")
        assert taken.code == 1
        assert 'There is a domain "erpdb" already' in str(taken.error)
        for guest in guests:
            gone(guest)
        said = program.ok("restore", 'group:both@"as one"', "--define", libvirtd.uri)
        assert sorted(said["vms"]) == ["erp", "erpdb"]
        assert erp.images[0].read_bytes()[4096:8192] == bytes([7]) * 4096
        assert {guest.domain.uuid for guest in guests} == {one["uuid"] for one in said["vms"].values()}


def following(sockets: Path) -> bool:
    try:
        return bool(ask(sockets, {"wish": "status"})["state"] == "following")
    except NobodyThere:
        return False
