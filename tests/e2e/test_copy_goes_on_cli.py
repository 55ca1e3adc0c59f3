# SPDX-License-Identifier: AGPL-3.0-or-later
"""A first copy that is interrupted goes on where it was: by bytes that a real QEMU reads of its images, and byte for byte."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everywhen.nbd.connection import NbdConnection
from tests.bridged import same
from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.long_forms import in_soak
from tests.program import Program
from tests.storage_daemon import StorageDaemon

MIB = 1 << 20
CONTENT = 24 * MIB
SIZES = [28 * MIB, 4 * MIB + 4096]
PACE = ("--pace", "2M", "--seal-every", "1h")
SLOWLY = ("--pace", "1M", "--seal-every", "1h")


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path, SIZES) as running:
        noise = tmp_path / "content"
        noise.write_bytes(random.Random(5).randbytes(CONTENT))
        running.io(0, f"write -s {noise} {MIB} {CONTENT}")
        running.write(1, MIB, MIB, 2)
        yield running


def read_by(running: Hypervisor | StorageDaemon) -> int:
    """Bytes that QEMU has read of anything so far."""
    for line in Path(f"/proc/{running.process.pid}/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise AssertionError("the kernel does not count")


def copies(program: Program) -> Any:
    """What is kept of disks."""
    path = program.folder / "host" / "web1" / "copy.json"
    return json.loads(path.read_text())["disks"] if path.exists() else {}


def copied_to(program: Program, disk: str = "vd0") -> int:
    """Up to which byte of a disk it is."""
    one = copies(program).get(disk)
    return one["left"][0][0] << 16 if one and one["kept"] and one["left"] else 0


def begun(program: Program, hypervisor: Hypervisor, *more: str) -> Capture:
    capture = Capture(program, "web1", hypervisor.qmp, *(more or PACE))
    capture.reaches("copying")
    return capture


def completed(program: Program, hypervisor: Hypervisor) -> int:
    """Goes on to the end; how many bytes were read for it."""
    before = read_by(hypervisor)
    with Capture(program, "web1", hypervisor.qmp, "--pace", "0", "--seal-every", "1h") as capture:
        capture.followed()
        read = read_by(hypervisor) - before
        capture.stop()
        assert "lost" not in capture.said
    same(program, hypervisor)
    assert copies(program) == {}
    (newest,) = program.ok("points", "web1")
    assert hypervisor.ours() == {f"everywhen-{newest['id']}-vd{number}" for number in range(2)}
    return read


def test_an_interrupted_copy_reads_the_rest_and_what_was_changed(program: Program, hypervisor: Hypervisor) -> None:
    with begun(program, hypervisor) as capture:
        eventually(lambda: copied_to(program) >= 5 * MIB, "what was copied is kept", 60)
        first = copied_to(program)
        hypervisor.write(0, 2 * MIB, 70_000, 11)  # where it was
        hypervisor.write(0, CONTENT - MIB, 4096, 12)  # where it has not come to
        hypervisor.write(1, 0, 4096, 13)
        capture.kill()
    hypervisor.write(0, 3 * MIB + 5, 4096, 14)  # while nobody looks
    hypervisor.io(0, f"write -z {4 * MIB} {MIB}")
    before = read_by(hypervisor)
    with begun(program, hypervisor, *SLOWLY) as capture:
        eventually(lambda: read_by(hypervisor) > before + 2 * MIB, "it goes on", 60)
        hypervisor.write(0, 5 * MIB, 4096, 15)
        capture.stop()
        said = capture.said
    assert "are stored and will not be read again" in said, said
    second = copied_to(program)
    assert second > first, "Ctrl-C waits until what was read is kept"
    hypervisor.write(0, 6 * MIB, 4096, 16)
    read = completed(program, hypervisor)
    changed = 4 * MIB  # less than that; zeroes are not read
    assert read < CONTENT + MIB - second + changed, (read, first, second)
    assert program.run("verify", "--read-data").code == 0
    assert hypervisor.write_errors(0) == hypervisor.write_errors(1) == 0


@in_soak
def test_of_a_storage_daemon(program: Program, tmp_path: Path) -> None:
    """Killed in its middle; its clients write on."""
    with (
        StorageDaemon(tmp_path, (32 * MIB, 8 * MIB)) as daemon,
        NbdConnection(str(daemon.socket), "vda", timeout=30) as guest,
    ):
        with Capture(program, "web1", daemon.qmp, *PACE) as capture:
            eventually(lambda: copied_to(program, "vda") >= 4 * MIB, "a part of it is kept", 60)
            guest.answer(guest.send(MIB, b"a" * 4096))
            guest.answer(guest.send(15 * MIB, b"b" * 4096))
            capture.kill()
        kept = copied_to(program, "vda")
        guest.answer(guest.send(2 * MIB, b"c" * 70_000))
        guest.answer(guest.send_zeroes(3 * MIB, MIB))
        before = read_by(daemon)
        with Capture(program, "web1", daemon.qmp, "--pace", "0", "--seal-every", "1h").followed() as capture:
            read = read_by(daemon) - before
            guest.answer(guest.send(4 * MIB, b"d" * 512))
            capture.stop()
        assert read < 32 * MIB - kept + 2 * MIB, (read, kept)  # the other disk was complete
        for name, content in daemon.content().items():
            program.restore(f"web1/{name}", program.folder / "back.raw", "--overwrite")
            assert (program.folder / "back.raw").read_bytes() == content, f"{name} differs"


@in_soak
def test_another_qemu_remembers_nothing_and_all_is_read(program: Program, hypervisor: Hypervisor) -> None:
    with begun(program, hypervisor) as capture:
        eventually(lambda: read_by(hypervisor) > 3 * MIB, "it copies", 60)
        capture.stop()
    assert copied_to(program) > 2 * MIB
    hypervisor.quit()
    with hypervisor.images[0].open("r+b") as image:
        image.seek(2 * MIB)
        image.write(b"x" * 4096)
    hypervisor.start()
    assert completed(program, hypervisor) > CONTENT
