# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rows of the table in docs/libvirt.md that take longer, or are of a pause; `test_libvirt_operations.py` has the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.long_forms import in_soak
from tests.program import ended

pytestmark = [pytest.mark.xdist_group("libvirt"), in_soak]
MIB = 1 << 20


@pytest.fixture
def guest(libvirtd: Libvirtd) -> Iterator[Guest]:
    with Guest(libvirtd, "operated", [(8 * MIB, "qcow2"), (4 * MIB, "qcow2")]) as made:
        made.start()
        made.write(0, 0, MIB, 1)
        made.write(1, MIB, MIB, 2)
        yield made
        for snapshot in made.raw.listAllSnapshots():
            snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)


@pytest.fixture
def capture(tmp_path: Path, guest: Guest) -> Iterator[LibvirtCapture]:
    with LibvirtCapture(tmp_path, guest) as made:
        yield made


def test_a_disk_attached_and_detached_in_a_pause(capture: LibvirtCapture, guest: Guest) -> None:
    capture.start()
    capture.pause()
    xml = guest.another_disk("sda", MIB)
    guest.raw.attachDevice(xml)
    guest.write(2, 0, 4096, 6)
    capture.resume()
    assert "sda" in capture.points()[0]["disks"]
    guest.write(2, 8192, 4096, 7)
    capture.pause()
    capture.same()
    guest.raw.detachDevice(xml)
    image = guest.images.pop()
    nodes = guest.execute("query-named-block-nodes", {"flat": True})
    assert not [node["file"] for node in nodes if node["file"] == str(image)], "it is closed"
    guest.write(0, 5 * MIB, 4096, 8)
    capture.resume()
    assert "sda" not in capture.points()[0]["disks"]
    guest.write(0, 6 * MIB, 4096, 9)
    assert "capture was lost" not in capture.stop().err
    capture.same()


def test_what_works_beside_capture_works_in_a_pause(capture: LibvirtCapture, guest: Guest) -> None:
    def defined_anew(raw: Any) -> None:
        xml = raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        raw.undefine()
        guest.libvirtd.connection.defineXML(xml)

    def started_anew(raw: Any) -> None:
        raw.destroy()
        guest.start()

    done: list[Callable[[Any], Any]] = [
        lambda raw: raw.checkpointCreateXML("<domaincheckpoint><name>c</name></domaincheckpoint>"),
        lambda raw: raw.checkpointLookupByName("c").delete(),
        lambda raw: raw.resume(),
        lambda raw: raw.suspend(),
        lambda raw: raw.reset(),
        lambda raw: raw.setBlockIoTune("vda", {"total_iops_sec": 10_000}, libvirt.VIR_DOMAIN_AFFECT_LIVE),
        lambda raw: raw.blockStats("vda"),
        defined_anew,
        started_anew,
    ]
    capture.start()
    for number, operation in enumerate(done):
        capture.pause()
        operation(guest.raw)
        guest.write(0, 65536 * number, 4096, 50 + number)
        capture.resume()
        guest.write(1, 65536 * number, 4096, 70 + number)
    assert "warning" not in capture.stop().err
    capture.same()


def managed_save(guest: Guest) -> None:
    guest.raw.managedSave()
    guest.start()


def save(guest: Guest) -> None:
    guest.raw.save(f"{guest.folder}/saved")
    guest.libvirtd.connection.restore(f"{guest.folder}/saved")


@pytest.mark.parametrize(("operation", "paused"), [(managed_save, True), (save, False), (save, True)])
def test_saved_and_restored(capture: LibvirtCapture, guest: Guest, operation: Callable[[Guest], None], *, paused: bool) -> None:
    capture.start()
    guest.write(0, 5 * MIB, 4096, 4)
    if paused:
        capture.pause()
    operation(guest)
    guest.write(0, 6 * MIB, 4096, 5)
    if paused:
        capture.resume()
    else:
        eventually(lambda: capture.state != "following", "the end is noticed")
        capture.follows()
    guest.write(0, 7 * MIB, 4096, 6)
    assert ("the VM was saved to a file and ended" in capture.stop().err) != paused
    capture.same()
    assert all(point["disks"]["vda"]["bytes_stored"] < MIB / 2 for point in capture.points()[:-1])


def hmp(guest: Guest, line: str) -> str:
    return str(guest.execute("human-monitor-command", {"command-line": line}))


def test_rebooted(capture: LibvirtCapture, guest: Guest) -> None:
    """libvirt presses the guest's button; when it has turned itself off, libvirt sets it back, and QEMU goes on."""
    guest.raw.resume()
    # Its firmware says where its power controller is; nobody is in it who would write there when the button is pressed.
    eventually(lambda: "0xffff" not in hmp(guest, "i/h 0x604"), "it has a power controller", 60)
    capture.start()
    number = guest.raw.ID()
    guest.raw.reboot(libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)
    guest.write(0, 5 * MIB, 4096, 4)
    with guest.monitor() as monitor:
        monitor.execute("human-monitor-command", {"command-line": "o/h 0x604 0x2000"})
        assert monitor.next_event(20, lambda event: event.name == "RESET") is not None
    eventually(lambda: guest.execute("query-status")["running"], "it runs again")
    guest.write(0, 6 * MIB, 4096, 5)
    assert guest.raw.ID() == number, "it is the same QEMU"
    assert capture.state == "following"
    assert "warning" not in capture.stop().err
    capture.same()


@pytest.mark.parametrize("ended", [False, True])
def test_what_sets_a_running_qemu_back_is_refused(capture: LibvirtCapture, guest: Guest, *, ended: bool) -> None:
    """By the command that libvirt before 9.0 gave for it; 9.0 starts QEMU anew."""
    guest.raw.snapshotCreateXML("<domainsnapshot><name>inside</name></domainsnapshot>", 0)
    capture.start()
    guest.write(0, 5 * MIB, 4096, 4)
    if ended:
        capture.stop()
    else:
        capture.pause()
    said = hmp(guest, "loadvm inside")
    assert "Device has active dirty bitmaps" in said
    if ended:
        capture.start()
    else:
        capture.resume()
    capture.same()
    capture.stop()
    capture.program.ok("unprotect", "web1", "--libvirt", guest.libvirtd.uri, "--domain", guest.name)
    assert not hmp(guest, "loadvm inside")
    assert guest.content(0)[5 * MIB] == 0
    capture.start()
    capture.same()
    capture.stop()


def external_snapshot(guest: Guest) -> None:
    xml = "<domainsnapshot><name>outside</name></domainsnapshot>"
    guest.raw.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)


@pytest.mark.parametrize("then", ["protect", "unprotect"])
def test_what_a_killed_capture_is_in_the_way_of(capture: LibvirtCapture, guest: Guest, then: str) -> None:
    """Its taps stay until it runs again or is not wanted any more; the guest writes on."""
    capture.start()
    assert capture.process is not None
    capture.process.kill()
    ended(capture.process)
    assert not guest.raw.blockJobInfo("vda"), "virsh blockjob shows none"
    guest.write(0, 5 * MIB, 4096, 4)
    with pytest.raises(libvirt.libvirtError, match="in use by block job: mirror"):
        external_snapshot(guest)
    if then == "protect":
        capture.start()
        capture.pause()
    else:
        capture.program.ok("unprotect", "web1", "--libvirt", guest.libvirtd.uri, "--domain", guest.name)
        assert guest.ours() == set()
    external_snapshot(guest)
    guest.write(0, 6 * MIB, 4096, 5)
    if then == "protect":
        capture.resume()
    else:
        capture.start()
    capture.stop()
    capture.same()


def test_renamed_and_known_by_its_name(capture: LibvirtCapture, guest: Guest) -> None:
    """The capture by the old name waits for good; begun with the new one it goes on with the same VM."""
    capture.start()
    guest.write(0, 5 * MIB, 4096, 4)
    guest.raw.destroy()
    eventually(lambda: capture.state == "off", "the end is noticed")
    guest.raw.rename("renamed")
    guest.name = "renamed"
    guest.start()
    assert capture.state == "off"
    capture.stop()
    capture.start()
    guest.write(0, 6 * MIB, 4096, 5)
    capture.stop()
    capture.same()
    assert all(point["disks"]["vda"]["bytes_stored"] < MIB / 2 for point in capture.points()[:-1])
