# SPDX-License-Identifier: AGPL-3.0-or-later
"""The monitor's protocol: answers by number, events between them, and peers that are none."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from everywhen.capture.nodes import DiskNode
from everywhen.capture.qmp import (
    MOST_EVENTS,
    Answer,
    CommandFailed,
    Event,
    Heard,
    MonitorBusy,
    MonitorError,
    QmpMonitor,
    QmpSession,
)
from everywhen.capture.tap import Tap
from everywhen.formats.errors import Corrupt

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


def line(**message: object) -> bytes:
    return json.dumps(message).encode() + b"\r\n"


def test_messages_come_in_whatever_pieces() -> None:
    data = (
        GREETING
        + line(event="STOP", timestamp={"seconds": -1, "microseconds": -1})
        + line(**{"return": {"a": 1}, "id": 4})
        + line(error={"class": "GenericError", "desc": "no"}, id=5)
    )
    for size in (1, 7, len(data)):
        session = QmpSession()
        found = [item for at in range(0, len(data), size) for item in session.receive(data[at : at + size])]
        assert session.greeted
        assert found == [Event("STOP", {}), Answer(4, {"a": 1}, None), Answer(5, None, ("GenericError", "no"))]


@pytest.mark.parametrize("data", [b"HTTP/1.1 400", b"[]", b'{"x": 1}', b'{"return": 1}', b'{"event": "A", "data": 3}'])
def test_what_is_no_qmp(data: bytes) -> None:
    with pytest.raises(Corrupt):
        QmpSession().receive(data + b"\n")


@contextmanager
def played(part: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A socket to a peer that plays this part."""
    mine, peer = socket.socketpair()
    thread = threading.Thread(target=part, args=(peer,))
    thread.start()
    try:
        yield mine
    finally:
        mine.close()
        thread.join()
        peer.close()


def test_a_monitor() -> None:
    def qemu(peer: socket.socket) -> None:
        peer.sendall(GREETING)
        stream = peer.makefile("rb")
        for text in iter(stream.readline, b""):
            command = json.loads(text)
            peer.sendall(line(event="STOP", data={"of": command["execute"]}))
            if command["execute"] == "bad":
                peer.sendall(line(error={"class": "DeviceNotFound", "desc": "no such thing"}, id=command["id"]))
            else:
                peer.sendall(line(**{"return": command.get("arguments"), "id": command["id"]}))

    with played(qemu) as mine:
        monitor = QmpMonitor(mine, 5)
        assert monitor.execute("echo", {"a": [1]}) == {"a": [1]}
        with pytest.raises(CommandFailed, match="no such thing") as caught:
            monitor.execute("bad")
        assert (caught.value.command, caught.value.kind) == ("bad", "DeviceNotFound")
        wanted = monitor.next_event(1, lambda event: event.data["of"] == "bad")
        assert wanted is not None
        first = monitor.next_event(1)
        assert first is not None
        assert first.data == {"of": "qmp_capabilities"}
        assert monitor.next_event(0, lambda event: event.name == "OTHER") is None


def test_an_event_that_has_come_is_found_without_waiting() -> None:
    mine, peer = socket.socketpair()
    with peer:
        peer.sendall(GREETING + line(**{"return": {}, "id": 1}))
        with QmpMonitor(mine, 5) as monitor:
            assert monitor.next_event(0) is None
            peer.sendall(line(event="STOP"))
            found = monitor.next_event(0)
            assert found is not None
            assert found.name == "STOP"
            peer.close()
            with pytest.raises(MonitorError, match="hung up"):
                monitor.next_event(0)


def test_a_guest_cannot_hide_the_end_of_its_tap() -> None:
    mine, peer = socket.socketpair()
    with peer:
        peer.sendall(GREETING + line(**{"return": {}, "id": 1}))
        with QmpMonitor(mine, 5) as monitor:

            def happens() -> None:
                peer.sendall(line(event="BLOCK_JOB_COMPLETED", data={"device": "everywhen-tap-0", "error": "it is gone"}))
                for _ in range(MOST_EVENTS):  # each is a read of a bad sector
                    peer.sendall(line(event="BLOCK_IO_ERROR", data={"device": "vda"}))
                peer.sendall(line(event="BLOCK_EXPORT_DELETED", data={"id": "the last"}))

            thread = threading.Thread(target=happens)
            thread.start()
            assert monitor.next_event(5, lambda event: event.data.get("id") == "the last") is not None
            thread.join()
            tap = Tap(monitor, DiskNode("vda", "node0", 1 << 20, iothread=False), 0)
            assert tap.ended(0) == "it is gone"


def test_a_peer_that_is_silent_hangs_up_or_speaks_otherwise() -> None:
    with played(lambda peer: None) as mine, pytest.raises(MonitorError, match="does not answer"):
        QmpMonitor(mine, 0.05)
    with played(lambda peer: peer.close()) as mine, pytest.raises(MonitorError, match="hung up"):
        QmpMonitor(mine, 5)
    with played(lambda peer: peer.sendall(b"220 smtp ready\r\n")) as mine, pytest.raises(MonitorError, match="no QMP"):
        QmpMonitor(mine, 5)


def test_a_monitor_that_serves_somebody_else_is_busy_not_away(tmp_path: Path) -> None:
    """QEMU takes the next client when the one before hangs up; so long nothing greets whoever waits, and few can."""
    path = tmp_path / "qmp.sock"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as waiting:
        listening.bind(str(path))
        listening.listen(0)
        with pytest.raises(MonitorBusy, match="the monitor does not answer"):
            QmpMonitor.connect(str(path), 0.05)
        waiting.settimeout(1)
        with suppress(BlockingIOError):  # the one before waits there still
            waiting.connect(str(path))
        with pytest.raises(MonitorBusy, match="several clients wait"):
            QmpMonitor.connect(str(path), 0.05)


def test_a_monitor_whose_answer_is_late_is_busy_and_goes_on() -> None:
    """QEMU's main loop is blocked for as long as it saves much memory."""
    asked = threading.Event()

    def qemu(peer: socket.socket) -> None:
        peer.sendall(GREETING)
        stream = peer.makefile("rb")
        for text in iter(stream.readline, b""):
            command = json.loads(text)
            if command["execute"] == "slow":
                asked.wait()
            peer.sendall(line(**{"return": command["execute"], "id": command["id"]}))

    with played(qemu) as mine:
        monitor = QmpMonitor(mine, 5)
        with pytest.raises(MonitorBusy, match="does not answer"):
            monitor.execute("slow", timeout=0.05)
        asked.set()
        assert monitor.execute("next") == "next"


def test_a_job_that_fails_with_every_write_pushes_nothing_out() -> None:
    """A push that has lost its sink does (docs/capture.md, "Taking taps off")."""
    heard = Heard()
    heard.add(Event("SHUTDOWN", {}))
    for _ in range(MOST_EVENTS + 1):
        heard.add(Event("BLOCK_JOB_ERROR", {"device": "a", "operation": "write"}))
    heard.add(Event("BLOCK_JOB_ERROR", {"device": "b"}))
    taken = [heard.take(lambda _: True) for _ in range(4)]
    assert [event and (event.name, event.data.get("device")) for event in taken] == [
        ("SHUTDOWN", None),
        ("BLOCK_JOB_ERROR", "a"),
        ("BLOCK_JOB_ERROR", "b"),
        None,
    ]
    heard.add(Event("BLOCK_JOB_ERROR", {"device": "a"}))
    assert heard.take(lambda _: True) is not None, "it fails anew"
