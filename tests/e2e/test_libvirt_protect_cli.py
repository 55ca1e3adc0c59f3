# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect --libvirt` on a real libvirtd: disks and definition come back, whatever libvirt does."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from everywhen.capture.domain_xml import parse_domain
from everywhen.interfaces.control_socket import NobodyThere, ask
from tests.hypervisor import eventually
from tests.libvirtd import Guest, Libvirtd
from tests.program import Done, Program, ended, qemu_img

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20
NAME = "Büro 1"
_RUNNING: list[subprocess.Popen[str]] = []


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    with Libvirtd() as running:
        yield running


@pytest.fixture
def guest(libvirtd: Libvirtd) -> Iterator[Guest]:
    with Guest(libvirtd, NAME, [(8 * MIB, "raw"), (4 * MIB + 4096, "qcow2")]) as made:
        made.start()
        made.write(0, 0, 2 * MIB, 1)
        made.write(1, MIB, MIB, 2)
        yield made


@pytest.fixture
def program(tmp_path: Path, libvirtd: Libvirtd) -> Iterator[Program]:
    """Its sockets lie where QEMU, another user, may come."""
    yield Program(tmp_path, more={"EVERYWHEN_STATE": str(libvirtd.folder / f"state-{tmp_path.name}")}).init()
    for process in _RUNNING:
        if process.poll() is None:
            process.kill()
        ended(process)
    _RUNNING.clear()


def state(program: Program) -> str | None:
    """What the capture says of itself."""
    try:
        return str(ask(Path(program.environment["EVERYWHEN_STATE"]) / "web1", {"wish": "status"})["state"])
    except NobodyThere:
        return None


def started(program: Program, guest: Guest, *more: str) -> subprocess.Popen[str]:
    """Capture, until it follows every write."""
    process = program.start("protect", "web1", "--libvirt", guest.libvirtd.uri, "--domain", guest.name, "--pace", "0", *more)
    _RUNNING.append(process)
    eventually(lambda: process.poll() is not None or state(program) == "following", "it follows")
    assert process.poll() is None, ended(process)
    return process


def stopped(process: subprocess.Popen[str]) -> Done:
    """The capture ended in order."""
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.code == 0, done
    return done


def same(program: Program, guest: Guest) -> None:
    """The newest point holds what the disks hold."""
    for number, image in enumerate(guest.images):
        back = program.folder / f"{image.stem}.back"
        program.restore(f"web1/{image.stem}", back, "--overwrite")
        assert back.read_bytes() == guest.content(number), f"{image.stem} differs"


def test_a_domain_comes_back(program: Program, guest: Guest) -> None:
    defined = guest.domain.xml(running=False)
    process = started(program, guest)
    guest.write(0, 5 * MIB, 4096, 7)
    guest.write(1, 0, 512, 8)
    stopped(process)
    guest.raw.destroy()
    folder = program.folder / "back"
    program.restore("web1", folder)
    for image, kind in zip(guest.images, guest.formats, strict=True):
        qemu_img("compare", "-f", "raw", "-F", kind, folder / f"web1-{image.stem}.raw", image)
    assert (folder / "domain.xml").read_text() == defined
    assert parse_domain((folder / "domain-running.xml").read_text()).disks[0].alias == "virtio-disk0"
    # It can be defined by that, and is the same one.
    uuid = guest.domain.uuid
    guest.raw.undefine()
    guest.libvirtd.connection.defineXML((folder / "domain.xml").read_text())
    assert guest.domain.uuid == uuid
    shown = program.ok("status", "web1")["vms"][0]
    assert shown["source"] == NAME


def test_a_changed_definition_is_in_the_next_point(program: Program, guest: Guest) -> None:
    process = started(program, guest, "--seal-every", "1s")
    points = len(program.ok("points"))
    guest.raw.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "the new one", None, None, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    guest.write(0, 0, 512, 3)
    eventually(lambda: len(program.ok("points")) > points, "another point")
    stopped(process)
    program.restore("web1", program.folder / "back")
    assert "<title>the new one</title>" in (program.folder / "back" / "domain.xml").read_text()


def test_libvirtd_restarted(program: Program, guest: Guest) -> None:
    process = started(program, guest)
    guest.libvirtd.stop()
    eventually(lambda: state(program) != "following", "the loss is noticed")
    guest.libvirtd.start()
    guest.write(0, 3 * MIB, 65536, 9)
    eventually(lambda: state(program) == "following", "it follows again")
    done = stopped(process)
    assert "hung up" in done.err
    same(program, guest)
    first, *_, last = program.ok("points", "web1")[::-1]
    assert first["disks"]["vda"]["bytes_read"] > MIB
    assert last["disks"]["vda"]["bytes_read"] <= 2 * 65536, "only what changed was read"
    assert guest.ours() == {f"everywhen-{last['id']}-{image.stem}" for image in guest.images}


def test_ended_and_started_again(program: Program, guest: Guest) -> None:
    process = started(program, guest)
    guest.write(0, MIB, 4096, 4)
    guest.raw.destroy()
    eventually(lambda: state(program) != "following", "the end is noticed")
    guest.start()
    guest.write(0, 7 * MIB, 4096, 5)
    eventually(lambda: state(program) == "following", "it follows again")
    assert "ended from outside" in stopped(process).err
    same(program, guest)


@pytest.mark.parametrize(
    ("more", "code", "why"),
    [
        (["--domain", "Büro"], 1, 'there is no domain "Büro"; similar: Büro 1'),
        ([], 1, 'there is no domain "web1"'),
        (["--qmp", "/s"], 2, "not by both"),
    ],
)
def test_what_is_refused(program: Program, guest: Guest, more: list[str], code: int, why: str) -> None:
    done = program.run("protect", "web1", "--libvirt", guest.libvirtd.uri, *more)
    assert done.code == code, done
    assert why in done.err
    assert guest.ours() == set()


def test_a_domain_that_does_not_run_is_refused(program: Program, guest: Guest) -> None:
    guest.raw.destroy()
    done = program.run("protect", "web1", "--libvirt", guest.libvirtd.uri, "--domain", NAME)
    assert done.code == 1, done
    assert f'the domain "{NAME}" is not running' in done.err


def test_a_folder_where_qemu_may_not_come(program: Program, guest: Guest, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    program.environment["EVERYWHEN_STATE"] = str(closed)
    done = program.run("protect", "web1", "--libvirt", guest.libvirtd.uri, "--domain", NAME)
    assert done.code == 1, done
    assert "may not pass through" in done.err
    assert guest.ours() == set()


def test_a_name_stays_with_its_vm(program: Program, guest: Guest) -> None:
    stopped(started(program, guest))
    asked = ["--libvirt", guest.libvirtd.uri, "--domain", NAME]
    done = program.run("protect", "office", *asked)
    assert done.code == 2, done
    assert 'This VM is called "web1" here.' in done.err
    with Guest(guest.libvirtd, "web1", [(MIB, "raw")]) as another:
        another.start()
        done = program.run("protect", "web1", "--libvirt", guest.libvirtd.uri)
        assert done.code == 2, done
        assert f'"web1" is another VM here: its UUID was {guest.domain.uuid}' in done.err


def test_without_libvirts_library_it_is_said(program: Program, tmp_path: Path) -> None:
    (tmp_path / "libvirt.py").write_text("raise ImportError('no libvirt here')")
    program.environment["PYTHONPATH"] = str(tmp_path)
    done = ended(program.start("protect", "web1", "--libvirt", "qemu:///system"))
    assert done.code == 1, done
    assert "libvirt's Python library cannot be loaded: no libvirt here." in done.err
    assert "everywhen[libvirt]" in done.err
