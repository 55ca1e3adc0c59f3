# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect --libvirt` on a real libvirtd: disks and definition come back, whatever libvirt does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from everywhen.capture.domain_xml import parse_domain
from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.long_forms import in_soak
from tests.program import Program, ended, qemu_img

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20
NAME = "Büro 1"


@pytest.fixture
def guest(libvirtd: Libvirtd) -> Iterator[Guest]:
    with Guest(libvirtd, NAME, [(8 * MIB, "raw"), (4 * MIB + 4096, "qcow2")]) as made:
        made.start()
        made.write(0, 0, 2 * MIB, 1)
        made.write(1, MIB, MIB, 2)
        yield made


@pytest.fixture
def capture(tmp_path: Path, guest: Guest) -> Iterator[LibvirtCapture]:
    with LibvirtCapture(tmp_path, guest) as made:
        yield made


def test_a_domain_comes_back(capture: LibvirtCapture, guest: Guest) -> None:
    defined = guest.domain.xml(running=False)
    capture.start()
    guest.write(0, 5 * MIB, 4096, 7)
    guest.write(1, 0, 512, 8)
    capture.stop()
    guest.raw.destroy()
    folder = capture.program.folder / "back"
    capture.program.restore("web1", folder)
    for image, kind in zip(guest.images, guest.formats, strict=True):
        qemu_img("compare", "-f", "raw", "-F", kind, folder / f"web1-{image.stem}.raw", image)
    assert (folder / "domain.xml").read_text() == defined
    assert parse_domain((folder / "domain-running.xml").read_text()).disks[0].alias == "virtio-disk0"
    # It can be defined by that, and is the same one.
    uuid = guest.domain.uuid
    guest.raw.undefine()
    guest.libvirtd.connection.defineXML((folder / "domain.xml").read_text())
    assert guest.domain.uuid == uuid
    shown = capture.program.ok("status", "web1")["vms"][0]
    assert shown["source"] == NAME


def test_a_changed_definition_is_in_the_next_point(capture: LibvirtCapture, guest: Guest) -> None:
    capture.start("--seal-every", "1s")
    guest.raw.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "the new one", None, None, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    guest.write(0, 0, 512, 3)
    capture.another_point()
    capture.stop()
    capture.program.restore("web1", capture.program.folder / "back")
    assert "<title>the new one</title>" in (capture.program.folder / "back" / "domain.xml").read_text()


@in_soak
def test_libvirtd_restarted(capture: LibvirtCapture, guest: Guest) -> None:
    capture.start()
    guest.libvirtd.stop()
    eventually(lambda: capture.state != "following", "the loss is noticed")
    guest.libvirtd.start()
    guest.write(0, 3 * MIB, 65536, 9)
    capture.follows()
    done = capture.stop()
    assert "hung up" in done.err
    capture.same()
    first, *_, last = capture.points()[::-1]
    assert first["disks"]["vda"]["bytes_read"] > MIB
    assert last["disks"]["vda"]["bytes_read"] <= 2 * 65536, "only what changed was read"
    assert guest.ours() == {f"everywhen-{last['id']}-{image.stem}" for image in guest.images}


def test_ended_and_started_again(capture: LibvirtCapture, guest: Guest) -> None:
    capture.start()
    guest.write(0, MIB, 4096, 4)
    guest.raw.destroy()
    eventually(lambda: capture.state != "following", "the end is noticed")
    guest.start()
    guest.write(0, 7 * MIB, 4096, 5)
    capture.follows()
    assert "ended from outside" in capture.stop().err
    capture.same()


@pytest.mark.parametrize(
    ("more", "code", "why"),
    [
        (["--domain", "Büro"], 6, 'there is no domain "Büro"; similar: Büro 1'),
        ([], 6, 'there is no domain "web1"'),
        (["--qmp", "/s"], 2, "not by both"),
    ],
)
def test_what_is_refused(capture: LibvirtCapture, guest: Guest, more: list[str], code: int, why: str) -> None:
    done = capture.refused("web1", "--libvirt", guest.libvirtd.uri, *more)
    assert done.code == code, done
    assert why in done.err
    assert guest.ours() == set()


def test_a_folder_where_qemu_may_not_come(capture: LibvirtCapture, guest: Guest, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    capture.program.environment["EVERYWHEN_STATE"] = str(closed)
    done = capture.refused("web1", "--libvirt", guest.libvirtd.uri, "--domain", NAME)
    assert done.code == 1, done
    assert "may not pass through" in done.err
    assert guest.ours() == set()


@in_soak
def test_a_name_stays_with_its_vm(capture: LibvirtCapture, guest: Guest) -> None:
    capture.start().stop()
    asked = ["--libvirt", guest.libvirtd.uri, "--domain", NAME]
    done = capture.refused("office", *asked)
    assert done.code == 2, done
    assert 'This VM is called "web1" here.' in done.err
    with Guest(guest.libvirtd, "web1", [(MIB, "raw")]) as another:
        another.start()
        done = capture.refused("web1", "--libvirt", guest.libvirtd.uri)
        assert done.code == 2, done
        assert f'"web1" is another VM here: its UUID was {guest.domain.uuid}' in done.err


def test_without_libvirts_library_it_is_said(tmp_path: Path) -> None:
    program = Program(tmp_path).init()
    (tmp_path / "libvirt.py").write_text("raise ImportError('no libvirt here')")
    program.environment["PYTHONPATH"] = str(tmp_path)
    done = ended(program.start("protect", "web1", "--libvirt", "qemu:///system"))
    assert done.code == 1, done
    assert "libvirt's Python library cannot be loaded: no libvirt here." in done.err
    assert "everywhen[libvirt]" in done.err
