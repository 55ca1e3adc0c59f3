# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect --libvirt` of a domain whose disks iothreads serve: one is read beside QEMU, one is pushed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.program import qemu_img

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    with Libvirtd() as running:
        yield running


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
