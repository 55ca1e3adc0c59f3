# SPDX-License-Identifier: AGPL-3.0-or-later
"""How commands speak to a capture that runs on this host: one JSON object over a unix socket, one in answer.

    {"wish": "ship"} · {"wish": "mark", "text": …} · {"wish": "pause", "seconds": …} · {"wish": "resume"} · {"wish": "status"}

An answer with `error` says why nothing was done. The socket lies in the VM's folder, for its owner only.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, parse_json, text
from everywhen.services.wishes import Mark, Pause, Reply, Resume, Ship, Wish

NAME = "control.sock"
_LONGEST = 1 << 16
_ANSWER_S = 120.0
"""A point that is being made comes first, and may take a while."""


class NobodyThere(Exception):
    """No capture of that VM runs on this host."""


def ask(folder: Path, request: Json) -> Json:
    """The answer of the capture in a VM's folder. Raises NobodyThere."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_S)
        try:
            connection.connect(str(folder / NAME))
            connection.sendall(json.dumps(request).encode() + b"\n")
            return parse_json("the capture's answer", _line(connection))
        except (OSError, Corrupt) as error:
            raise NobodyThere(f"no capture answers at {folder / NAME}: {error}") from error


class Listener:
    """Takes wishes at a socket, and the wish to end from its own process; is `services.wishes.Wishes`."""

    def __init__(self, folder: Path, status: Callable[[], Json]) -> None:
        """`status`: what a capture says of itself at any time. Raises OSError."""
        self._status = status
        self._wishes: queue.Queue[Wish | None] = queue.Queue()
        self._ending = threading.Event()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = folder / NAME
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self._path))
        self._path.chmod(0o600)
        self._socket.listen(8)
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._path.unlink(missing_ok=True)
        self._socket.close()

    @property
    def ending(self) -> bool:
        return self._ending.is_set()

    def end(self) -> None:
        """Wish the end; may be called from a signal."""
        self._ending.set()
        self._wishes.put(None)

    def wait(self, seconds: float) -> Wish | None:
        if self.ending:
            return None
        try:
            return self._wishes.get(timeout=seconds)
        except queue.Empty:
            return None

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(_ANSWER_S)
            answered: queue.Queue[Json] = queue.Queue()
            try:
                wish = self._wish(parse_json("a wish", _line(connection)), answered.put)
                if wish is not None:
                    self._wishes.put(wish)
                answer = answered.get(timeout=_ANSWER_S)
            except Corrupt as error:
                answer = {"error": str(error)}
            except queue.Empty:
                answer = {"error": f"no answer within {_ANSWER_S:.0f} s"}
            except OSError:
                return  # whoever asked is gone
            try:
                connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:
                return

    def _wish(self, value: Json, reply: Reply) -> Wish | None:
        """Raises Corrupt."""
        match text(value, "wish"):
            case "ship":
                return Ship(reply)
            case "mark":
                return Mark(text(value, "text"), reply)
            case "pause":
                seconds = value.get("seconds")
                if not isinstance(seconds, int | float) or not 0 < seconds <= 7 * 86400:
                    raise Corrupt("a pause lasts from 0 seconds to 7 days")
                return Pause(float(seconds), reply)
            case "resume":
                return Resume(reply)
            case "status":
                reply(self._status())
                return None
            case other:
                raise Corrupt(f"{other!r} is no wish")


def _line(connection: socket.socket) -> bytes:
    """Up to the line's end. Raises OSError, Corrupt."""
    received = b""
    while not received.endswith(b"\n"):
        part = connection.recv(_LONGEST)
        received += part
        if not part or len(received) > _LONGEST:
            raise Corrupt("a message that is cut off, or too long")
    return received
