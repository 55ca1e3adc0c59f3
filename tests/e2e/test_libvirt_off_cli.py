# SPDX-License-Identifier: AGPL-3.0-or-later
"""A domain that is off: its images are a point, its start is waited for; of one that was shut down in order nothing is read."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.long_forms import in_soak
from tests.processes import running

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20


@pytest.fixture
def guest(libvirtd: Libvirtd) -> Iterator[Guest]:
    """Shut off; its second disk stands on a base in another folder."""
    base = libvirtd.folder / "base.raw"
    base.write_bytes(bytes([9]) * MIB + bytes(MIB))
    with Guest(libvirtd, "office", [(2 * MIB, "raw"), (2 * MIB, "qcow2")]) as made:
        backing = ["-b", str(base), "-F", "raw"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, made.images[1]], check=True)
        made.images[0].write_bytes(bytes([5]) * MIB + bytes(MIB))
        yield made


@pytest.fixture
def capture(tmp_path: Path, guest: Guest) -> Iterator[LibvirtCapture]:
    with LibvirtCapture(tmp_path, guest) as made:
        yield made


def test_off_on_off_and_on(capture: LibvirtCapture, guest: Guest) -> None:
    capture.begin()
    eventually(lambda: capture.state == "off" and capture.wish("status")["in_sync"], "its images are read")
    (first,) = capture.points()
    assert set(first["disks"]) == {"vda", "vdb"}
    capture.program.restore("web1", capture.program.folder / "first")
    assert (capture.program.folder / "first" / "web1-vda.raw").read_bytes() == bytes([5]) * MIB + bytes(MIB)
    assert (capture.program.folder / "first" / "web1-vdb.raw").read_bytes() == bytes([9]) * MIB + bytes(MIB)
    assert "<name>office</name>" in (capture.program.folder / "first" / "domain.xml").read_text()

    guest.start()
    capture.follows()
    guest.write(0, 4096, 4096, 6)
    content = guest.content(0)
    guest.raw.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)  # SIGTERM: QEMU ends in order
    eventually(lambda: capture.state == "off", "the end is noticed")
    assert capture.wish("status")["in_sync"], "all that was written was captured"
    points = capture.points()
    assert all(point["id"] != first["id"] for point in points[:2])
    capture.program.restore("web1/vda", capture.program.folder / "vda.raw")
    assert (capture.program.folder / "vda.raw").read_bytes() == content

    guest.images[0].write_bytes(bytes([7]) * 2 * MIB)  # somebody changes it behind the VM's back
    eventually(lambda: len(capture.points()) > len(points), "it is read again")
    capture.program.restore("web1/vda", capture.program.folder / "vda.raw", "--overwrite")
    assert (capture.program.folder / "vda.raw").read_bytes() == bytes([7]) * 2 * MIB

    guest.start()
    capture.follows()
    guest.write(1, 0, 4096, 8)
    done = capture.stop()
    assert "In sync since recovery point" in done.err
    capture.same()


@in_soak
def test_an_image_that_is_in_use_is_not_read(capture: LibvirtCapture, guest: Guest) -> None:
    holding = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=a,filename={guest.images[0]}"]
    holding += [
        "--nbd-server",
        f"addr.type=unix,addr.path={guest.folder}/nbd",
        "--export",
        "type=nbd,id=a,node-name=a,writable=on",
    ]
    with running(holding, guest.folder, (guest.folder / "nbd").exists):
        capture.begin()
        eventually(lambda: "images were not read" in str(capture.state and capture.wish("status")["why"]), "it is said")
        assert not capture.wish("status")["in_sync"]
        assert capture.points() == []
    guest.start()
    capture.follows()
    capture.stop()
    capture.same()
