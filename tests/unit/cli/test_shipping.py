# SPDX-License-Identifier: AGPL-3.0-or-later
"""Before a restore a capture is asked for what was written last; that it gives nothing is said, that there is none is not."""

from __future__ import annotations

import io
import socket
import threading
from pathlib import Path

import pytest

from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.output import Output
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.interfaces.control_socket import NAME, Listener


@pytest.fixture
def err() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def context(tmp_path: Path, err: io.StringIO) -> Context:
    (tmp_path / "web1").mkdir()
    return Context(Output(io.StringIO(), err, {}), {"EVERYWHEN_STATE": str(tmp_path)})


def test_of_no_capture_nothing_is_said(context: Context, err: io.StringIO) -> None:
    ship_newest(context, "web1")
    ship_newest(context, "no name of ours")
    assert err.getvalue() == ""


def test_a_capture_that_gives_no_answer_is_named(context: Context, err: io.StringIO) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(context.state("web1") / NAME))
        listening.listen()
        one = threading.Thread(target=lambda: listening.accept()[0].close())
        one.start()
        ship_newest(context, "web1")
        one.join()
    assert err.getvalue() == (
        "warning: web1: what was written last is not in the repository yet "
        "(its capture does not answer, or belongs to another user)\n"
    )


def test_why_a_capture_cannot_is_said(context: Context, err: io.StringIO) -> None:
    with Listener(context.state("web1"), dict) as listener:
        one = threading.Thread(target=ship_newest, args=(context, "web1"))
        one.start()
        wish = listener.wait(10)
        assert wish is not None
        wish.reply({"error": "the disk is full"})
        one.join()
    assert "is not in the repository yet (the disk is full)" in err.getvalue()
