# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen boot --define --production`: a guest runs from the backup, and moves while it writes; all is killed meanwhile."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from xml.etree.ElementTree import Element

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from everywhen.capture.domain_xml import domain_element
from tests.bootable import bootable, needs_bootable
from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.long_forms import in_soak
from tests.moments import rfc3339
from tests.processes import TIED
from tests.program import PROGRAM, Program

pytestmark = [needs_bootable, pytest.mark.xdist_group("libvirt"), pytest.mark.timeout(300)]
MIB = 1 << 20
_KIB = 256 << 10
CONSOLE = "<serial type='pty'/><console type='pty'/>"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its guest shows a login prompt."""
    return bootable(tmp_path_factory.mktemp("disk"), "login")


@pytest.fixture
def guest(libvirtd: Libvirtd, disk: Path) -> Iterator[Guest]:
    """Shut off; it can boot."""
    with Guest(libvirtd, "web1", [(MIB, "raw"), (4 * MIB, "qcow2")], more=CONSOLE) as made:
        shutil.copy(disk, made.images[0])
        for flag in (libvirt.VIR_DOMAIN_MEM_MAXIMUM, 0):
            made.raw.setMemoryFlags(_KIB, flag | libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        yield made


@pytest.fixture
def was(guest: Guest) -> str:
    """Its definition, before its host died."""
    return str(guest.raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


@pytest.fixture
def program(tmp_path: Path, guest: Guest, was: str) -> Program:
    """A repository that has the guest, with its definition, `was`. Its host has died: no domain is there, and no images."""
    with LibvirtCapture(tmp_path, guest) as capture:
        capture.begin()
        eventually(lambda: capture.state == "off" and capture.wish("status")["in_sync"], "its images are read")
        capture.stop()
    guest.raw.undefine()
    for image in guest.images:
        image.unlink()
    return capture.program


class Console:
    """A domain's serial console."""

    def __init__(self, guest: Guest) -> None:
        self.text = ""
        self._stream = guest.libvirtd.connection.newStream(0)
        guest.raw.openConsole(None, self._stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(libvirt.libvirtError):  # it is over already
            self._stream.abort()
        self._thread.join(10)

    def _read(self) -> None:
        with suppress(libvirt.libvirtError):
            while part := self._stream.recv(4096):
                self.text += part.decode(errors="replace")

    def type(self, line: str) -> None:
        self._stream.send(f"{line}\n".encode())

    def says(self, what: str, times: int = 1) -> None:
        """Wait until it has said that."""
        eventually(lambda: self.text.count(what) >= times, f"the guest says {what!r}", 120)


class Recovery:
    """A running `boot --production`; left alone, it is killed at the end."""

    def __init__(self, program: Program, guest: Guest, *more: str) -> None:
        number = len(list(program.folder.glob("boot-*.said")))
        self._said, self._out = (program.folder / f"boot-{number}.{end}" for end in ("said", "out"))
        command = [*TIED, str(PROGRAM), *_words(guest), "--json", *more]
        with self._said.open("wb") as said, self._out.open("wb") as out:
            # No pipe: nobody reads it while the test does something else.
            self.process = subprocess.Popen(
                command, cwd=program.folder, env=program.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=said
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def runs(self) -> Self:
        """The guest runs from the backup."""
        eventually(lambda: "runs from the backup" in self.told or self.process.poll() is not None, "it runs", 60)
        assert self.process.poll() is None, self.told
        return self

    @property
    def told(self) -> str:
        """All that it has said."""
        return self._said.read_text() + self._out.read_text()

    def ended(self, code: int = 0) -> Any:
        """Its document."""
        assert self.process.wait(120) == code, self.told
        return json.loads(self._out.read_text())

    def kill(self) -> None:
        """It ends without a word."""
        self.process.kill()
        self.process.wait()


def _words(guest: Guest) -> list[str]:
    return ["boot", "web1@latest", "--define", guest.libvirtd.uri, "--production"]


def mirrors(guest: Guest) -> dict[str, bool]:
    """Which disks are copied, and whether they are in sync."""
    disks = domain_element(guest.raw.XMLDesc(0)).iterfind("devices/disk[mirror]")
    return {_of(disk, "target", "dev"): _of(disk, "mirror", "ready") == "yes" for disk in disks}


def _of(disk: Element, child: str, attribute: str) -> str:
    found = disk.find(child)
    return "" if found is None else found.get(attribute, "")


def sources(guest: Guest, flags: int = 0) -> list[str]:
    """The files that its disks are on."""
    return [_of(disk, "source", "file") for disk in domain_element(guest.raw.XMLDesc(flags)).iterfind("devices/disk")]


def on_its_own(program: Program, guest: Guest) -> None:
    """It runs on its own storage, is defined so, and nobody would go on with anything."""
    assert guest.raw.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
        assert sources(guest, flags) == [str(image) for image in guest.images]
    state = Path(program.environment["EVERYWHEN_STATE"]) / "web1"
    assert not (state / "instant.json").exists()
    assert list((state / "spool").iterdir()) == []


def restored(program: Program, moment: str) -> bytes:
    program.restore(moment, program.folder / "back.raw", "--overwrite")
    return (program.folder / "back.raw").read_bytes()


def test_a_guest_goes_on_when_what_serves_it_is_killed_and_moves(program: Program, guest: Guest, was: str) -> None:
    with Recovery(program, guest, "--pace", "64k").runs() as boot, Console(guest) as console:
        console.says("guest login: ")
        console.type("write 1")
        console.says("wrote 1.")
        between = rfc3339(time.time_ns())
        boot.kill()
        console.type("write 2")
        eventually(lambda: guest.raw.state()[0] == libvirt.VIR_DOMAIN_PAUSED, "QEMU has stopped its guest", 60)
        assert "wrote 2." not in console.text
        assert "stands still, as nobody serves it" in program.run("status").out
        with Recovery(program, guest, "--pace", "64k").runs() as again:
            console.says("wrote 2.")
            eventually(lambda: len(mirrors(guest)) == 2, "both disks are copied", 60)
            for name in mirrors(guest):
                guest.raw.blockJobSetSpeed(name, 0, 0)
            moved = again.ended()
        console.type("read")
        console.says("holds 2.")
        on_its_own(program, guest)
        console.type("off")
        eventually(lambda: not guest.domain.runs, "it powers off", 60)
        assert "failed" not in console.text
    assert guest.raw.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == was, "in every letter"
    for number, name in enumerate(("vda", "vdb")):
        assert restored(program, f"web1/{name}@{moved['point']}") == _content(guest, number), "not a write is missing"
    assert restored(program, f"web1/vdb@{between}").startswith(b"1\n"), "any moment while it ran from the backup"
    assert restored(program, "web1/vdb@latest").startswith(b"2\n")
    assert program.run("verify", "--read-data").code == 0


def _content(guest: Guest, number: int) -> bytes:
    raw = guest.folder / "content"
    image, kind = guest.images[number], guest.formats[number]
    subprocess.run(["qemu-img", "convert", "-f", kind, "-O", "raw", image, raw], check=True)
    return raw.read_bytes()


@in_soak
def test_ended_and_killed_in_each_phase(program: Program, guest: Guest) -> None:
    record = Path(program.environment["EVERYWHEN_STATE"]) / "web1" / "instant.json"
    with Recovery(program, guest, "--pace", "64k").runs() as boot:
        other = program.run("boot", "web1@-1s", *_words(guest)[2:])
        assert (other.code, "Another run serves web1" in other.err) == (4, True), other
        eventually(lambda: len(mirrors(guest)) == 2, "both disks are copied", 60)
        boot.process.send_signal(signal.SIGINT)
        assert boot.ended(130)["error"]["code"] == "interrupted"
    assert guest.raw.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    other = program.run("boot", "web1@-1s", *_words(guest)[2:])
    assert (other.code, "was begun to be brought back as web1@latest" in other.err) == (4, True), other
    with Recovery(program, guest, "--pace", "64k").runs() as boot:
        eventually(lambda: guest.raw.state()[0] == libvirt.VIR_DOMAIN_RUNNING and len(mirrors(guest)) == 2, "it goes on", 60)
        guest.signal(signal.SIGKILL)
        assert "web1 is off" in boot.ended(1)["error"]["what"]
    with Recovery(program, guest, "--pace", "64k").runs() as boot:
        eventually(lambda: mirrors(guest).get("vdb") is True, "one disk is in sync", 60)
        assert mirrors(guest)["vda"] is False
        document = json.loads(record.read_text()) | {"suspended": True}
        record.write_text(json.dumps(document))
        guest.raw.suspend()
        guest.raw.blockJobAbort("vdb", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        boot.kill()
    refused = program.run(*_words(guest), "--back")
    assert (refused.code, "on its own storage already" in refused.err) == (1, True), refused
    with Recovery(program, guest) as boot:
        boot.ended()
    on_its_own(program, guest)
    record.write_text(json.dumps(document))
    guest.raw.suspend()
    with Recovery(program, guest) as boot:
        boot.ended()
    on_its_own(program, guest)
    assert program.run("verify", "--read-data").code == 0


@in_soak
def test_taken_back(program: Program, guest: Guest, was: str, tmp_path: Path) -> None:
    before = program.ok("points", "web1")
    dry = program.run(*_words(guest), "--dry-run")
    assert (dry.code, guest.libvirtd.connection.listAllDomains()) == (0, []), dry
    nothing = program.run(*_words(guest), "--back")
    assert (nothing.code, "is not being brought back" in nothing.err) == (6, True), nothing
    with Recovery(program, guest, "--pace", "64k").runs() as boot, Console(guest) as console:
        console.says("guest login: ")
        console.type("write 3")
        console.says("wrote 3.")
        boot.kill()
    program.ok(*_words(guest), "--back")
    assert guest.libvirtd.connection.listAllDomains() == []
    assert not any(image.exists() for image in guest.images)
    assert restored(program, "web1/vdb@latest").startswith(b"3\n"), "what it wrote is in its timeline"
    assert len(program.ok("points", "web1")) > len(before)
    guest.libvirtd.connection.defineXML(was)
    with LibvirtCapture(tmp_path, guest, repository=program.repo) as capture:
        capture.begin()
        eventually(lambda: capture.state == "off", "it waits for the VM")
        beside = program.run(*_words(guest))
        assert (beside.code, "A capture of web1 runs on this host" in beside.err) == (4, True), beside
        capture.stop()
    taken = program.run(*_words(guest))
    assert (taken.code, 'There is a domain "web1" already' in taken.err) == (1, True), taken
