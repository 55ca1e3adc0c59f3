# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is at the other end of a guest agent's channel when it is no healthy agent. The real one: `guest_agent.py`."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Behaviour = Callable[[str, dict[str, Any]], bytes]
"""What is sent in answer to a command with these arguments."""


class GuestDouble:
    """A guest that can be frozen, with two file systems; what it was asked, in order."""

    def __init__(self) -> None:
        self.frozen = False
        self.asked: list[str] = []
        self.thawed = threading.Event()
        self.changed: dict[str, Behaviour] = {}
        """Commands that it answers otherwise."""

    def __call__(self, name: str, arguments: dict[str, Any]) -> bytes:
        self.asked.append(name)
        if name in self.changed:
            return self.changed[name](name, arguments)
        match name:
            case "guest-fsfreeze-status":
                return answer("frozen" if self.frozen else "thawed")
            case "guest-fsfreeze-freeze":
                self.frozen = True
                return answer(2)
            case "guest-fsfreeze-thaw":
                count, self.frozen = 2 if self.frozen else 0, False
                self.thawed.set()
                return answer(count)
        return refusal(f"The command {name} has not been found")


def answer(value: object) -> bytes:
    """An agent's answer."""
    return json.dumps({"return": value}).encode() + b"\n"


def refusal(why: str) -> bytes:
    """An agent's error."""
    return json.dumps({"error": {"class": "GenericError", "desc": why}}).encode() + b"\n"


@contextmanager
def listening(path: Path, behaviour: Behaviour, *, greeting: bytes = b"") -> Iterator[None]:
    """An agent at a socket, for one client at a time, as QEMU has it; `greeting`: what waits there for whoever comes."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen(8)
    current: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            current[:] = [connection]
            with connection, suppress(OSError), connection.makefile("rb") as lines:
                connection.sendall(greeting)
                for line in lines:
                    message = json.loads(line.rpartition(b"\xff")[2])
                    arguments = message.get("arguments", {})
                    if message["execute"] == "guest-sync-delimited":
                        connection.sendall(b"\xff" + answer(arguments["id"]))
                    else:
                        connection.sendall(behaviour(message["execute"], arguments))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        for connection in current:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()
