# SPDX-License-Identifier: AGPL-3.0-or-later
"""A copy that takes long beside a guest that writes more than the spool holds: nothing is lost, and nothing begins again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.bridged import same
from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.long_forms import in_soak
from tests.program import Program

MIB = 1 << 20
SIZES = [32 * MIB, 8 * MIB + 4096]
SPOOL = 2 * MIB
SLOWLY = ("--pace", "8M", "--spool-limit", "2M", "--seal-every", "1h")


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path, SIZES) as running:
        noise = tmp_path / "content"
        noise.write_bytes(random.Random(5).randbytes(28 * MIB))
        running.io(0, f"write -s {noise} {MIB} {28 * MIB}")
        running.write(1, 3 * MIB, MIB, 2)
        yield running


class Guest:
    """Writes noise and zeroes anywhere on its disks, as much as a spool of this size has room for at a time."""

    def __init__(self, program: Program, hypervisor: Hypervisor, disks: tuple[int, ...] = (0, 1)) -> None:
        self._hypervisor = hypervisor
        self._spool = program.folder / "host" / "web1" / "spool"
        self._noise = program.folder / "noise"
        self._disks = disks
        self._chance = random.Random(11)
        self.written = 0
        """Bytes so far that cannot be compressed."""

    def write_while(self, goes_on: Callable[[], bool]) -> None:
        """The spool is looked at every 4 MiB of a copy: what is written between two looks must find room."""
        while goes_on():
            if sum(self._files().values()) > SPOOL // 3:
                time.sleep(0.01)  # between two looks
                continue
            before, end = self._files(), self.written + SPOOL // 8
            while self.written < end:
                self._write()
            eventually(lambda: self._files() != before, "the spool has it")  # noqa: B023 - called at once

    def _write(self) -> None:
        disk, length = self._chance.choice(self._disks), 512 * self._chance.randrange(1, 200)
        offset = self._chance.randrange((SIZES[disk] - length) // 512) * 512
        if self._chance.random() < 0.1:
            self._hypervisor.io(disk, f"write -z {offset} {length}")
        else:
            self._noise.write_bytes(self._chance.randbytes(length))
            self._hypervisor.io(disk, f"write -s {self._noise} {offset} {length}")
            self.written += length

    def _files(self) -> dict[str, int]:
        sizes = {}
        for path in self._spool.glob("*.segment"):
            with suppress(FileNotFoundError):  # it was consumed just now
                sizes[path.name] = path.stat().st_size
        return sizes


def back(program: Program, number: int, moment: str = "") -> bytes:
    path = program.folder / "back.raw"
    program.restore(f"web1/vd{number}{moment}", path, "--overwrite")
    return path.read_bytes()


@in_soak
def test_a_guest_writes_many_times_the_spool_while_it_is_copied(program: Program, hypervisor: Hypervisor) -> None:
    """The first copy; then, after a gap, of what a bitmap names; and the moments after each."""
    guest = Guest(program, hypervisor)
    for times in (2, 1):
        before = guest.written
        with Capture(program, "web1", hypervisor.qmp, *SLOWLY) as capture:
            capture.reaches("copying")
            sink = capture.sink()
            guest.write_while(lambda: capture.state() == "copying")
            capture.followed()
            assert guest.written - before > times * SPOOL, "the guest was too slow to show anything"
            states = [hypervisor.content(0)]
            for number in range(2):
                hypervisor.write(0, number * 70_144, 4096, 40 + number)
                states.append(hypervisor.content(0))
            assert capture.sink() == sink
            capture.stop()
            assert "lost" not in capture.said
        same(program, hypervisor)
        for ago, state in enumerate(reversed(states)):
            assert back(program, 0, f"@latest~{ago}" if ago else "") == state, f"{ago} writes before the end"
        for number in range(8):
            hypervisor.write(0, (2 * number + 1) * MIB + 512, 2 * MIB - 1024, 60 + number)
    assert program.run("verify", "--read-data").code == 0
    assert hypervisor.write_errors(0) == hypervisor.write_errors(1) == 0


def test_what_a_killed_copy_stored_is_not_stored_again(program: Program, hypervisor: Hypervisor) -> None:
    guest = Guest(program, hypervisor, disks=(1,))
    with Capture(program, "web1", hypervisor.qmp, *SLOWLY) as capture:
        capture.reaches("copying")
        guest.write_while(lambda: program.packs() < 12 * MIB)
        capture.kill()
    with Capture(program, "web1", hypervisor.qmp, "--pace", "0") as capture:
        capture.followed()
        capture.stop()
        assert "lost" not in capture.said
    same(program, hypervisor)
    stored = program.ok("points", "web1")[-1]["disks"]["vd0"]["bytes_stored"]
    assert stored < 20 * MIB, "of 28 there were 12"
