# SPDX-License-Identifier: AGPL-3.0-or-later
"""`virsh migrate` of a domain under capture, between two real libvirtds that take themselves for two hosts, and back.

They are on one machine: images, sockets and page cache are shared as no two hosts share them.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from everywhen.capture.libvirt_host import NoDomain, NotRunning
from everywhen.capture.libvirt_vm import LibvirtVm
from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.long_forms import in_soak

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20


class ThatGuest(Guest):
    """A guest as another host has it, where it was not defined, and arrives."""

    def __init__(self, guest: Guest, libvirtd: Libvirtd) -> None:
        self.libvirtd = libvirtd
        self.name = guest.name
        self.folder = guest.folder
        self.images = list(guest.images)
        self.formats = guest.formats

    def __exit__(self, *_: object) -> None:
        with suppress(NoDomain):
            if self.domain.runs:
                self.raw.destroy()
        with suppress(NoDomain):
            self.raw.undefine()


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Libvirtd, Libvirtd]]:
    with Libvirtd("first.example") as first, Libvirtd("second.example") as second:
        yield first, second


@pytest.fixture
def here(hosts: tuple[Libvirtd, Libvirtd]) -> Iterator[Guest]:
    with Guest(hosts[0], "moving", [(8 * MIB, "qcow2"), (4 * MIB, "raw")]) as made:
        made.folder.chmod(0o777)  # QEMU, another user, makes sockets there
        for image in made.images:
            image.chmod(0o666)
        made.start()
        made.write(0, 0, MIB, 1)
        made.write(1, MIB, MIB, 2)
        yield made


@pytest.fixture
def there(hosts: tuple[Libvirtd, Libvirtd], here: Guest) -> Iterator[Guest]:
    with ThatGuest(here, hosts[1]) as made:
        yield made


@pytest.fixture
def capture(tmp_path: Path, here: Guest) -> Iterator[LibvirtCapture]:
    with LibvirtCapture(tmp_path, here) as made:
        yield made


def migrate(source: Guest, to: Guest, more: dict[str, Any] | None = None, flags: int = 0) -> None:
    """As `virsh migrate --live --persistent --unsafe` does it; the images are on storage that both have."""
    uri = {libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{source.folder}/migration.sock"}
    flags |= libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNSAFE
    source.raw.migrate3(to.libvirtd.connection, uri | (more or {}), flags)


@in_soak
def test_away_and_back(capture: LibvirtCapture, here: Guest, there: Guest, tmp_path: Path) -> None:
    capture.start()
    here.write(0, 5 * MIB, 4096, 4)
    migrate(here, there)
    eventually(lambda: capture.state == "off", "it waits")
    shown = capture.wish("status")
    assert not shown["in_sync"]
    assert not here.domain.runs
    capture.guest = there
    there.raw.resume()  # QEMU opens its images to write only then
    capture.same()  # the last write is in
    there.write(0, 6 * MIB, 4096, 5)

    folder = tmp_path / f"{tmp_path.name}-there"
    folder.mkdir()
    with LibvirtCapture(folder, there, repository=capture.program.repo) as other:
        other.start()
        there.write(1, 3 * MIB, 4096, 6)
        there.raw.suspend()
        migrate(there, here)
        capture.follows()  # also a guest that stands still, whose images QEMU has not opened to write
        here.raw.resume()
        here.write(1, 2 * MIB, 4096, 7)
        other.stop()
    assert "the VM has moved to another host" in capture.stop().err
    capture.guest = here
    capture.same()
    points = capture.points()[:-1]
    assert all(disk["bytes_stored"] < 100_000 for point in points for disk in point["disks"].values()), points


@in_soak
def test_with_its_storage(capture: LibvirtCapture, here: Guest, there: Guest) -> None:
    """libvirt copies the disks by jobs of its own, which do not stand beside a tap."""
    moved = [image.with_name(f"moved-{image.name}") for image in here.images]
    xml = here.raw.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
    for old, new in zip(here.images, moved, strict=True):
        shutil.copy(old, new)  # of that size, and with what is not to be there
        new.chmod(0o666)
        xml = xml.replace(str(old), str(new))
    sockets = {
        libvirt.VIR_MIGRATE_PARAM_DISKS_URI: f"unix://{here.folder}/disks.sock",
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: xml,
    }
    capture.start()
    with pytest.raises(libvirt.libvirtError, match="Need a root block node"):
        migrate(here, there, sockets, libvirt.VIR_MIGRATE_NON_SHARED_DISK)
    here.write(0, 5 * MIB, 4096, 4)
    assert capture.state == "following"
    capture.pause()
    migrate(here, there, sockets, libvirt.VIR_MIGRATE_NON_SHARED_DISK)
    there.raw.resume()
    there.write(0, 6 * MIB, 4096, 5)
    capture.stop()
    with LibvirtCapture(capture.program.folder, there, repository=capture.program.repo) as other:
        other.start()
        other.stop()
        other.same()
        assert all(disk["bytes_stored"] < 100_000 for disk in other.points()[0]["disks"].values())


@in_soak
def test_a_long_one(capture: LibvirtCapture, here: Guest, there: Guest) -> None:
    """libvirt lets nobody ask a QEMU whose guest is on its way: no point can be made, and capture goes on."""
    capture.start("--seal-every", "1s")
    here.raw.migrateSetMaxSpeed(1)  # MiB a second
    with ThreadPoolExecutor() as pool:
        on_its_way = pool.submit(migrate, here, there)
        eventually(lambda: here.raw.jobStats().get("memory_total", 0) > 0, "it is on its way")
        process = arriving(here)
        os.kill(process, signal.SIGSTOP)
        try:
            eventually(lambda: capture.wish("status")["waiting"] is not None, "no point can be made", 40)
            assert not on_its_way.done(), "it is on its way"
            assert capture.state == "following"
        finally:
            os.kill(process, signal.SIGCONT)
        on_its_way.result(60)
    eventually(lambda: capture.state == "off", "it waits")
    capture.guest = there
    capture.same()
    assert "libvirt does not answer within 10 s" in capture.stop().err


@in_soak
def test_one_that_does_not_arrive(here: Guest, there: Guest) -> None:
    """While it is on its way it runs where it was: its images are not read where it is to go. Afterwards nothing tells."""
    there.libvirtd.connection.defineXML(here.raw.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE))
    vm = LibvirtVm(there.libvirtd.uri, there.name)
    here.raw.migrateSetMaxSpeed(1)  # MiB a second
    with ThreadPoolExecutor() as pool:
        on_its_way = pool.submit(migrate, here, there)
        eventually(lambda: here.raw.jobStats().get("memory_total", 0) > 0, "it is on its way")
        process = arriving(here)
        os.kill(process, signal.SIGSTOP)
        try:
            assert there.domain.is_arriving
            assert vm.is_off()
            assert {disk.why_not for disk in vm.images().values()} == {"the VM runs on another host"}
            with pytest.raises(NotRunning, match="about to arrive"):
                vm.monitor()
            here.raw.abortJob()
        finally:
            os.kill(process, signal.SIGCONT)
        with pytest.raises(libvirt.libvirtError):
            on_its_way.result(60)
    assert here.domain.runs
    crashed = [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED]
    eventually(lambda: there.raw.state() == crashed, "it is said to have crashed, which is not known from here")


def arriving(guest: Guest) -> int:
    """The process that waits for it from another host: it has the guest's images, which lie in a folder of this test."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            words = path.read_bytes().split(b"\0")
            if b"-incoming" in words and any(str(guest.folder).encode() in word for word in words):
                found.append(int(path.parent.name))
    assert len(found) == 1, found
    return found[0]
