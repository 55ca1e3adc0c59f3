# SPDX-License-Identifier: AGPL-3.0-or-later
"""How commands speak to a capture that runs on this host: one JSON object over a unix socket, one in answer.

    {"wish": "ship"} · {"wish": "mark", "text": …, "at_ns": …} · {"wish": "pause", "seconds": …} ·
    {"wish": "resume", "in_sync": …} · {"wish": "end"} · {"wish": "status"}

An answer with `error` says why nothing was done. The socket lies in the VM's folder, for its owner only. Nobody waits longer
than ANSWER_S, and a wish that nobody waits for any more is not granted: a pause that comes an hour late does harm.

Who listens has the folder locked: the spool, the taps and the socket are of one capture, and a second one would take the spool
of the first for what a killed run left.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, optional_text, parse_json, text, whole
from everywhen.repository.index.process_lock import try_lock
from everywhen.services.failures import Busy, WrongUsage
from everywhen.services.protect.socket_names import LONGEST, too_long
from everywhen.services.protect.wishes import ANSWER_S, GRANTED_S, LONGEST_PAUSE_S, End, Mark, Pause, Reply, Resume, Ship, Wish

NAME = "control.sock"
_LONGEST = 1 << 16
_FAREWELL_S = 2.0
_AGAIN_S = 0.1
"""After a connection that could not be taken: a process that is out of descriptors would turn in circles."""
_ENDED = "the capture has ended"


class NobodyThere(Exception):
    """No capture of that VM runs on this host."""


class Killed(NobodyThere):
    """One ran on this host and did not end in order: its socket is there, and nobody listens."""


class NoAnswer(NobodyThere):
    """Something is there, but gives no answer: it hangs, has just ended, or does not talk to this user."""


def ask(folder: Path, request: Json, *, patience_s: float = ANSWER_S) -> Json:
    """The answer of the capture in a VM's folder, within so many seconds. Raises NobodyThere."""
    if not hasattr(socket, "AF_UNIX"):
        raise NobodyThere("nothing is captured on such a system")
    path = str(folder / NAME)
    if len(os.fsencode(path)) > LONGEST:
        raise NobodyThere(f"no capture can be at {path}: the name is too long for a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience_s)
        try:
            connection.connect(path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            return parse_json("the capture's answer", _line(connection))
        except ConnectionRefusedError as error:
            raise Killed(f"the capture at {path} was killed: {error}") from error
        except FileNotFoundError as error:
            raise NobodyThere(f"no capture answers at {path}: {error}") from error
        except (OSError, Corrupt) as error:
            raise NoAnswer(f"no answer at {path}: {error}") from error


def forget(folder: Path) -> None:
    """Let nothing say any more that a capture which was killed ran in this folder. Raises OSError."""
    (folder / NAME).unlink(missing_ok=True)


class Listener:
    """Takes wishes at a socket, and the wish to end from its own process; is `services.wishes.Wishes`."""

    def __init__(self, folder: Path, status: Callable[[], Json]) -> None:
        """`status`: what a capture says of itself at any time. Raises Busy where one is in this folder already; WrongUsage
        where the names of sockets in it would be too long; OSError."""
        self._status = status
        # Both are changed in a signal's handler, too: by a thread that may hold what a Queue or an Event would wait for then.
        self._wishes: queue.SimpleQueue[tuple[Wish, float] | None] = queue.SimpleQueue()
        self._ending = False
        self._closed = threading.Event()
        self._end_wish: End | None = None
        self._serving: dict[threading.Thread, queue.Queue[Json]] = {}
        if (longest := too_long(folder)) is not None:
            raise WrongUsage(
                f"{longest} is longer than {LONGEST} bytes, which no socket's name may be.",
                on=str(folder),
                safe="Nothing was changed.",
                do=["Set EVERYWHEN_STATE to a shorter one."],
            )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _locked(folder)
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
        self._closed.set()
        self._socket.close()
        until = time.monotonic() + _FAREWELL_S
        for thread, answered in list(self._serving.items()):
            answered.put({"error": _ENDED})  # whoever was answered already hears of the first answer only
            thread.join(max(0.0, until - time.monotonic()))
        os.close(self._lock)

    @property
    def ending(self) -> bool:
        return self._ending

    @property
    def end_wish(self) -> End | None:
        return self._end_wish

    def end(self) -> None:
        """Wish the end of this run; may be called from a signal."""
        self._ending = True
        self._wishes.put(None)

    def wait(self, seconds: float) -> Wish | None:
        until = time.monotonic() + seconds
        while not self.ending:
            try:
                found = self._wishes.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if found is not None and found[1] > time.monotonic():
                return found[0]
        return None

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                # Out of descriptors, or who asked has hung up: whoever asks next is to be heard all the same.
                if self._closed.wait(_AGAIN_S):
                    return
                continue
            answered: queue.Queue[Json] = queue.Queue()
            thread = threading.Thread(target=self._serve, args=(connection, answered), daemon=True)
            self._serving[thread] = answered
            thread.start()

    def _serve(self, connection: socket.socket, answered: queue.Queue[Json]) -> None:
        try:
            self._answer(connection, answered)
        finally:
            del self._serving[threading.current_thread()]

    def _answer(self, connection: socket.socket, answered: queue.Queue[Json]) -> None:
        with connection:
            connection.settimeout(ANSWER_S)
            try:
                wish = self._wish(parse_json("a wish", _line(connection)), answered.put)
                if isinstance(wish, End):
                    self._end_wish = wish
                    self.end()
                elif wish is not None:
                    self._wishes.put((wish, time.monotonic() + GRANTED_S))
                answer = answered.get(timeout=ANSWER_S)
            except Corrupt as error:
                answer = {"error": str(error)}
            except (OSError, queue.Empty):
                return  # whoever asked is gone; who is not yet is told so by that nobody answers
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
                at_ns = None if value.get("at_ns") is None else whole(value, "at_ns")
                return Mark(text(value, "text"), reply, at_ns, time.monotonic())
            case "pause":
                seconds = value.get("seconds")
                if not isinstance(seconds, int | float) or not 0 < seconds <= LONGEST_PAUSE_S:
                    raise Corrupt("a pause lasts from 0 seconds to 7 days")
                return Pause(float(seconds), reply, time.monotonic())
            case "resume":
                return Resume(reply, optional_text(value, "in_sync") or "")
            case "end":
                return End(reply)
            case "status":
                reply(self._status())
                return None
            case other:
                raise Corrupt(f"{other!r} is no wish")


def _locked(folder: Path) -> int:
    """The folder, for nobody else until it is closed or this process ends. Raises Busy."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    if not try_lock(descriptor):
        os.close(descriptor)
        raise Busy(
            f"{folder.name} is being captured by another run on this host.",
            on=str(folder),
            safe="Nothing was changed; that one goes on.",
            do=["Is it a service? Then that is what protects the VM: everywhen status"],
        )
    return descriptor


def _line(connection: socket.socket) -> bytes:
    """Up to the line's end. Raises OSError, Corrupt."""
    received = b""
    while not received.endswith(b"\n"):
        part = connection.recv(_LONGEST)
        received += part
        if not part or len(received) > _LONGEST:
            raise Corrupt("a message that is cut off, or too long")
    return received
