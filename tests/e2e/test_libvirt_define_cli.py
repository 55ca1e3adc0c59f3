# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen restore --define`: a domain that is gone is there again, starts, and its guest answers; beside the original; on
images that are there; and what is refused before the first byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from tests.bootable import bootable, needs_bootable
from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.program import Done, Program

pytestmark = [needs_bootable, pytest.mark.xdist_group("libvirt"), pytest.mark.timeout(300)]
MIB = 1 << 20
_KIB = 256 << 10
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


def define(program: Program, guest: Guest, *more: str | Path) -> Done:
    return program.run("restore", "web1", "--define", guest.libvirtd.uri, *more)


def defined(program: Program, guest: Guest, *more: str | Path) -> Any:
    done = define(program, guest, *more, "--json")
    assert done.code == 0, done
    return done.document


def test_a_domain_that_is_gone_comes_back_and_answers(program: Program, guest: Guest, disk: Path) -> None:
    uuid, was = guest.domain.uuid, guest.raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    gone(guest)
    back = program.start("restore", "web1", "--define", guest.libvirtd.uri, "--start", "--json")
    out, err = back.communicate(timeout=100)
    assert back.returncode == 0, out + err
    said = json.loads(out)
    assert (said["name"], said["uuid"], said["as"], said["genid"]) == ("web1", uuid, "original", "none")
    assert (said["started"], said["seen_by"]) == (True, "login prompt")
    assert 0 < said["seconds_up"] <= said["seconds"]
    assert {disk: (one["path"], one["format"]) for disk, one in said["disks"].items()} == {
        "vda": (str(guest.images[0]), "raw"),
        "vdb": (str(guest.images[1]), "qcow2"),
    }
    assert guest.domain.uuid == uuid
    assert guest.domain.runs
    assert guest.raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == was, "in every letter"
    assert not list(Path(program.environment["EVERYWHEN_STATE"]).glob("_returning/*.json"))
