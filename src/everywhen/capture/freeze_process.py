# SPDX-License-Identifier: AGPL-3.0-or-later
"""The process that freezes a guest and sees to it that it is thawed: `python -m everywhen.capture.freeze_process CHANNEL`.

It alone speaks to the agent. Whatever becomes of `protect` (it says so, hangs, or ends, and the channel closes) the guest is
thawed, and that is tried until it succeeds. Ctrl-C and SIGTERM, which are meant for all processes of ours, do not end it.

Channel: `freeze` and `thaw` are a byte each, answered by a JSON line; the order is JSON on standard input.
"""

from __future__ import annotations

import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from everywhen.capture.agent import AgentError, AgentGone
from everywhen.capture.agent_address import AgentAddress
from everywhen.capture.freezing import Freezing, NotFrozen
from everywhen.formats.fields import Json, canonical_json, flag, mapping, parse_json, text

FREEZE, THAW = b"f", b"t"
LONGEST_FROZEN_S = 3.0
"""A mark in the sequence takes some milliseconds."""
_PREPARED_S = 30.0
_AGAIN_S, _LONGEST_AGAIN_S = 0.5, 10.0
_GIVE_UP_S = 3600.0
_LONGEST_ORDER = 1 << 16


@dataclass(frozen=True, slots=True)
class FreezeOrder:
    """Whose agent; the file that stands while the guest may be frozen; whether hooks are called, and the host's ('': none).

    `only_thaw`: an earlier process of this kind was killed before it could.
    """

    agent: AgentAddress
    record: str
    hooks: bool = False
    host_hook: str = ""
    only_thaw: bool = False

    def encode(self) -> bytes:
        """As `decode` reads it."""
        return canonical_json(asdict(self))

    @classmethod
    def decode(cls, data: bytes) -> FreezeOrder:
        """Raises Corrupt."""
        value = parse_json("the order of a freeze", data)
        return cls(
            agent=AgentAddress.from_json(mapping(value, "agent")),
            record=text(value, "record"),
            hooks=flag(value, "hooks"),
            host_hook=text(value, "host_hook"),
            only_thaw=flag(value, "only_thaw"),
        )


class FreezeProcess:
    """Carries out one order. `channel`: to `protect`."""

    def __init__(self, order: FreezeOrder, channel: socket.socket) -> None:
        self._order = order
        self._channel = channel
        self._record = Path(order.record)
        self._agent = order.agent.agent()
        self._freezing = Freezing(self._agent, hooks=order.hooks, host_hook=order.host_hook, clock=time.time_ns)

    def run(self) -> None:
        """Until the guest is thawed, if it was frozen, and its applications were told to go on."""
        if self._order.only_thaw:
            self._thaw(in_time=True)
            return
        in_time = False
        try:
            self._freezing.prepare()
            self._say({"prepared": True})
            if self._heard(_PREPARED_S) == FREEZE:
                self._record.write_bytes(replace(self._order, only_thaw=True).encode())
                self._say({"frozen": asdict(self._freezing.freeze())})
                in_time = self._heard(LONGEST_FROZEN_S) == THAW
        except NotFrozen as error:
            self._say({"failed": str(error)})
        finally:
            if self._freezing.begun:
                self._thaw(in_time=in_time)
            self._freezing.release()

    def _thaw(self, *, in_time: bool) -> None:
        again, end = _AGAIN_S, time.monotonic() + _GIVE_UP_S
        while True:
            try:
                count = self._freezing.thaw()
                break
            except AgentGone:  # and the VM with it
                count = 0
                break
            except AgentError as error:
                self._say({"stuck": str(error)})
                if time.monotonic() > end:
                    return  # the record stays: whoever captures next tries again
            time.sleep(again)
            again = min(2 * again, _LONGEST_AGAIN_S)
        self._record.unlink(missing_ok=True)
        self._say({"thawed": count, "in_time": in_time})

    def _heard(self, seconds: float) -> bytes:
        """What is wished for; nothing where nobody says anything for so long, or is there any more."""
        readable, _, _ = select.select([self._channel], [], [], seconds)
        return self._channel.recv(1) if readable else b""

    def _say(self, line: Json) -> None:
        with suppress(OSError):  # nobody is there any more
            self._channel.sendall(canonical_json(line) + b"\n")


def main(arguments: list[str]) -> int:
    """Descriptor: the channel."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not ignored: hooks would inherit that
    order = FreezeOrder.decode(sys.stdin.buffer.read(_LONGEST_ORDER))
    FreezeProcess(order, socket.socket(fileno=int(arguments[0]))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
