# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest that was frozen is thawed, whatever becomes of the processes and of the agent; with its real processes."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from everywhen.capture.agent_address import AgentAddress
from everywhen.capture.freeze_process import FreezeOrder
from everywhen.capture.freezer import Freezer, Thawed
from everywhen.capture.freezing import GUEST_HOOK, WINDOWS_HOOK, NotFrozen
from everywhen.services.protect.quieting import thaw_left
from tests.agent_double import GuestDouble, answer, listening, refusal
from tests.captures import child
from tests.hypervisor import eventually

_OURS = """
import sys, time
from everywhen.capture.freeze_process import FreezeOrder
from everywhen.capture.freezer import Freezer
freezer = Freezer(FreezeOrder.decode(sys.argv[1].encode()))
freezer.prepare()
freezer.freeze()
print("frozen", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[GuestDouble]:
    double = GuestDouble()
    with listening(tmp_path / "agent", double):
        yield double


@pytest.fixture
def order(tmp_path: Path) -> FreezeOrder:
    return FreezeOrder(AgentAddress(str(tmp_path / "agent")), str(tmp_path / "frozen"))


@pytest.fixture
def freezer(order: FreezeOrder, guest: GuestDouble) -> Iterator[Freezer]:
    with_guest = Freezer(order)
    yield with_guest
    with_guest.close()
    eventually(lambda: not with_guest.working, "it ends")
    assert not guest.frozen
    assert not Path(order.record).exists()


def test_frozen_and_thawed(freezer: Freezer, order: FreezeOrder, guest: GuestDouble) -> None:
    freezer.prepare()
    assert not guest.frozen
    assert freezer.freeze().file_systems == 2
    assert guest.frozen
    assert Path(order.record).exists()
    assert freezer.thaw() == Thawed(2, "")


def test_the_guests_clock_is_asked_before_it_is_frozen(freezer: Freezer, guest: GuestDouble) -> None:
    hour = 3600 * 10**9
    guest.changed["guest-get-time"] = lambda *_: answer(time.time_ns() - hour)
    freezer.prepare()
    clock = freezer.freeze().clock
    assert clock is not None
    assert abs(clock["guest_ns"] - clock["host_ns"] + hour) < hour // 60
    assert guest.asked.index("guest-get-time") < guest.asked.index("guest-fsfreeze-freeze")


@pytest.mark.parametrize("told", [True, -1, "noon"])
def test_a_clock_that_is_none_is_no_reason_not_to_freeze(freezer: Freezer, guest: GuestDouble, told: object) -> None:
    guest.changed["guest-get-time"] = lambda *_: answer(told)
    freezer.prepare()
    assert freezer.freeze().clock is None


def test_what_somebody_else_froze_is_left_alone(order: FreezeOrder, guest: GuestDouble) -> None:
    guest.frozen = True
    freezer = Freezer(order)
    with pytest.raises(NotFrozen, match="by somebody else"):
        freezer.prepare()
    eventually(lambda: not freezer.working, "it ends")
    freezer.close()
    assert guest.frozen


def test_a_guest_without_file_systems(freezer: Freezer, guest: GuestDouble) -> None:
    guest.changed["guest-fsfreeze-freeze"] = lambda *_: answer(0)
    freezer.prepare()
    with pytest.raises(NotFrozen, match="no file system"):
        freezer.freeze()
    freezer.thaw()
    assert guest.thawed.is_set()


def test_a_refusal_is_told(freezer: Freezer, guest: GuestDouble) -> None:
    guest.changed["guest-fsfreeze-freeze"] = lambda *_: refusal("failed to freeze /: it does not want to")
    freezer.prepare()
    with pytest.raises(NotFrozen, match="it does not want to"):
        freezer.freeze()
    assert freezer.thaw() == Thawed(0, "")
    assert guest.thawed.is_set(), "some of them may have been frozen"


def test_a_thaw_that_fails_is_told_and_tried_again(freezer: Freezer, guest: GuestDouble) -> None:
    guest.changed["guest-fsfreeze-thaw"] = lambda *_: refusal("not now")
    freezer.prepare()
    freezer.freeze()
    assert freezer.thaw() == Thawed(0, "guest-fsfreeze-thaw: not now")
    assert guest.frozen
    assert freezer.working
    del guest.changed["guest-fsfreeze-thaw"]
    assert guest.thawed.wait(10)


def test_a_thaw_that_is_not_answered_is_tried_again(freezer: Freezer, guest: GuestDouble) -> None:
    freezer.prepare()
    freezer.freeze()
    guest.changed["guest-fsfreeze-thaw"] = lambda *_: b"garbage\n"
    assert "cannot be used" in freezer.thaw().stuck
    guest.changed.clear()
    assert guest.thawed.wait(10)


def test_nobody_says_thaw(freezer: Freezer, guest: GuestDouble) -> None:
    """Whoever wanted it frozen hangs."""
    freezer.prepare()
    freezer.freeze()
    assert guest.thawed.wait(10)
    eventually(lambda: not freezer.working, "it ends")
    assert freezer.thaw() == Thawed(0, ""), "it was thawed before that was wished: nothing is said of the mark"
    assert guest.asked.count("guest-fsfreeze-thaw") == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_process_that_freezes_is_lost(
    freezer: Freezer, guest: GuestDouble, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everywhen.capture.freezer._THAW_S", 3.0)
    freezer.prepare()
    freezer.freeze()
    os.kill(child(os.getpid(), "freeze_process"), how)
    assert freezer.thaw() == Thawed(2, "")
    assert guest.thawed.is_set()


def test_it_is_killed_as_it_freezes(freezer: Freezer, guest: GuestDouble) -> None:
    def killed(*_: object) -> bytes:
        guest.frozen = True
        os.kill(child(os.getpid(), "freeze_process"), signal.SIGKILL)
        return answer(2)

    guest.changed["guest-fsfreeze-freeze"] = killed
    freezer.prepare()
    with pytest.raises(NotFrozen, match="was lost"):
        freezer.freeze()
    assert freezer.thaw() == Thawed(2, "")


def test_ours_is_killed(order: FreezeOrder, guest: GuestDouble) -> None:
    with subprocess.Popen([sys.executable, "-c", _OURS, order.encode()], stdout=subprocess.PIPE) as ours:
        assert ours.stdout is not None
        assert ours.stdout.readline() == b"frozen\n"
        process = child(ours.pid, "freeze_process")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process, number)  # as when all of ours are told to end
        assert guest.frozen
        ours.kill()
    assert guest.thawed.wait(5)
    eventually(lambda: not Path(order.record).exists(), "nothing says that it is frozen")


def test_all_of_ours_are_killed(order: FreezeOrder, guest: GuestDouble) -> None:
    with subprocess.Popen([sys.executable, "-c", _OURS, order.encode()], stdout=subprocess.PIPE) as ours:
        assert ours.stdout is not None
        assert ours.stdout.readline() == b"frozen\n"
        os.kill(child(ours.pid, "freeze_process"), signal.SIGKILL)
        ours.kill()
    assert guest.frozen
    assert thaw_left(Path(order.record)) == ""
    assert not guest.frozen
    eventually(lambda: not Path(order.record).exists(), "nothing says that it is frozen")
    assert thaw_left(Path(order.record)) == ""


def test_the_vm_ends_frozen(tmp_path: Path, order: FreezeOrder) -> None:
    with listening(tmp_path / "agent", GuestDouble()):
        freezer = Freezer(order)
        freezer.prepare()
        freezer.freeze()
    freezer.thaw()
    eventually(lambda: not freezer.working, "there is nothing to thaw")
    freezer.close()
    assert not Path(order.record).exists()


def test_a_record_that_cannot_be_read(tmp_path: Path) -> None:
    record = tmp_path / "frozen"
    record.write_bytes(b"?")
    assert "cannot be read" in thaw_left(record)
    assert thaw_left(record) == ""


class Hooks:
    """What hooks in a double of a guest do: `ends` is their exit code, None: they do not end."""

    def __init__(self, guest: GuestDouble) -> None:
        self.calls: list[list[str]] = []
        self.ends: int | None = 0
        guest.changed["guest-exec"] = self._exec
        guest.changed["guest-exec-status"] = self._status

    def _exec(self, _: str, arguments: dict[str, Any]) -> bytes:
        self.calls.append([arguments["path"], *arguments["arg"]])
        return answer({"pid": len(self.calls)})

    def _status(self, _: str, arguments: dict[str, Any]) -> bytes:
        said = base64.b64encode(b"said \x1b[31m " + b"much " * 1000).decode()
        ended = {"exited": True, "exitcode": self.ends, "out-data": said}
        return answer({"exited": False} if self.ends is None and arguments["pid"] == 1 else ended)


def hooked(order: FreezeOrder, host_hook: str = "") -> FreezeOrder:
    return replace(order, hooks=True, host_hook=host_hook)


def quiet(order: FreezeOrder) -> tuple[list[str], list[str], list[str]]:
    """A freeze and its end: what was said, what failed, and what was not there."""
    freezer = Freezer(order)
    try:
        freezer.prepare()
        found = freezer.freeze()
        assert freezer.thaw() == Thawed(2, "")
    finally:
        freezer.close()
    eventually(lambda: not freezer.working, "it ends")
    return found.said, found.failed, found.absent


def test_hooks_are_called_around_it(tmp_path: Path, order: FreezeOrder, guest: GuestDouble) -> None:
    hooks = Hooks(guest)
    log, program = tmp_path / "log", tmp_path / "hook"
    program.write_text(f'#!/bin/sh\necho "$1" >> {log}\necho 3 databases\n')
    program.chmod(0o755)
    said, failed, absent = quiet(hooked(order, host_hook=str(program)))
    assert said[0] == "host hook (3 databases)"
    assert said[1].startswith("guest hook (said")
    assert len(said[1]) < 300
    assert (failed, absent) == ([], [])
    assert hooks.calls == [[GUEST_HOOK, "freeze"], [GUEST_HOOK, "thaw"]]
    assert log.read_text() == "freeze\nthaw\n"
    assert (
        guest.asked.index("guest-exec") < guest.asked.index("guest-fsfreeze-freeze") < guest.asked.index("guest-fsfreeze-thaw")
    )


def test_hooks_that_fail(tmp_path: Path, order: FreezeOrder, guest: GuestDouble) -> None:
    hooks = Hooks(guest)
    hooks.ends = 3
    program = tmp_path / "hook"
    program.write_text("#!/bin/sh\nexit 5\n")
    program.chmod(0o755)
    said, failed, _ = quiet(hooked(order, host_hook=str(program)))
    assert said == []
    assert failed[0] == "host hook: it ended with 5"
    assert failed[1].startswith("guest hook: it ended with 3: said")
    assert hooks.calls[-1] == [GUEST_HOOK, "thaw"], "what has failed may have begun"


@pytest.mark.parametrize("exec_answer", [answer(5), answer({"pid": "x"}), answer({})])
def test_an_agent_that_lies_about_hooks(order: FreezeOrder, guest: GuestDouble, exec_answer: bytes) -> None:
    guest.changed["guest-exec"] = lambda *_: exec_answer
    _, failed, _ = quiet(hooked(order))
    assert "otherwise than an agent does" in failed[0]


def test_there_is_no_hook(order: FreezeOrder, guest: GuestDouble) -> None:
    said, failed, absent = quiet(hooked(order))
    assert (said, failed) == ([], [])
    assert absent == ["there is no guest hook, or the agent may not run it"]
    assert guest.asked.count("guest-exec") == 1


def test_windows_has_vss_and_a_hook_of_its_own(order: FreezeOrder, guest: GuestDouble) -> None:
    hooks = Hooks(guest)
    guest.changed["guest-get-osinfo"] = lambda *_: answer({"id": "mswindows"})
    said, _, _ = quiet(hooked(order))
    assert said[0] == "VSS"
    assert hooks.calls[0] == ["cmd.exe", "/c", WINDOWS_HOOK, "freeze"]
