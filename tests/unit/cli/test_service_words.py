# SPDX-License-Identifier: AGPL-3.0-or-later
"""What systemd is told: only what is so in the mode in which the VM is captured."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.output import Output
from everywhen.interfaces.cli.protect import _Told
from everywhen.interfaces.service_manager import ServiceManager
from everywhen.interfaces.service_words import ServiceWords


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening


@pytest.mark.parametrize(
    ("apart", "status"),
    [
        ("", "STATUS=Every write is captured; no recovery point can be made: the disk is full"),
        ("1 min", "STATUS=Points cannot be made: the disk is full"),
    ],
)
def test_where_no_point_can_be_made(tmp_path: Path, systemd: socket.socket, apart: str, status: str) -> None:
    err = io.StringIO()
    context = Context(Output(io.StringIO(), err, {}), {})
    words = ServiceWords(
        _Told(context, "web1", every_write=not apart), ServiceManager(str(tmp_path / "notify")), time.monotonic, apart
    )
    words.waiting("the disk is full")
    assert systemd.recv(65536).decode().splitlines()[0] == status
    words.lost("the sink ended")
    # Neither is every bitmap believed after a loss, nor has each disk one.
    assert "It begins again by itself, and reads what changed, or all where nothing remembers that" in err.getvalue()


def test_a_copy_after_a_loss_has_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bytes and the time of the one before it had 8 kB/s, and an hour to go that took a second."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    err = io.StringIO()
    told = _Told(Context(Output(io.StringIO(), err, {}), {}), "web1", every_write=True)
    for done in (0, 1_000_000):
        told.copying(done, 1_000_000)
        now[0] += 1
    told.lost("the sink ended")
    now[0] += 1000
    for done in (0, 2_000_000, 4_000_000):
        told.copying(done, 10_000_000)
        now[0] += 1
    assert err.getvalue().splitlines()[-1] == "copy of web1  40 %  4.0 MB of 10.0 MB  2.0 MB/s  3.0 s left"
    told.off("it was shut down", None)
    assert [line[:5] for line in err.getvalue().splitlines()[-2:]] == ["copy ", "web1:"]
