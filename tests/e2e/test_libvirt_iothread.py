# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect --libvirt` of a domain whose disks iothreads serve: one is read beside QEMU, one is pushed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from everywhen.capture.staying import STAY
from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.program import qemu_img

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20


def test_disks_with_iothreads(tmp_path: Path, libvirtd: Libvirtd) -> None:
    with Guest(libvirtd, "web1", [(8 * MIB, "raw"), (4 * MIB, "qcow2")]) as guest:
        xml = guest.domain.xml(running=False).replace("<vcpu", "<iothreads>1</iothreads><vcpu", 1)
        for kind in guest.formats:
            xml = xml.replace(f"type='{kind}'", f"type='{kind}' iothread='1'", 1)
        libvirtd.connection.defineXML(xml)
        guest.start()
        guest.write(0, 0, 2 * MIB, 1)
        guest.write(1, MIB, MIB, 2)
        with LibvirtCapture(tmp_path, guest) as capture:
            capture.start()
            guest.write(0, 5 * MIB, 4096, 7)
            guest.write(1, 0, 512, 8)
            capture.stop()
            guest.raw.destroy()
            folder = tmp_path / "back"
            capture.program.restore("web1", folder)
        for image, kind in zip(guest.images, guest.formats, strict=True):
            qemu_img("compare", "-f", "raw", "-F", kind, folder / f"web1-{image.stem}.raw", image)


def test_what_libvirt_says_while_one_is_pushed(tmp_path: Path, libvirtd: Libvirtd) -> None:
    """To save a domain is to migrate it into a file, which QEMU must not do over a push."""
    with Guest(libvirtd, "saved", [(16 * MIB, "qcow2")]) as guest:
        content = tmp_path / "content"
        content.write_bytes(random.Random(3).randbytes(8 * MIB).ljust(16 * MIB, b"\0"))
        qemu_img("convert", "-f", "raw", "-O", "qcow2", content, guest.images[0])
        xml = guest.domain.xml(running=False).replace("<vcpu", "<iothreads>1</iothreads><vcpu", 1)
        libvirtd.connection.defineXML(xml.replace("type='qcow2'", "type='qcow2' iothread='1'", 1))
        guest.start()
        with LibvirtCapture(tmp_path, guest) as capture:
            capture.begin("--pace", "1M")
            eventually(lambda: STAY in guest.ours(), "it is pushed")
            with pytest.raises(libvirt.libvirtError, match=f"'{STAY}' does not support live migration"):
                guest.raw.managedSave()
            guest.write(0, MIB, 4096, 7)
            assert capture.state == "copying"
