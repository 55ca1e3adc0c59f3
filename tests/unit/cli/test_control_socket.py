# SPDX-License-Identifier: AGPL-3.0-or-later
"""Wishes over the socket: none is lost, none comes too late, and whoever asks hears the end."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everywhen.formats.fields import Json
from everywhen.interfaces import control_socket
from everywhen.interfaces.control_socket import NAME, Listener, NoAnswer, NobodyThere, ask
from everywhen.services.failures import Busy
from everywhen.services.protect.wishes import End, Mark, Pause, Resume, Ship
from tests.hypervisor import eventually


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "web1"


@pytest.fixture
def listener(folder: Path) -> Iterator[Listener]:
    with Listener(folder, lambda: {"state": "following"}) as running:
        yield running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as running:
        yield running


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        ({"wish": "ship"}, Ship),
        ({"wish": "mark", "text": "x"}, Mark),
        ({"wish": "mark", "text": "x", "at_ns": 5}, Mark),
        ({"wish": "pause", "seconds": 2}, Pause),
        ({"wish": "resume"}, Resume),
    ],
)
def test_a_wish_and_its_answer(folder: Path, listener: Listener, pool: ThreadPoolExecutor, request_: Json, kind: type) -> None:
    answer = pool.submit(ask, folder, request_)
    wish = listener.wait(10)
    assert isinstance(wish, kind)
    assert wish is not None
    wish.reply({"done": 1})
    assert answer.result(10) == {"done": 1}
    assert not listener.ending


def test_the_state_is_told_while_nobody_takes_wishes(folder: Path, listener: Listener) -> None:
    assert ask(folder, {"wish": "status"}) == {"state": "following"}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"wish": "dance"},
        {"wish": "mark"},
        {"wish": "mark", "text": "x", "at_ns": "now"},
        {"wish": "pause", "seconds": 1e9},
    ],
)
def test_what_is_no_wish(folder: Path, listener: Listener, wrong: Json) -> None:
    assert "error" in ask(folder, wrong)
    assert listener.wait(0) is None


def test_a_wish_that_nobody_waits_for_any_more_is_not_granted(
    folder: Path, listener: Listener, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "GRANTED_S", 0.0)
    monkeypatch.setattr(control_socket, "ANSWER_S", 0.2)
    with pytest.raises(NoAnswer):
        ask(folder, {"wish": "pause", "seconds": 5}, patience_s=10)
    assert listener.wait(0.1) is None
    monkeypatch.setattr(control_socket, "GRANTED_S", 60.0)
    late = pool.submit(ask, folder, {"wish": "ship"}, patience_s=10)
    assert isinstance(listener.wait(10), Ship), "those after it are"
    with pytest.raises(NoAnswer):
        late.result(10)


def test_the_end(folder: Path, pool: ThreadPoolExecutor) -> None:
    with Listener(folder, dict) as listener:
        answer = pool.submit(ask, folder, {"wish": "end"})
        while not listener.ending:
            assert listener.wait(10) is None
        assert isinstance(listener.end_wish, End)
        listener.end_wish.reply({"taken_off": 3})
    assert answer.result(10) == {"taken_off": 3}, "also when the process ends right after it"
    with pytest.raises(NobodyThere):
        ask(folder, {"wish": "status"})


def test_who_waits_when_it_ends_is_told(folder: Path, pool: ThreadPoolExecutor) -> None:
    with Listener(folder, dict) as listener:
        answers = [pool.submit(ask, folder, {"wish": "ship"}) for _ in range(2)]
        assert listener.wait(10) is not None  # taken, and never answered
        while listener._wishes.empty():
            threading.Event().wait(0.001)
        listener.end()
        assert listener.wait(10) is None
    assert [answer.result(10) for answer in answers] == [{"error": "the capture has ended"}] * 2


def test_one_that_is_silent_is_told_from_none(folder: Path) -> None:
    with pytest.raises(NobodyThere) as nowhere:
        ask(folder / ("x" * 100), {"wish": "status"})
    assert not isinstance(nowhere.value, NoAnswer)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / NAME))
        with pytest.raises(NobodyThere) as nobody:
            ask(folder, {"wish": "status"})
        assert not isinstance(nobody.value, NoAnswer)
        listening.listen()
        with pytest.raises(NoAnswer):
            ask(folder, {"wish": "status"}, patience_s=0.1)


def test_a_second_capture_in_the_same_folder_takes_nothing_from_the_first(folder: Path, listener: Listener) -> None:
    with pytest.raises(Busy, match="another run"), Listener(folder, lambda: {"state": "second"}):
        pass
    assert ask(folder, {"wish": "status"}) == {"state": "following"}


def test_a_folder_is_free_when_its_capture_has_ended(folder: Path) -> None:
    for _ in range(2):
        with Listener(folder, dict):
            pass


class Refusals(threading.Event):
    """How often a listener has waited because it could not take a connection."""

    count = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.count += 1
        return super().wait(timeout)


def test_a_connection_that_cannot_be_taken_is_not_the_last(folder: Path, listener: Listener) -> None:
    """Out of descriptors for a moment: who asks then, and who asks later, is heard."""
    listener._closed = refusals = Refusals()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(10)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            silent.connect(str(folder / NAME))  # takes the descriptor that the waiting call of accept has by now
            asking.connect(str(folder / NAME))
            asking.sendall(b'{"wish": "status"}\n')
            eventually(lambda: refusals.count > 0, "the next one fails")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert json.loads(asking.recv(1 << 16)) == {"state": "following"}
    assert ask(folder, {"wish": "status"}) == {"state": "following"}


def test_a_signal_may_come_wherever_the_wait_for_wishes_is(listener: Listener) -> None:
    """A Queue's lock would be held by the thread that the signal interrupts: it waited for itself, and capture did not end."""
    before = signal.signal(signal.SIGPROF, lambda _number, _frame: listener.end())
    signal.setitimer(signal.ITIMER_PROF, 0.0005, 0.0005)  # of processor time: it comes while Python runs, not while it waits
    try:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            listener._ending = False
            listener.wait(0)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
