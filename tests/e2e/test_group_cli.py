# SPDX-License-Identifier: AGPL-3.0-or-later
"""VMs of a group: whoever writes to them in turn finds at each instant nothing without what came before it."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from everywhen.interfaces.cli.completing import names_file
from tests.agent_double import GuestDouble, listening
from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.long_forms import SOAK, in_soak
from tests.moments import nanoseconds, rfc3339
from tests.program import Done, Program
from tests.shared_clocks import forgotten

SIZE = 8 << 20
SECTOR = 512
EVERY_S = 4
NAMES = ("web1", "web2")


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with forgotten(tmp_path / "host"):
        yield Program(tmp_path).init()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Hypervisor]]:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with Hypervisor(folders[0], [SIZE]) as one, Hypervisor(folders[1], [SIZE]) as two:
        yield [one, two]


@dataclass
class Counting:
    """Writes 0, 1, 2, … in turn to the first and the second VM, each one after the one before was answered."""

    machines: list[Hypervisor]
    issued_ns: list[int] = field(default_factory=list)
    answered_ns: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.is_set() and len(self.issued_ns) < SIZE // SECTOR:
            number = len(self.issued_ns)
            self.issued_ns.append(time.time_ns())
            self.machines[number % 2].write(0, number * SECTOR, SECTOR, 1 + number % 255)
            self.answered_ns.append(time.time_ns())
            time.sleep(0.005)  # the disks have room for 16,384 numbers

    def reach(self, more: int) -> None:
        """Wait until so many more are answered."""
        wanted = len(self.answered_ns) + more
        eventually(lambda: len(self.answered_ns) >= wanted, f"{more} more writes", 60)

    def check(self, images: list[bytes], time_ns: int) -> None:
        """What the disks hold is what was answered by then and perhaps the one that was on its way; nothing else."""
        there = [images[number % 2][number * SECTOR] == 1 + number % 255 for number in range(len(self.issued_ns))]
        count = sum(there)
        assert there == [True] * count + [False] * (len(there) - count), "one is there without one before it"
        assert sum(at <= time_ns for at in self.answered_ns) <= count <= sum(at <= time_ns for at in self.issued_ns)


def captured(program: Program, machine: Hypervisor, name: str, *more: str) -> Capture:
    words = ["--pace", "0", "--seal-every", f"{EVERY_S}s", "--group", "erp", *more]
    return Capture(program, name, machine.qmp, *words)


@pytest.fixture
def captures(program: Program, machines: list[Hypervisor]) -> Iterator[list[Capture]]:
    with captured(program, machines[0], "web1") as one, captured(program, machines[1], "web2") as two:
        yield [one.followed(), two.followed()]


def points(program: Program) -> dict[int, dict[str, Any]]:
    """By instant in nanoseconds, of the VMs by name."""
    found: dict[int, dict[str, Any]] = {}
    for point in program.ok("points"):
        found.setdefault(nanoseconds(point["time"]), {})[point["vm"]] = point
    return found


def both_at(one: Capture, common: Callable[[], object]) -> None:
    """Until there is something that both have: when one of them has made a point, the other one has, too, or is about to."""
    for _ in range(10):
        one.another_point()
        if common():
            return
    raise AssertionError("no instant of both")


def restored(program: Program, when: str) -> tuple[Any, list[bytes]]:
    done = program.restore(f"group:erp@{when}", program.folder / "back", "--overwrite")
    return done, [(program.folder / "back" / name / f"{name}-vd0.raw").read_bytes() for name in NAMES]


def marked(program: Program, text: str) -> Done:
    return program.run("mark", "group:erp", text, "--json")


def marked_in_time(program: Program, code: int) -> tuple[str, Done]:
    """A mark that ends so. On a busy host one may come too late, and must say so; not two of them."""
    mark = marked(program, "before update")
    if mark.code == code:
        return "before update", mark
    assert "instant had passed" in mark.out or "only after the common instant" in mark.out, mark
    return "again", marked(program, "again")


def test_nothing_without_what_came_before_it(program: Program, machines: list[Hypervisor], captures: list[Capture]) -> None:
    with Counting(machines) as writer:
        began = time.time_ns()

        def common() -> dict[int, dict[str, Any]]:
            return {at: both for at, both in points(program).items() if len(both) == 2 and at > began}

        both_at(captures[1], common)
        name, mark = marked_in_time(program, 0)
        writer.reach(20)
    assert mark.code == 0, mark
    at_mark = nanoseconds(mark.document["time"])
    by_time = [at for at, both in common().items() if not both["web1"]["mark"] and not both["web2"]["mark"]]
    assert [at % (EVERY_S * 10**9) for at in by_time] == [0] * len(by_time)
    assert {point["mark"] for point in common()[at_mark].values()} == {name}
    assert common()[at_mark]["web1"]["group"] == {"group": "erp", "vms": ["web1", "web2"]}
    for at, when in ((at_mark, f'"{name}"'), (by_time[0], common()[by_time[0]]["web2"]["id"])):
        done, images = restored(program, when)
        assert (nanoseconds(done["time"]), done["write_order"]) == (at, True)
        writer.check(images, at)
    chance = random.Random(3)
    for at in [chance.randrange(writer.issued_ns[0], writer.answered_ns[-1]) for _ in range(5 if SOAK else 1)]:
        done, images = restored(program, rfc3339(at))
        assert done["write_order"]
        assert nanoseconds(done["time"]) == at
        writer.check(images, at)
    done, images = restored(program, "latest")
    assert nanoseconds(done["time"]) > writer.answered_ns[-1], "the last write is in, and nobody has written since"
    writer.check(images, nanoseconds(done["time"]))
    shown = program.run("status").out
    assert "group erp: web1, web2; all have a point of " in shown
    for capture in captures:
        capture.stop()
    assert [vm["group"] for vm in program.ok("status")["vms"]] == ["erp", "erp"]
    assert program.ok("points", "group:erp") == program.ok("points")
    offered = json.loads(Path(names_file(program.environment, str(program.repo))).read_text())["groups"]
    assert (list(offered), name in offered["group:erp"]["marks"]) == (["group:erp"], True)
    assert program.run("verify").code == 0


@in_soak
def test_one_that_ends_takes_no_other_with_it(program: Program, machines: list[Hypervisor], captures: list[Capture]) -> None:
    with Counting(machines) as writer:
        writer.reach(20)
        captures[1].ask({"wish": "ship"})
        captures[1].kill()
        killed = time.time_ns()
        name, mark = marked_in_time(program, 5)
        writer.reach(5)
    assert mark.code == 5, mark
    assert list(mark.document["vms"]) == ["web1"]
    assert mark.document["missed"] == {"web2": "no capture of it into this repository runs on this host"}
    assert list(points(program)[nanoseconds(mark.document["time"])]) == ["web1"]
    done, images = restored(program, "latest")
    assert nanoseconds(done["time"]) < killed
    writer.check(images, nanoseconds(done["time"]))
    refused = program.run("restore", f'group:erp@"{name}"', "--to", "x", "--json")
    assert refused.error["code"] == "not_found"
    assert "Of web2 nothing is known for sure then" in refused.error["what"]
    assert not (program.folder / "x").exists()
    captures[0].stop()
    # What the killed one left in its spool is brought in, and the group is kept: nobody says it again.
    with Capture(program, "web2", machines[1].qmp, "--pace", "0", "--seal-every", "1h").followed() as again:
        again.stop()
    assert [vm["group"] for vm in program.ok("status")["vms"]] == ["erp", "erp"]
    nobody = marked(program, "none")
    assert nobody.error["code"] == "failed"
    assert "No VM of group erp has a point of that instant" in nobody.error["what"]
    with Capture(program, "web2", machines[1].qmp, "--pace", "0", "--group", "").followed() as alone:
        alone.stop()
    assert [vm["group"] for vm in program.ok("status")["vms"]] == ["erp", None]


@in_soak
def test_hosts_have_the_same_clock_time_only(program: Program, machines: list[Hypervisor]) -> None:
    with forgotten(program.folder / "far") as elsewhere:
        far = Program(program.folder, more={"EVERYWHEN_STATE": str(elsewhere)})
        with captured(program, machines[0], "web1") as one, captured(far, machines[1], "web2") as two:
            one.followed()
            two.followed()
            for number in range(6):
                machines[number % 2].write(0, number * SECTOR, SECTOR, 7)
            both_at(two, lambda: any(len(both) == 2 for both in points(program).values()))
            one.stop()
            two.stop()
    (*_, newest) = sorted(at for at, both in points(program).items() if len(both) == 2)
    done, _ = restored(program, rfc3339(newest))
    assert (nanoseconds(done["time"]), done["write_order"]) == (newest, False)
    shown = program.run("restore", f"group:erp@{rfc3339(newest)}", "--to", "shown").out
    assert "the same clock time, not in write order across them" in shown


@in_soak
def test_a_frozen_guest_at_the_instant_of_its_group(program: Program, tmp_path: Path) -> None:
    guest, agent = GuestDouble(), tmp_path / "agent.sock"
    with (
        Hypervisor(tmp_path, [SIZE]) as machine,
        listening(agent, guest),
        captured(program, machine, "web1", "--seal-every", "1h", "--consistency", "filesystem", "--agent", str(agent)) as one,
    ):
        one.followed()
        name, mark = marked_in_time(program, 0)
        assert mark.code == 0, mark
        assert mark.document["vms"]["web1"]["consistency"] == "filesystem"
        assert not guest.frozen
        late = one.ask({"wish": "mark", "text": "late", "at_ns": nanoseconds(mark.document["time"])})
        assert "had passed" in late["error"]
        assert one.state() == "following"
        one.stop()
    (point,) = [point for point in program.ok("points") if point["mark"] == name]
    assert point["time"] == mark.document["time"]


def test_names_of_groups(program: Program, tmp_path: Path) -> None:
    with Hypervisor(tmp_path, [SIZE]) as machine:
        wrong = program.run("protect", "web1", "--qmp", machine.qmp, "--group", "Group 1", "--json")
        assert machine.ours() == set()
    assert (wrong.error["code"], program.ok("status")["vms"]) == ("wrong_usage", [])
    for words in (["restore", "group:none", "--to", "x"], ["mark", "group:none", "x"], ["points", "group:none"]):
        assert program.run(*words, "--json").error["code"] == "not_found"
    for words in (["mark", "group:erp@-10m", "x"], ["points", "group:erp@-10m"], ["hold", "group:erp", "--reason", "x"]):
        assert program.run(*words, "--json").error["code"] == "wrong_usage"
