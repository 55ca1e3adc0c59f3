# SPDX-License-Identifier: AGPL-3.0-or-later
"""Points at intervals under load: each is a state of one instant over both disks, told by numbered records of a guest."""

from __future__ import annotations

import struct
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from everywhen.nbd.connection import NbdConnection
from tests.captures import Capture
from tests.long_forms import SOAK, in_soak
from tests.moments import nanoseconds
from tests.program import Program
from tests.storage_daemon import MIB, StorageDaemon

RECORD, SLOTS = 4096, 256
ROUNDS = 100 if SOAK else 3
_NUMBER = struct.Struct(f"<{RECORD // 8}Q")


class Writer:
    """Writes record after record, in turn to both disks, each once the one before was answered, until it is ended."""

    def __init__(self, daemon: StorageDaemon) -> None:
        self._disks = [NbdConnection(str(daemon.socket), name, timeout=30) for name in daemon.disks]
        self.asked: list[int] = []
        self.answered: list[int] = []
        """Record 1 at [0], as all that is numbered."""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.error: BaseException | None = None

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                number = len(self.asked) + 1
                disk = self._disks[number % 2]
                self.asked.append(time.time_ns())
                disk.answer(disk.send(place(number), _NUMBER.pack(*[number] * (RECORD // 8))))
                self.answered.append(time.time_ns())
        except BaseException as error:
            self.error = error
            raise

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.set()
        self._thread.join()
        for disk in self._disks:
            disk.close()


def place(number: int) -> int:
    """Where a record is: scattered, so that many blocks change."""
    return number // 2 % SLOTS * 37 % SLOTS * (MIB // 128)


def numbers(content: bytes) -> list[int]:
    """What each slot holds, in the order of the records that would be written first; each whole."""
    found = []
    for slot in range(SLOTS):
        at = place(2 * slot)
        (number, *others) = _NUMBER.unpack_from(content, at)
        assert set(others) == {number}, f"half a record at {at}"
        found.append(number)
    return found


def expected(disk: int, last: int) -> list[int]:
    """The slots of a disk when all records up to `last` are written, and none later; 0: none yet."""
    there = [0] * SLOTS
    for number in range(max(1, last - 2 * SLOTS), last + 1):
        if number % 2 == disk:
            there[number // 2 % SLOTS] = number
    return there


@in_soak
def test_every_point_is_a_prefix_of_what_was_written(tmp_path: Path) -> None:
    program = Program(tmp_path).init()
    with StorageDaemon(tmp_path, (4 * MIB, 4 * MIB)) as daemon:
        for name in daemon.disks:
            with NbdConnection(str(daemon.socket), name, timeout=10) as disk:
                disk.answer(disk.send_zeroes(0, 4 * MIB))
        with Capture(program, "web1", daemon.qmp, "--interval", "1s", "--pace", "8M") as capture:
            capture.followed()
            with Writer(daemon) as writer:
                for _ in range(ROUNDS):
                    capture.another_point()
            assert writer.error is None, "the guest saw an error"
            capture.stop()
    points = program.ok("points", "web1")
    seen = []
    for point in reversed(points):
        found = []
        for name in daemon.disks:
            program.restore(f"web1/{name}@{point['id']}", tmp_path / "back.raw", "--overwrite")
            found.append(numbers((tmp_path / "back.raw").read_bytes()))
        last = max(*found[0], *found[1])
        # vda has the even numbers.
        assert [found[0], found[1]] == [expected(0, last), expected(1, last)], f"{point['id']} is no prefix"
        seen.append(last)
        at = nanoseconds(point["time"])
        if last:
            assert writer.asked[last - 1] <= at, "nothing that was not asked for yet"
        safe = sum(1 for answered in writer.answered if answered < at)
        assert last >= safe, "all that had been answered by then"
    assert seen == sorted(seen)
    assert len(set(seen)) >= ROUNDS, "they were made while it wrote"
    assert seen[-1] == len(writer.answered)
