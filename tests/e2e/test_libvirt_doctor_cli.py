# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen doctor --libvirt` on a real libvirtd: all domains, running or not; it does not even taint them."""

from __future__ import annotations

from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from tests.libvirtd import Guest, Libvirtd
from tests.program import Program

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20
EMPTY_CD = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>"
ODD = """
    <disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/>
        <source type='unix' path='/nowhere.sock'/><target dev='vdu' bus='virtio'/></disk>
    <disk type='block' device='lun'><driver name='qemu' type='raw'/>
        <source dev='/dev/nowhere'/><target dev='sdl' bus='scsi'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/>
        <source file='/nowhere'/><target dev='vds' bus='virtio'/><shareable/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/>
        <source file='/nowhere'/><target dev='vdr' bus='virtio'/><readonly/></disk>
    <hostdev mode='subsystem' type='pci' managed='yes'><source><address bus='0x7' slot='0x7' function='0x0'/></source></hostdev>
    <filesystem type='mount' accessmode='passthrough'><source dir='/srv'/><target dir='srv'/></filesystem>"""


def verdicts(vm: dict[str, Any]) -> dict[str, str]:
    return {disk["device"]: disk["verdict"] for disk in vm["disks"]}


def reasons(vm: dict[str, Any], device: str) -> str:
    return " | ".join(reason["why"] for disk in vm["disks"] if disk["device"] == device for reason in disk["reasons"])


def redefined(guest: Guest, *changes: tuple[str, str]) -> None:
    """From its next start on."""
    for old, new in (("</name>", f"</name><uuid>{guest.domain.uuid}</uuid>"), *changes):
        guest.xml = guest.xml.replace(old, new)
    guest.libvirtd.connection.defineXML(guest.xml)


def test_domains(program: Program, libvirtd: Libvirtd) -> None:
    disks = [(2 * MIB, "raw"), (MIB, "qcow2")]
    with Guest(libvirtd, "web1", disks, more=EMPTY_CD) as web, Guest(libvirtd, "odd", [(MIB, "raw")]) as strange:
        redefined(web, ("<vcpu>", "<iothreads>1</iothreads><vcpu>"), ("type='qcow2'/>", "type='qcow2' iothread='1'/>"))
        shared = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
        redefined(strange, ("<vcpu>", f"{shared}<vcpu>"), ("<controller type='usb'", f"{ODD}<controller type='usb'"))
        web.start()
        before = (web.domain.xml(running=True), web.raw.messages())
        done = program.run("doctor", "--libvirt", libvirtd.uri, "--json")
        assert (web.domain.xml(running=True), web.raw.messages()) == before
        table = program.run("doctor", "web1", "--libvirt", libvirtd.uri)
    assert done.code == table.code == 5, (done, table)
    odd, web1 = done.document["vms"]
    assert (odd["vm"], web1["vm"]) == ("odd", "web1")
    assert verdicts(web1) == {"vda": "yes", "vdb": "with care", "sda": "left out"}
    assert [(disk["size"], disk["format"]) for disk in web1["disks"]][:2] == [
        (2 * MIB, "raw on file"),
        (MIB, "qcow2 v3 on file"),
    ]
    assert "iothread" in reasons(web1, "vdb")
    assert "bitmap possible" in web1["disks"][1]["after_qemu"]
    assert "web1: 2 of 2 disks can be protected" in table.out
    assert "odd" not in table.out
    assert verdicts(odd) == {
        "vda": "yes",
        "sdl": "no",
        "vds": "no",
        "vdr": "left out",
        "vdu": "no",
        "hostdev0": "with care",
        "fs0": "with care",
    }
    assert "vhost-user" in reasons(odd, "vdu")
    assert "LUN" in reasons(odd, "sdl")
    assert "by others" in reasons(odd, "vds")
    assert [check["verdict"] for check in odd["checks"] if check["check"] == "state"] == ["yes"]
    assert "state" not in {check["check"] for check in web1["checks"]}


def test_a_folder_that_qemu_may_not_enter(program: Program, libvirtd: Libvirtd) -> None:
    if libvirtd.qemu_user == "root":
        pytest.skip("QEMU is the same user as we are")
    with Guest(libvirtd, "kept-out", [(MIB, "raw")]) as guest:
        guest.start()
        # pytest's folders are of mode 0700.
        done = program.run("doctor", "kept-out", "--libvirt", libvirtd.uri, "--json")
        program.environment["EVERYWHEN_STATE"] = str(libvirtd.folder / "host")
        open_to_all = program.run("doctor", "kept-out", "--libvirt", libvirtd.uri, "--json")
    assert (done.code, open_to_all.code) == (5, 0), (done, open_to_all)
    (words,) = [check["words"] for check in done.document["vms"][0]["checks"] if check["verdict"] == "no"]
    assert "may not pass through /tmp/pytest-of" in words


def test_a_job_of_libvirts(program: Program, libvirtd: Libvirtd) -> None:
    with Guest(libvirtd, "copied", [(MIB, "raw"), (MIB, "raw")]) as guest:
        guest.start()
        target = f"<disk type='file'><driver type='raw'/><source file='{guest.folder}/copy.raw'/></disk>"
        guest.raw.blockCopy("vdb", target, flags=libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
        (vm,) = program.run("doctor", "copied", "--libvirt", libvirtd.uri, "--json").document["vms"]
        guest.raw.blockJobAbort("vdb")
    assert verdicts(vm) == {"vda": "yes", "vdb": "no"}
    assert '"of libvirt" (copy)' in reasons(vm, "vdb")


def test_what_is_not_there(program: Program, libvirtd: Libvirtd) -> None:
    with Guest(libvirtd, "web1", [(MIB, "raw")]):
        done = program.run("doctor", "wbe1", "--libvirt", libvirtd.uri, "--json")
    assert (done.code, done.error["code"]) == (6, "not_found")
    assert "similar: web1" in done.error["what"]
    done = program.run("doctor", "--libvirt", "qemu+unix:///system?socket=/nowhere", "--json")
    assert (done.code, done.error["code"]) == (1, "failed")
    assert program.run("doctor", "web1", "--libvirt", libvirtd.uri, "--qmp", "/nowhere").code == 2
