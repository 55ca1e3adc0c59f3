# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real guest under libvirt, rolled back while it is captured: its files are those of then, its branch has the newer ones."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from tests.guest import KERNEL, SIZES, initramfs, needs_kernel
from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.long_forms import in_soak

pytestmark = [pytest.mark.xdist_group("libvirt"), needs_kernel]

_BOOTED = "<kernel>{folder}/vmlinuz</kernel><initrd>{folder}/initramfs</initrd><cmdline>console=ttyS0 quiet panic=0</cmdline>"
_PORT = "<serial type='null'/><serial type='unix'><source mode='bind' path='{folder}/port'/></serial>"
RECORD = 512


@pytest.fixture
def guest(libvirtd: Libvirtd) -> Iterator[Guest]:
    port = _PORT.format(folder=libvirtd.folder / "records")
    with Guest(libvirtd, "records", [(size, "raw") for size in SIZES], os_more=_BOOTED, more=port) as made:
        for image in made.images:
            subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True)
        initramfs(made.folder)
        (made.folder / "vmlinuz").write_bytes((KERNEL / "vmlinuz").read_bytes())
        made.raw.undefine()
        libvirtd.connection.defineXML(
            made.xml.replace("<memory unit='MiB'>32<", "<memory unit='MiB'>128<").replace(
                "<vcpu>", "<genid>3e3fce45-4f53-4fa7-bb32-11f34168b82b</genid><vcpu>"
            )
        )
        made.raw.create()
        yield made


@contextmanager
def talked_to(guest: Guest) -> Iterator[socket.SocketIO]:
    """The guest's program, which has just come up, and has mounted its disks."""
    with socket.socket(socket.AF_UNIX) as port:
        port.settimeout(90)
        eventually(lambda: connected(port, guest.folder / "port"), "the guest has a port")
        with port.makefile("rwb", buffering=0) as lines:
            heard(lines, b"up\n")
            lines.write(b"start\n")
            heard(lines, b"started\n")
            yield lines


def connected(port: socket.socket, path: Path) -> bool:
    try:
        port.connect(str(path))
    except OSError:
        return False
    return True


def heard(lines: socket.SocketIO, wanted: bytes) -> None:
    while (line := lines.readline()) != wanted:
        assert line, "it has ended"
        assert not line.startswith(b"error"), line


def record(lines: socket.SocketIO, number: int) -> None:
    lines.write(b"go %d\n" % number)
    heard(lines, b"safe %d\n" % number)


def records(capture: LibvirtCapture, moment: str) -> list[int]:
    """Numbers of the records on the first disk at a moment."""
    target = capture.program.folder / "records"
    target.unlink(missing_ok=True)
    done = capture.program.run("cp", f"{moment}:/p0/records", str(target))
    assert done.code in (0, 5), done
    content = target.read_bytes()
    return [int.from_bytes(content[at + 4 : at + 12], "little") for at in range(0, len(content), RECORD)]


@in_soak
@pytest.mark.timeout(600)
def test_a_guests_files_are_back_and_the_branch_has_the_newer_ones(tmp_path: Path, guest: Guest) -> None:
    with LibvirtCapture(tmp_path, guest) as capture:
        with talked_to(guest) as lines:
            capture.start("--seal-every", "1h")
            record(lines, 0)
            record(lines, 2)
            capture.program.ok("mark", "web1", "before update")
            record(lines, 4)
            record(lines, 6)
        uri = guest.libvirtd.uri
        generation = guest.domain.xml(running=False).partition("<genid>")[2][:36]
        arguments = ["--libvirt", uri, "--yes-stop", "web1", "--power-off"]
        done = capture.program.ok("rollback", 'web1@"before update"', *arguments)["vms"]["web1"]
        with talked_to(guest) as lines:  # at once: what it says while nobody listens is lost
            assert "new VM-Generation-ID" in done["said"]
            assert guest.domain.xml(running=True).partition("<genid>")[2][:36] != generation
            assert records(capture, f"web1/vda@{done['point']}") == [0, 2]
            assert records(capture, "web1~1/vda@latest") == [0, 2, 4, 6]
            capture.follows()
            newest = capture.points()[0]
            stored = sum(disk["bytes_stored"] for disk in newest["disks"].values())
            assert stored < 4 << 20, "what it has written since it was started, not its disks"
            record(lines, 8)
        forward = capture.program.ok("rollback", "web1~1", *arguments)["vms"]["web1"]
        with talked_to(guest) as lines:
            assert forward["branch"] == "web1~2"
            assert records(capture, f"web1/vda@{forward['point']}") == [0, 2, 4, 6]
            assert records(capture, "web1~2/vda@latest") == [0, 2, 8]
            capture.follows()
            record(lines, 10)
        guest.raw.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
        eventually(lambda: capture.state == "off" and capture.wish("status")["in_sync"], "all of it is captured")
        capture.stop()
        capture.program.restore("web1", tmp_path / "back")
        for image in guest.images:
            assert (tmp_path / "back" / f"web1-{image.stem}.raw").read_bytes() == image.read_bytes()
        assert capture.program.run("verify").code == 0
