# SPDX-License-Identifier: AGPL-3.0-or-later
"""The protocol of QEMU's guest agent (its docs/interop/qemu-ga-ref), without I/O: one JSON object a line.

Whoever opens the channel may find answers there that somebody else waited for. So each conversation begins with a byte that
ends whatever the agent was parsing, and `guest-sync-delimited` with a number: what comes before such a byte and that number
in answer is nobody's. The guest is not trusted: what it sends is bounded, and either an answer or `Corrupt`.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, mapping, parse_json, text

_DELIMITER = b"\xff"
LONGEST_LINE = 1 << 20
"""Bytes of an answer: the longest that we ask for is what a hook has to say."""


class AgentAnswer(NamedTuple):
    """What a command returned, or the description of its error."""

    value: Any
    error: str | None


class AgentSession:
    """Bytes in, answers out, once the agent has answered to the number of the newest `sync`."""

    def __init__(self) -> None:
        self._input = bytearray()
        self._number = 0
        self._delimited = False
        self.synced = False

    def sync(self, number: int) -> bytes:
        """Begin a conversation: what is to be sent first. The number must be another one each time."""
        self._number, self._delimited, self.synced = number, False, False
        self._input.clear()
        return _DELIMITER + command("guest-sync-delimited", {"id": number})

    def receive(self, data: bytes) -> list[AgentAnswer]:
        """The answers that are complete now. Raises Corrupt for what is none; then the conversation is over."""
        self._input += data
        found: list[AgentAnswer] = []
        while (line := self._line()) is not None:
            if self.synced:
                found.append(_answer(line))
            else:
                # What was there before may end with a delimiter, too, and no more of it have been there when that came.
                self.synced = self._is_ours(line.rpartition(_DELIMITER)[2])
                self._delimited = self.synced
        return found

    def _line(self) -> bytes | None:
        """The next line that may mean something."""
        if not self._delimited:
            _, delimiter, rest = self._input.rpartition(_DELIMITER)
            if not delimiter:
                self._input.clear()
                return None
            self._delimited = True
            self._input = rest
        line, end, rest = self._input.partition(b"\n")
        if len(line) > LONGEST_LINE:
            raise Corrupt(f"the guest's agent sends a line of more than {LONGEST_LINE} bytes")
        if not end:
            return None
        self._input = rest
        return bytes(line)

    def _is_ours(self, line: bytes) -> bool:
        """Whether this is the answer to the newest `sync`; to an earlier one, of ours or somebody else's, it may be too."""
        try:
            return parse_json("an answer", line).get("return") == self._number
        except Corrupt:
            return False


def command(name: str, arguments: Json | None = None) -> bytes:
    """The bytes of a command."""
    message: Json = {"execute": name}
    if arguments:
        message["arguments"] = arguments
    return json.dumps(message).encode() + b"\n"


def _answer(line: bytes) -> AgentAnswer:
    message = parse_json("the guest agent's answer", line)
    if "return" in message:
        return AgentAnswer(message["return"], None)
    return AgentAnswer(None, text(mapping(message, "error"), "desc"))
