# SPDX-License-Identifier: AGPL-3.0-or-later
"""A VM's disks that run from a backup, their server killed at any moment: what was answered is there, and in the timeline."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from everywhen.nbd.connection import NbdConnection, NbdError
from tests.long_forms import SOAK
from tests.processes import TIED
from tests.program import Program
from tests.storage_daemon import ROOT

MIB = 1 << 20
SIZES = {"vda": 3 * MIB + 512, "vdb": MIB}


@pytest.fixture
def program(tmp_path: Path) -> Program:
    program = Program(tmp_path).init()
    for name, size in SIZES.items():
        (tmp_path / f"{name}.raw").write_bytes(random.Random(name).randbytes(size // 2) + bytes(size - size // 2))
    program.backup("web1", *(f"{name}={tmp_path / name}.raw" for name in SIZES))
    return program


class Disks:
    """What the disks hold, as whoever writes to them knows it; after a kill also what may be there of what had no answer."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self.held = {name: bytearray(content) for name, content in contents.items()}
        self.chance = random.Random(7)

    def some(self) -> tuple[str, int, bytes | int]:
        """A disk, an offset, and bytes to be written there or how many zeroes."""
        name = self.chance.choice(sorted(SIZES))
        length = self.chance.choice([512, 512, 4096, 5120, 70_144])
        offset = self.chance.randrange((SIZES[name] - length) // 512 + 1) * 512
        return name, offset, length if self.chance.random() < 0.2 else self.chance.randbytes(length)

    def take(self, name: str, offset: int, what: bytes | int) -> None:
        """That was answered."""
        content = bytes(what) if isinstance(what, int) else what
        self.held[name][offset : offset + len(content)] = content


@contextmanager
def started(program: Program, address: str) -> Iterator[subprocess.Popen[str]]:
    """The server's process, killed in the end."""
    command = [*TIED, sys.executable, "-m", "tests.instant_server", address, str(program.folder / "nbd.sock")]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=program.environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def serving(
    program: Program, address: str, names: Iterable[str] = SIZES
) -> Iterator[tuple[subprocess.Popen[str], dict[str, NbdConnection]]]:
    place = str(program.folder / "nbd.sock")
    with started(program, address) as process, ExitStack() as stack:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == "serves\n", process.communicate()
        yield process, {name: stack.enter_context(NbdConnection(place, name, timeout=20)) for name in names}


def ended(process: subprocess.Popen[str], disks: dict[str, NbdConnection]) -> None:
    """In order."""
    for disk in disks.values():
        disk.close()
    _, said = process.communicate(timeout=60)
    assert not process.returncode, said


def sealed(process: subprocess.Popen[str]) -> None:
    """A point is made while it serves."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "True\n"


def restored(program: Program, moment: str) -> dict[str, bytes]:
    program.restore(moment, program.folder / "back", "--overwrite")
    return {name: (program.folder / "back" / f"web1-{name}.raw").read_bytes() for name in SIZES}


def sent(disk: NbdConnection, offset: int, what: bytes | int) -> int:
    return disk.send_zeroes(offset, what) if isinstance(what, int) else disk.send(offset, what)


def test_what_is_written_is_the_timeline(program: Program) -> None:
    """From an older moment: what followed that one is a branch."""
    older = program.ok("points", "web1")[0]["id"]
    with (program.folder / "vda.raw").open("r+b") as image:
        image.write(b"what is left behind")
    newest = program.backup("web1", *(f"{name}={program.folder / name}.raw" for name in SIZES))["point"]
    left, before = restored(program, "web1@latest"), restored(program, f"web1@{older}")
    reference = Disks(before)
    states = list[dict[str, bytes]]()
    with serving(program, f"web1@{older}") as (process, disks):
        for number in range(30):
            name, offset, what = reference.some()
            disks[name].answer(sent(disks[name], offset, what))
            reference.take(name, offset, what)
            states.append({name: bytes(content) for name, content in reference.held.items()})
            if number == 11:
                sealed(process)
        for name, size in SIZES.items():
            assert disks[name].answer(disks[name].ask(0, size)).data == reference.held[name]
        ended(process, disks)
    points = program.ok("points", "web1")
    assert [restored(program, f"web1@{point['id']}") for point in points[:3]] == [states[-1], states[11], before]
    for back in (7, 17, 18, 29):
        assert restored(program, f"web1@latest~{back}") == states[-1 - back], "each write is a moment"
    assert (points[2]["rolled_back"]["point"], points[2]["rolled_back"]["branch"]) == (older, "web1~1")
    assert restored(program, "web1~1") == left
    assert points[3]["id"] == newest
    with serving(program, "web1@latest~3") as (process, disks):  # a moment between two points
        for name, size in SIZES.items():
            assert disks[name].answer(disks[name].ask(0, size)).data == states[-4][name]
        disks["vda"].answer(disks["vda"].send(0, b"n" * 512))
        ended(process, disks)
    first, second = program.ok("points", "web1")[1::-1]
    assert restored(program, f"web1@{first['id']}") == states[-4]
    assert restored(program, f"web1@{second['id']}")["vda"] == b"n" * 512 + states[-4]["vda"][512:]
    assert restored(program, "web1~2") == states[-1]
    assert program.run("verify", "--read-data").code == 0


def test_a_full_spool_takes_nothing_after_what_it_refused(program: Program) -> None:
    """Who has no answer knows that it may be there or not; what had one is there, and nothing that came after is."""
    chunk = 2 * MIB
    (program.folder / "big.raw").write_bytes(bytes(chunk * 16))
    program.backup("big1", f"vda={program.folder / 'big.raw'}")
    chance, answered = random.Random(1), 0
    with serving(program, "big1@latest", {"vda": 0}) as (process, disks):
        contents = [chance.randbytes(chunk) for _ in range(16)]
        with suppress(NbdError):
            for number, content in enumerate(contents):
                disks["vda"].answer(disks["vda"].send(number * chunk, content))
                answered += 1
        with pytest.raises(NbdError):
            disks["vda"].answer(disks["vda"].send(0, b"later"))
        with pytest.raises(NbdError):
            disks["vda"].answer(disks["vda"].send_flush())
        ended(process, disks)
    assert 4 <= answered < 12
    program.restore("big1/vda@latest", program.folder / "big-back.raw")
    found = (program.folder / "big-back.raw").read_bytes()
    assert found == b"".join(contents[:answered]).ljust(len(found), b"\0")


@pytest.mark.timeout(1200 if SOAK else 120)
def test_killed_at_any_moment(program: Program) -> None:
    reference = Disks({name: (program.folder / f"{name}.raw").read_bytes() for name in SIZES})
    address = "web1@latest"
    for _ in range(25 if SOAK else 2):
        # Killed before it serves, or just then.
        with started(program, address) as process, suppress(subprocess.TimeoutExpired):
            process.wait(reference.chance.uniform(0.3, 1.5))
        with serving(program, address) as (process, disks):
            for name, size in SIZES.items():
                found = disks[name].answer(disks[name].ask(0, size)).data
                assert found == reference.held[name], f"{name} differs at {_first_difference(found, reference.held[name])}"
            unanswered = _written_until_killed(reference, process, disks)
        _resent(program, reference, unanswered)
        address = "web1"
    line = program.ok("timeline", "web1")
    # Where the very first one was killed just when its first point was there, the next one begins with that moment anew.
    assert {gap["why"] for gap in line["gaps"]} == {"it was brought back from a backup"}
    assert 1 <= len(line["every_write"]) <= len(line["gaps"]) <= 2
    assert program.run("verify", "--read-data").code == 0


def _written_until_killed(
    reference: Disks, process: subprocess.Popen[str], disks: dict[str, NbdConnection]
) -> list[tuple[str, int, bytes | int]]:
    """What was asked and has no answer."""
    last = reference.chance.randrange(60)
    for number in range(10_000):
        write = name, offset, what = reference.some()
        try:
            cookie = sent(disks[name], offset, what)
            if number == last:
                process.kill()
            disks[name].answer(cookie)
        except NbdError:
            return [write]
        reference.take(*write)
    raise AssertionError("it was not killed")


def _resent(program: Program, reference: Disks, unanswered: list[tuple[str, int, bytes | int]]) -> None:
    """As QEMU does when it has its server back: until then what had no answer may be there or not."""
    with serving(program, "web1") as (process, disks):
        for name, offset, what in unanswered:
            disks[name].answer(sent(disks[name], offset, what))
            reference.take(name, offset, what)
        ended(process, disks)
    assert restored(program, "web1@latest") == {name: bytes(content) for name, content in reference.held.items()}


def _first_difference(one: bytes | bytearray, other: bytes | bytearray) -> int:
    return next(at for at, (mine, yours) in enumerate(zip(one, other, strict=True)) if mine != yours)
