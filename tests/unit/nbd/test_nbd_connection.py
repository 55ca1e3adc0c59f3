# SPDX-License-Identifier: AGPL-3.0-or-later
"""A server that does not get to the point keeps nobody for ever."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from everywhen.nbd import protocol as p
from everywhen.nbd.connection import NbdConnection, NbdError

GREETING = p.GREETING.pack(p.MAGIC, p.OPTION_MAGIC, p.FIXED_NEWSTYLE)
NO_STRUCTURE = p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, p.OPT_STRUCTURED_REPLY, p.REP_ERR_UNSUP, 0)
INFO = p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, p.OPT_GO, p.REP_INFO, 2) + b"\0\x07"


@contextmanager
def served(folder: Path, play: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that plays this part for one client."""
    path = folder / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def run() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):  # the client hangs up
                play(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield str(path)
        thread.join()


def endless(connection: socket.socket) -> None:
    connection.sendall(GREETING + NO_STRUCTURE)
    while True:
        connection.sendall(INFO)


def silent(connection: socket.socket) -> None:
    connection.sendall(GREETING)
    while connection.recv(1 << 16):
        pass


@pytest.mark.parametrize("play", [endless, silent])
def test_a_handshake_that_does_not_end(tmp_path: Path, play: Callable[[socket.socket], None]) -> None:
    with served(tmp_path, play) as path, pytest.raises(NbdError, match=r"no handshake within|timed out"):
        NbdConnection(path, "disk", timeout=0.2)
