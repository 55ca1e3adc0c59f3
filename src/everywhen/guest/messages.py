# SPDX-License-Identifier: AGPL-3.0-or-later
"""Questions to the process that parses guests' file systems, and its answers: how they go over a stream socket.

| size | field | meaning |
|---|---|---|
| 4 | head | bytes of the head, big-endian; at most 4 MiB |
| 4 | body | bytes of the body; at most 4 MiB |
| | | head: canonical JSON. Surrogates are written as escapes, so that names which are no text survive |
| | | body: content as it is |

What comes from the process is hostile: nothing of it is believed that was not checked (`values.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, canonical_json, parse_json

SIZES = struct.Struct(">II")
LARGEST = 4 << 20
"""Bytes of a head, and of a body."""
CHUNK = 1 << 20
"""Bytes of content that are asked for at once."""
SMALL = 64 << 10
"""Bytes of a content that comes with its size."""


@dataclass(frozen=True, slots=True)
class Message:
    """A question or an answer."""

    head: Json
    body: bytes = field(default=b"", repr=False)

    def encode(self) -> bytes:
        """As it is sent. Raises ValueError if it is too large."""
        head = canonical_json(self.head)
        if len(head) > LARGEST or len(self.body) > LARGEST:
            raise ValueError(f"a message of {len(head)} + {len(self.body)} bytes")
        return SIZES.pack(len(head), len(self.body)) + head + self.body


def receive(take: Callable[[int], bytes]) -> Message:
    """The next message; `take` gives exactly so many bytes. Raises Corrupt, and what `take` raises."""
    head, body = SIZES.unpack(take(SIZES.size))
    if head > LARGEST or body > LARGEST:
        raise Corrupt(f"a message of {head} + {body} bytes")
    return Message(parse_json("a message", take(head)), take(body))
