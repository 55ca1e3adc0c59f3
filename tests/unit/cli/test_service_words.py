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
    with context.progress("copy of web1") as job:
        told = _Told(context, "web1", job, every_write=not apart)
        words = ServiceWords(told, ServiceManager(str(tmp_path / "notify")), time.monotonic, apart)
        words.waiting("the disk is full")
        assert systemd.recv(65536).decode().splitlines()[0] == status
        words.lost("the sink ended")
    # Neither is every bitmap believed after a loss, nor has each disk one.
    assert "It begins again by itself, and reads what changed, or all where nothing remembers that" in err.getvalue()
