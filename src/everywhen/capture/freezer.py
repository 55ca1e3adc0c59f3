# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest frozen and thawed, from the side of `protect`: what it wishes of `freeze_process`, and what became of it.

The process outlives whoever started it as long as the guest may be frozen; where the process itself is lost, another one thaws.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic

from everywhen.capture.freeze_process import FREEZE, THAW, FreezeOrder
from everywhen.capture.freezing import FREEZE_S, HOOK_S, VSS_S, NotFrozen, Quiet
from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, flag, mapping, parse_json, text, texts, whole

_PREPARE_S = 2 * HOOK_S + 20.0
_FREEZE_S = max(FREEZE_S, VSS_S) + 10.0
_THAW_S = 10.0
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class Thawed:
    """How a freeze ended: file systems that were frozen until then; why they may be frozen still ('': they are not)."""

    file_systems: int
    stuck: str


class _Lost(Exception):
    """The process has ended without a word, or says nothing."""


class Freezer:
    """One freeze. Close it, whatever happened; a guest that is frozen then is thawed by itself."""

    def __init__(self, order: FreezeOrder) -> None:
        """Start the process. Raises OSError."""
        self._order = order
        self._received = b""
        self._channel, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "everywhen.capture.freeze_process", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        if self._process.stdin is not None:
            with self._process.stdin:
                self._process.stdin.write(order.encode())

    @property
    def working(self) -> bool:
        """Whether the guest may still be frozen, or its applications wait to be told to go on."""
        return self._process.poll() is None

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def prepare(self) -> None:
        """See that the agent answers, and call the hooks. Raises NotFrozen."""
        self._expect("prepared", _PREPARE_S)

    def freeze(self) -> Quiet:
        """Freeze the file systems. Raises NotFrozen; then too `thaw` says how it ends."""
        self._wish(FREEZE)
        quiet = mapping(self._expect("frozen", _FREEZE_S), "frozen")
        said, failed, absent = (texts(quiet, name) for name in ("said", "failed", "absent"))
        clock = None if quiet.get("clock") is None else mapping(quiet, "clock")
        clocks = {name: whole(clock, name) for name in ("host_ns", "guest_ns")} if clock is not None else None
        return Quiet(whole(quiet, "file_systems"), said, failed, absent, clocks)

    def thaw(self) -> Thawed:
        """Let the guest go on."""
        try:
            with suppress(NotFrozen):  # it has ended: what it said last is still there
                self._wish(THAW)
            return self._thawed(self._next(_THAW_S))
        except _Lost as lost:
            return self._thawed_by_another(str(lost))

    def wait_thawed(self) -> Thawed:
        """What became of an order to thaw only."""
        try:
            found = self._thawed(self._next(_THAW_S))
        except _Lost as lost:
            return Thawed(0, str(lost))
        if not found.stuck:
            self._process.wait()  # nothing is left for it to do
        return found

    def _thawed_by_another(self, why: str) -> Thawed:
        """The process is gone, and nobody but it would thaw the guest."""
        self._process.kill()
        self._process.wait()
        self.close()
        another = Freezer(replace(self._order, only_thaw=True))
        self._process, self._channel, self._received = another._process, another._channel, b""
        found = self.wait_thawed()
        return Thawed(found.file_systems, found.stuck and f"{why}; {found.stuck}")

    @staticmethod
    def _thawed(line: Json) -> Thawed:
        if "stuck" in line:
            return Thawed(0, text(line, "stuck"))
        return Thawed(whole(line, "thawed") if flag(line, "in_time") else 0, "")

    def _wish(self, wish: bytes) -> None:
        try:
            self._channel.sendall(wish)
        except OSError as error:
            raise NotFrozen(f"the process that freezes was lost ({error})") from error

    def _expect(self, what: str, seconds: float) -> Json:
        try:
            line = self._next(seconds)
        except _Lost as lost:
            raise NotFrozen(str(lost)) from lost
        if what not in line:
            raise NotFrozen(text(line, "failed", "it was not done in time"))
        return line

    def _next(self, seconds: float) -> Json:
        end = monotonic() + seconds
        while b"\n" not in self._received:
            self._channel.settimeout(max(0.001, end - monotonic()))
            try:
                data = self._channel.recv(1 << 16)
            except TimeoutError:
                raise _Lost(f"the process that freezes says nothing for {seconds:g} s") from None
            except OSError as error:
                raise _Lost(f"the process that freezes was lost ({error})") from error
            self._received += data
            if not data or len(self._received) > _LONGEST_LINE:
                raise _Lost("the process that freezes was lost")
        line, _, self._received = self._received.partition(b"\n")
        try:
            return parse_json("what the process that freezes says", line)
        except Corrupt as error:
            raise _Lost(str(error)) from error
