# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every write of a VM can be gone back to: by time, by number, and after whatever ended the capture."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.moments import rfc3339
from tests.program import PROGRAM, Program

MIB = 1 << 20
SIZES = [4 * MIB, 2 * MIB + 4096]


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    with Hypervisor(tmp_path, SIZES) as running:
        running.write(0, 0, MIB, 1)
        yield running


@pytest.fixture
def capture(program: Program, hypervisor: Hypervisor) -> Iterator[Capture]:
    with captured(program, hypervisor) as running:
        yield running


def captured(program: Program, hypervisor: Hypervisor) -> Capture:
    """Followed; it makes points only when it is told to."""
    return Capture(program, "web1", hypervisor.qmp, "--pace", "0", "--seal-every", "1h").followed()


class History:
    """What the disks held after each write, and when: the reference, made without our code."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        self.states = [[hypervisor.content(number) for number in range(len(SIZES))]]
        self.times_ns = [time.time_ns()]
        """When each state was there for sure, and the next one was not yet begun."""
        self.chance = random.Random(5)

    def write(self) -> None:
        """One write; the next one is issued in a later microsecond."""
        disk = self.chance.randrange(len(SIZES))
        length = 512 * self.chance.choice([1, 3, 8, 8, 128])
        offset = self.chance.randrange((SIZES[disk] - length) // 512) * 512
        value = self.chance.randrange(1, 255)
        if self.chance.random() < 0.2:
            value = 0
            self.hypervisor.io(disk, f"write -z {offset} {length}")
        else:
            self.hypervisor.write(disk, offset, length, value)
        state = list(self.states[-1])
        state[disk] = state[disk][:offset] + bytes([value]) * length + state[disk][offset + length :]
        self.states.append(state)
        self.times_ns.append(time.time_ns())


def restored(program: Program, moment: str) -> list[bytes]:
    folder = program.folder / "back"
    program.restore(moment, folder, "--overwrite")
    return [(folder / f"web1-vd{number}.raw").read_bytes() for number in range(len(SIZES))]


def test_every_write_can_be_gone_back_to(program: Program, hypervisor: Hypervisor, capture: Capture) -> None:
    history = History(hypervisor)
    for _ in range(12):
        history.write()
    capture.ask({"wish": "mark", "text": "in the midst"})
    for _ in range(12):
        history.write()
    for number in history.chance.sample(range(25), 6):
        assert restored(program, f"web1@{rfc3339(history.times_ns[number])}") == history.states[number], number
    for back in (1, 5, 12, 13, 20, 24):
        assert restored(program, f"web1@latest~{back}") == history.states[-1 - back], f"~{back}"
    assert restored(program, "web1@in the midst") == history.states[12]
    assert restored(program, 'web1@"in the midst"~4') == history.states[8]
    assert restored(program, "web1@latest") == history.states[-1]
    beyond = program.run("restore", "web1@latest~26", "--to", "x")
    assert (beyond.code, "no single writes" in beyond.err) == (6, True), beyond
    capture.stop()
    assert restored(program, "web1@latest~3") == history.states[-4], "after the end of capture, too"


@pytest.mark.parametrize("image_format", ["qcow2", "vhdx"])
def test_in_other_formats(program: Program, hypervisor: Hypervisor, capture: Capture, image_format: str) -> None:
    history = History(hypervisor)
    for _ in range(9):
        history.write()
    capture.stop()
    image = program.folder / f"back.{image_format}"
    program.restore("web1/vd1@latest~2", image, "--format", image_format)
    program.backup("again", f"vda={image}")
    program.restore("again/vda", program.folder / "again.raw")
    assert (program.folder / "again.raw").read_bytes() == history.states[-3][1]
    whole: list[str | Path] = [PROGRAM, "restore", "web1/vd0@latest~4", "--to", "-"]
    streamed = subprocess.run(whole, env=program.environment, capture_output=True, check=True)
    assert streamed.stdout == history.states[-5][0]
    in_place = program.folder / "place.raw"
    in_place.write_bytes(history.states[-1][0])
    program.restore("web1/vd0@latest~4", in_place, "--in-place")
    assert in_place.read_bytes() == history.states[-5][0]


def test_a_killed_capture_loses_no_moment(program: Program, hypervisor: Hypervisor, capture: Capture) -> None:
    history = History(hypervisor)
    for _ in range(10):
        history.write()
    # A segment in the repository, another one in the spool.
    assert capture.ask({"wish": "ship"}) == {}
    for _ in range(5):
        history.write()
    eventually(lambda: capture.ask({"wish": "status"})["durable"] >= 19, "the spool is durable")
    capture.kill()
    capture = captured(program, hypervisor)
    for number in (0, 3, 7, 10, 13, 15):
        assert restored(program, f"web1@{rfc3339(history.times_ns[number])}") == history.states[number], number
    capture.stop()
    assert program.run("verify", "--read-data").code == 0
