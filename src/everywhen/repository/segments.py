# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reading journal segments (`formats/segment.py`), from a spool or from the repository: groups in order, each one checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Protocol

from everywhen.formats.errors import Corrupt, Truncated
from everywhen.formats.segment import (
    FRAME_SIZE,
    HEADER_SIZE,
    Group,
    SegmentHeader,
    decode_frame,
    decode_group,
    group_aad,
    group_nonce,
)


class GroupOpener(Protocol):
    """Opens the groups of one segment. `open` raises Corrupt."""

    def open(self, nonce: bytes, sealed: bytes | memoryview, aad: bytes) -> bytes: ...


def read_header(stream: BinaryIO) -> SegmentHeader:
    """The header that a segment begins with. Raises FormatError."""
    return SegmentHeader.decode(stream.read(HEADER_SIZE))


def read_groups(stream: BinaryIO, header: SegmentHeader, opener: GroupOpener) -> Iterator[tuple[Group, int]]:
    """The groups after the header, and where each one ends (bytes from the segment's begin).

    Each follows the one before, with no sequence number left out. Raises FormatError where one is cut off or damaged.
    """
    expected, ordinal, end = header.sequence, 0, HEADER_SIZE
    while frame := stream.read(FRAME_SIZE):
        found, length = decode_frame(frame)
        if found != ordinal:
            raise Corrupt(f"group {found} stands where group {ordinal} should")
        sealed = stream.read(length)
        if len(sealed) < length:
            raise Truncated(f"group {ordinal} is cut off")
        group = decode_group(opener.open(group_nonce(ordinal), sealed, group_aad(header, ordinal)))
        if group.sequence != expected:
            raise Corrupt(f"record {group.sequence} follows where {expected} should")
        expected, ordinal, end = expected + len(group), ordinal + 1, end + FRAME_SIZE + length
        yield group, end
