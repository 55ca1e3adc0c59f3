# SPDX-License-Identifier: AGPL-3.0-or-later
"""fio on a storage daemon under `everywhen protect` while all of ours is broken: no error, no long stall, right moments.

What is right is judged by a recorder between fio and the daemon that knows nothing of ours (`tests/reference.py`): every state
that is restored must be one in which a power cut could have left both disks, at the time that the point tells. Some things are
broken once, and then all of them for minutes, in any order: it is in `make soak` only.
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pytest

from everywhen.nbd.connection import NbdConnection
from tests.captures import Capture
from tests.long_forms import in_soak
from tests.moments import nanoseconds, rfc3339
from tests.program import Program
from tests.recorder import CELL
from tests.reference import Cut, Reference
from tests.storage_daemon import MIB, Fio, FioJob, Recorder, StorageDaemon

SIZES = (64 * MIB, 48 * MIB)
CONTROL_S = 20
SOAK_S = 300
POINTS, MOMENTS = 50, 50
JOBS = [
    FioJob("vda", 0, SIZES[0] // 2, 16, "4k/70:16k/20:64k/10", 24, 60_000),
    FioJob("vda", SIZES[0] // 2, 4 * MIB, 1, "4k", 1, 5_000),
    FioJob("vdb", 0, SIZES[1] // 2, 8, "4k/60:8k/30:32k/10", 12, 50_000),
]
LIMIT_NS, EVERY_NS, RELEASE_NS = 200_000_000, 20_000_000, 10_000_000
"""What docs/capture.md promises: work waits so long at most, is looked at so often, and goes on so soon after that."""
ZEROED = (SIZES[1] // 2, 2 * MIB)
"""Offset and size of what is zeroed now and then, on `vdb`."""


class Zeroes:
    """A client that writes numbered cells and writes them over with zeroes; each is answered before the next."""

    def __init__(self, recorder: Recorder) -> None:
        self._connection = NbdConnection(str(recorder.socket), "vdb", timeout=30)
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """All its writes were answered, without an error."""
        self._ending.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        chance, (offset, size) = random.Random(11), ZEROED
        try:
            with self._connection as connection:
                for number in count(1):
                    if self._ending.wait(0.01):
                        return
                    at = offset + chance.randrange(size // CELL - 8) * CELL
                    if number % 3:
                        cookie = connection.send(at, number.to_bytes(8, "big") * (CELL // 8))
                    else:
                        cookie = connection.send_zeroes(at, chance.randrange(1, 9) * CELL)
                    connection.answer(cookie)
        except BaseException as failure:  # noqa: BLE001 - raised again by `end`, in the test's thread
            self._failure = failure


class Chaos:
    """What is broken, and when (ns since 1970)."""

    def __init__(self, program: Program, daemon: StorageDaemon) -> None:
        self._program = program
        self._daemon = daemon
        self._chance = random.Random(7)
        self.said: list[str] = []
        self.acts: list[tuple[str, int, int]] = []
        self.covered: list[tuple[int, int]] = []
        """When nothing was lost for sure."""
        self.capture = self._begun().followed()

    def _begun(self, *more: str) -> Capture:
        return Capture(self._program, "web1", self._daemon.qmp, "--seal-every", "1s", *more)

    def _losses(self) -> int:
        return self.capture.said.count("capture was lost")

    @contextmanager
    def _act(self, name: str) -> Iterator[None]:
        calm, losses = time.time_ns(), self._losses()
        time.sleep(0.5)  # writes that nothing happens to
        until = time.time_ns()
        assert self.capture.ask({"wish": "ship"}) == {}
        # A spool that is small on purpose may have been full by then.
        if self._losses() == losses and self.capture.state() == "following":
            self.covered.append((calm, until))
        time.sleep(self._chance.random())  # another moment of its work each time
        began = time.time_ns()
        yield
        self.acts.append((name, began, time.time_ns()))

    def sink_killed(self) -> None:
        """Capture begins again by itself."""
        with self._act("sink killed"):
            os.kill(self.capture.sink(), signal.SIGKILL)
            self.capture.says("capture attached")
            self.capture.another_point()

    def sink_hung(self) -> None:
        """The watchdog takes it away, and capture begins again."""
        with self._act("sink hung"):
            os.kill(self.capture.sink(), signal.SIGSTOP)
            self.capture.says("capture attached")
            self.capture.another_point()

    def watchdog_killed(self) -> None:
        """The sink ends with it, and capture begins again."""
        with self._act("watchdog killed"):
            os.kill(self.capture.watchdog(), signal.SIGKILL)
            self.capture.says("capture attached")
            self.capture.another_point()

    def protect_hung(self) -> None:
        """Sink and watchdog go on without it."""
        with self._act("protect hung"):
            self.capture.process.send_signal(signal.SIGSTOP)
            time.sleep(3)  # for so long it hangs
            self.capture.process.send_signal(signal.SIGCONT)
            self.capture.another_point()

    def repository_away(self) -> None:
        """Capture goes on without it, and catches up."""
        with self._act("repository away"):
            began = time.time_ns()
            with self._away():
                self.capture.says("Capture goes on")
            self.covered.append((began, time.time_ns()))
            self.capture.another_point()

    def spool_filled(self) -> None:
        """Nobody consumes the spool until it is full, and for a while after that."""
        self.restarted("--spool-limit", "6M")
        with self._act("spool filled"):
            with self._away():
                self.capture.says("capture was lost")  # nothing else ends it here
            self.capture.says("capture attached")
            self.capture.another_point()
        self.restarted()

    def restarted(self, *more: str) -> None:
        """Ours is killed, and started again."""
        with self._act("protect killed"):
            self._kill()
            time.sleep(0.3)  # writes that only a bitmap knows
            self.capture = self._begun(*more).followed()

    def killed_as_it_begins(self) -> None:
        """Ours is killed again and again: as it brings in what is left, attaches, copies, makes its first point."""
        with self._act("protect killed as it begins"):
            for _ in range(4):
                self._kill()
                self.capture = self._begun()
                time.sleep(self._chance.uniform(0.3, 2))
            self.capture.followed()

    def _kill(self) -> None:
        self.capture.kill()
        self.said.append(self.capture.said)

    def end(self) -> None:
        """Ours ends in order."""
        self.capture.stop()
        self.said.append(self.capture.said)

    @contextmanager
    def _away(self) -> Iterator[None]:
        away = self._program.repo.with_name("away")
        self._program.repo.rename(away)
        try:
            yield
        finally:
            away.rename(self._program.repo)


@pytest.mark.timeout(SOAK_S + 900)
@in_soak
def test_fio_while_everything_of_ours_is_broken(tmp_path: Path) -> None:
    program = Program(tmp_path).init()
    with ExitStack() as stack:
        daemon = stack.enter_context(StorageDaemon(tmp_path, SIZES))
        bases = daemon.content()
        recorder = stack.enter_context(Recorder(daemon))
        control, until = fio_alone(tmp_path, recorder)
        fio = stack.enter_context(Fio(tmp_path, recorder, JOBS))
        zeroes = stack.enter_context(Zeroes(recorder))
        chaos = Chaos(program, daemon)
        stack.callback(lambda: chaos.capture.kill())
        for act in acts(chaos):
            act()
        jobs = fio.stop()
        zeroes.end()
        chaos.end()
        content = daemon.content()
        points = program.ok("points", "web1")
        assert daemon.ours() == {f"everywhen-{points[0]['id']}-{disk}" for disk in daemon.disks}
        recorder.end()
    reference = Reference.read(recorder.log, bases)
    stalls_are_short(reference, chaos, control, Fio.worst_write(jobs), until)
    assert restored(program, points[0]["id"]).disks == content, "the newest point is not what the disks hold"
    cut = reference.cut(content)
    # A write of what was there before may have been or not: so at most all of them, and the bytes are compared above.
    assert cut.most == len(reference.writes), f"of {len(reference.writes)} writes {cut.most} are on the disks"
    points_are_right(program, reference, points, chaos.said)
    moments_are_right(program, reference, chaos)


def acts(chaos: Chaos) -> Iterator[Callable[[], None]]:
    """Some once, then all for minutes. Each loss doubles the wait for the next try, until ours is restarted."""
    once = [chaos.repository_away, chaos.sink_killed, chaos.spool_filled, chaos.sink_hung]
    yield from once
    chance, end = random.Random(3), time.monotonic() + SOAK_S
    while time.monotonic() < end:
        yield from chance.sample([*once, chaos.watchdog_killed, chaos.protect_hung], 3)
        yield chance.choice([chaos.restarted, chaos.killed_as_it_begins])


def fio_alone(folder: Path, recorder: Recorder) -> tuple[int, int]:
    """The control run: the longest write without a tap in ns, and when it ended."""
    with Fio(folder, recorder, JOBS, CONTROL_S) as fio, Zeroes(recorder):
        jobs = fio.end()
    return Fio.worst_write(jobs), time.time_ns()


def stalls_are_short(reference: Reference, chaos: Chaos, control: int, worst: int, until: int) -> None:
    """The watchdog's limit, and what the control run and the machine itself show beside it."""
    late = reference.latest(until)
    print(f"\n{len(reference.writes)} writes; ms of the longest: {control / 1e6:.0f} without a tap, {worst / 1e6:.0f} in all")
    print(f"this machine woke sleepers up to {reference.latest(0, until) / 1e6:.0f} ms late then, {late / 1e6:.0f} ms later on")
    for name, began, ended in chaos.acts:
        slow, machine = reference.worst(began, ended) / 1e6, reference.latest(began, ended) / 1e6
        print(f"{name}: {slow:.0f} ms (machine: {machine:.0f} ms), {(ended - began) / 1e9:.1f} s")
    # It begins to count at a look and ends it at another. The watchdog, the daemon and fio are woken one after the other.
    allowed = LIMIT_NS + 2 * EVERY_NS + RELEASE_NS + control + 3 * late
    assert max(worst, reference.worst(until)) <= allowed, f"a write took {worst / 1e6} ms; {allowed / 1e6} ms at most"


class Restored(NamedTuple):
    """What a restore gave: the disks, and the time that they show as it tells, ns since 1970."""

    disks: dict[str, bytes]
    time: int


def restored(program: Program, moment: str) -> Restored:
    """A moment that there is."""
    found = tried(program, moment)
    assert found is not None, f"there is no {moment}"
    return found


def tried(program: Program, moment: str) -> Restored | None:
    """Exactly that moment, or None if it was not captured."""
    folder = program.folder / "back"
    done = program.run("restore", f"web1@{moment}", "--to", folder, "--overwrite", "--exact", "--json")
    if done.code == 6:
        return None
    assert done.code == 0, done
    disks = {path.stem.removeprefix("web1-"): path.read_bytes() for path in folder.glob("*.raw")}
    return Restored(disks, nanoseconds(done.document["time"]))


def points_are_right(program: Program, reference: Reference, points: list[dict[str, Any]], said: list[str]) -> None:
    """Each is a state that can be, of the time that it tells, and from one to the next there are as many writes as it said."""
    in_order = points[::-1]
    following = following_points(said)
    chosen = sorted(random.Random(5).sample(range(len(in_order)), min(POINTS, len(in_order))))
    before: tuple[str, Cut] | None = None
    for number in chosen:
        name = in_order[number]["id"]
        cut = reference.cut(restored(program, name).disks)
        at = nanoseconds(in_order[number]["time"])
        assert cut.newest_in <= at <= cut.oldest_out, f"{name} shows another time than it tells: {at}, {cut}"
        if before is not None:
            assert before[1].fewest <= cut.most
            assert before[1].newest_in <= cut.newest_in
            if (before[0], name) in following:
                more = following[before[0], name]
                assert cut.fewest - before[1].most <= more <= cut.most - before[1].fewest, (
                    f"{name} was said to have {more} more"
                )
        before = name, cut
    print(f"{len(chosen)} of {len(points)} points are right")


def moments_are_right(program: Program, reference: Reference, chaos: Chaos) -> None:
    """At random instants: all that was answered before it, nothing that was asked for after it; and so many writes earlier."""
    chance, right, back, gaps = random.Random(9), 0, 0, 0
    first, last = chaos.acts[0][1], chaos.acts[-1][2]
    while right < MOMENTS:
        must = bool((right + gaps) % 4)
        at = chance.randrange(*chance.choice(chaos.covered)) if must else chance.randrange(first, last)
        moment = rfc3339(at)
        found = tried(program, moment)
        if found is None:
            assert not must, f"{moment} was captured, and cannot be opened: {chaos.acts} {chaos.said}"
            gaps += 1
            continue
        cut = reference.cut(found.disks)
        assert cut.newest_in <= found.time <= at <= cut.oldest_out, f"{moment} gives {found.time}, {cut}"
        right += 1
        writes = chance.randrange(1, 200)
        if (found := tried(program, f"{moment}~{writes}")) is not None:
            earlier = reference.cut(found.disks)
            assert cut.fewest - earlier.most <= writes <= cut.most - earlier.fewest, (
                f"{writes} writes before {moment}: {earlier}"
            )
            back += 1
    print(f"{right} instants are right, {back} of them so many writes earlier, too; {gaps} were not captured")
    assert back, "no moment could be gone back from"


def following_points(said: list[str]) -> dict[tuple[str, str], int]:
    """For a point that follows another without a gap: how many writes it was said to have more."""
    found: dict[tuple[str, str], int] = {}
    for text in said:
        before = ""
        for line in text.splitlines():
            if match := re.search(r"recovery point (p-\w+), ([\d,]+) writes", line):
                if before:
                    found[before, match[1]] = int(match[2].replace(",", ""))
                before = match[1]
            elif "capture attached" in line or "capture was lost" in line:
                before = ""
    return found
