# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen spool import`: a host dies under its captures; its disk, attached to another one, still has the last seconds."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from everywhen.capture.spool_reader import spool_files
from everywhen.formats.segment import FRAME_SIZE, HEADER_SIZE
from everywhen.nbd.connection import NbdConnection
from tests.captures import Capture
from tests.hypervisor import eventually
from tests.long_forms import in_soak
from tests.program import Program
from tests.storage_daemon import MIB, StorageDaemon

SIZES = (2 * MIB, MIB)
OPTIONS = ("--pace", "0", "--seal-every", "1h")
DURABLE, MORE = 40, 25
"""Writes of which is known that they are durable, and those under which the host dies."""


class DeadHost:
    """`state`: its state folder on the disk that is attached elsewhere. `states`: what `vda` held after each write."""

    def __init__(self, program: Program, folder: Path) -> None:
        self.state = folder / "old"
        with StorageDaemon(folder, SIZES) as daemon:
            self.states = [daemon.content()["vda"]]
            with Capture(program, "web1", daemon.qmp, *OPTIONS) as capture:
                self._written_until_it_dies(daemon, capture.followed())
        shutil.copytree(Path(program.environment["EVERYWHEN_STATE"]), self.state, ignore=shutil.ignore_patterns("*.sock"))
        self.files = spool_files(self.state / "web1" / "spool")
        self.before = self.bytes()

    def bytes(self) -> dict[Path, bytes]:
        """All that is on its disk."""
        return {path: path.read_bytes() for path in self.state.rglob("*") if path.is_file()}

    def _written_until_it_dies(self, daemon: StorageDaemon, capture: Capture) -> None:
        with NbdConnection(str(daemon.socket), "vda", timeout=10) as guest:
            for _ in range(2):  # so that they lie in two groups at least
                self._write(guest, DURABLE // 2)
                written = time.time_ns()
                eventually(lambda: capture.ask({"wish": "status"})["covered_ns"] > written, "durable")  # noqa: B023 - at once
            self._write(guest, MORE)
        for process in (capture.sink(), capture.watchdog(), capture.process.pid):
            os.kill(process, signal.SIGKILL)
        capture.process.wait()

    def _write(self, guest: NbdConnection, count: int) -> None:
        chance, content = random.Random(len(self.states)), bytearray(self.states[-1])
        for _ in range(count):
            offset, length = chance.randrange(SIZES[0] - 70_000) // 512 * 512, chance.choice([512, 4096, 66_048])
            data = chance.randbytes(length)
            guest.answer(guest.send(offset, data))
            content[offset : offset + length] = data
            self.states.append(bytes(content))


@pytest.fixture
def dead(program: Program, tmp_path: Path) -> DeadHost:
    return DeadHost(program, tmp_path)


@pytest.fixture
def elsewhere(program: Program, tmp_path: Path) -> Program:
    """The same repository, as another host has it open."""
    (tmp_path / "b").mkdir()
    return Program(tmp_path / "b", str(program.repo))


def restored(program: Program, moment: str) -> bytes:
    program.restore(moment, program.folder / "back.raw", "--overwrite")
    return (program.folder / "back.raw").read_bytes()


def test_the_last_seconds_come_back_to_the_last_durable_write(elsewhere: Program, dead: DeadHost) -> None:
    assert restored(elsewhere, "web1/vda@latest") == dead.states[0], "the repository has none of them"
    seen = elsewhere.ok("spool", "import", dead.state, "--dry-run")
    assert len(elsewhere.ok("points", "web1")) == 1, "--dry-run makes none"
    (spool,) = elsewhere.ok("spool", "import", dead.state / "web1" / "spool")["spools"]
    assert {**seen["spools"][0], "point": spool["point"]} == spool
    assert spool["writes"] == spool["lost"] >= DURABLE
    assert dead.bytes() == dead.before, "nothing on the dead host's disk was changed"
    assert restored(elsewhere, "web1/vda@latest") == dead.states[spool["writes"]]
    assert restored(elsewhere, "web1/vda@latest~5") == dead.states[spool["writes"] - 5], "each write is a moment"
    again = elsewhere.run("spool", "import", dead.state)
    assert (again.code, "the repository has all writes that are here" in again.out) == (0, True), again
    assert len(elsewhere.ok("points", "web1")) == 2
    assert elsewhere.run("verify", "--read-data").code == 0


@in_soak
def test_a_vm_that_was_captured_elsewhere_since(elsewhere: Program, dead: DeadHost) -> None:
    """It was brought back without its last seconds, and is protected there: they come in where they belong, before that."""
    with (
        StorageDaemon(elsewhere.folder, SIZES) as daemon,
        Capture(elsewhere, "web1", daemon.qmp, *OPTIONS) as capture,
    ):
        capture.followed().stop()
        newest = elsewhere.ok("points", "web1")[0]["id"]
        (spool,) = elsewhere.ok("spool", "import", dead.state)["spools"]
        assert not spool["beside"]
        assert restored(elsewhere, f"web1/vda@{spool['point']}") == dead.states[spool["writes"]]
        assert restored(elsewhere, f"web1/vda@{spool['until']}") == dead.states[spool["writes"]]
        assert elsewhere.ok("status", "web1")["vms"][0]["newest"]["point"] == newest, "the newest moment is the new host's"


@in_soak
def test_a_damaged_spool_gives_what_comes_before_the_damage(elsewhere: Program, dead: DeadHost) -> None:
    (file,) = dead.files
    content = bytearray(file.path.read_bytes())
    # So that what is damaged cannot be a torn end.
    file.path.with_name(f"{file.epoch:016x}-{file.number + 1:016x}.segment").write_bytes(content)
    at, ends = HEADER_SIZE, list[int]()
    while at < len(content):
        at += FRAME_SIZE + int.from_bytes(content[at + 8 : at + 12], "little")
        ends.append(at)
    content[ends[-2] + FRAME_SIZE + 40] ^= 1
    file.path.write_bytes(content)
    done = elsewhere.run("spool", "import", dead.state, "--json")
    assert done.code == 5, done
    (spool,) = done.document["spools"]
    assert "is damaged" in spool["damage"]
    assert 0 < spool["writes"] < DURABLE + MORE
    assert restored(elsewhere, "web1/vda@latest") == dead.states[spool["writes"]]
    assert elsewhere.run("verify", "--read-data").code == 0, "nothing damaged was taken over"


def test_what_cannot_be_brought_in_is_said(program: Program, elsewhere: Program, dead: DeadHost, tmp_path: Path) -> None:
    nothing = elsewhere.run("spool", "import", tmp_path / "b")
    assert (nothing.code, "holds nothing that a capture left" in nothing.err) == (6, True), nothing
    missing = elsewhere.run("spool", "import", tmp_path / "c")
    assert (missing.code, "No such file" in missing.err) == (6, True), missing
    foreign = Program(tmp_path / "b", "other").init().run("spool", "import", dead.state)
    assert (foreign.code, "captured for another repository" in foreign.err) == (1, True), foreign
    with StorageDaemon(tmp_path / "b", SIZES) as daemon, Capture(program, "db1", daemon.qmp, *OPTIONS) as capture:
        capture.followed()
        used = program.run("spool", "import", Path(program.environment["EVERYWHEN_STATE"]) / "db1")
        assert (used.code, "it brings that in by itself" in used.err) == (1, True), used
    assert dead.bytes() == dead.before
    assert len(elsewhere.ok("points", "web1")) == 1
