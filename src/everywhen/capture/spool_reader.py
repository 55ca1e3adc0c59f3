# SPDX-License-Identifier: AGPL-3.0-or-later
"""The spool's reading end: groups in order, from files that may still grow, with the torn tail of a crash recognised."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from everywhen.formats.errors import BadMagic, Corrupt, FormatError, Truncated
from everywhen.formats.spool import (
    FRAME_SIZE,
    HEADER_SIZE,
    Group,
    SpoolHeader,
    decode_frame,
    decode_group,
    group_aad,
    group_nonce,
)

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.spool")


class GroupOpener(Protocol):
    """Opens the groups of one file. `open` raises Corrupt."""

    def open(self, nonce: bytes, sealed: bytes | memoryview, aad: bytes) -> bytes: ...


OpenerFor = Callable[[SpoolHeader], GroupOpener]


@dataclass(frozen=True, slots=True, order=True)
class SpoolFile:
    """A file of the spool, by epoch and number."""

    epoch: int
    number: int
    path: Path


def spool_files(folder: Path) -> list[SpoolFile]:
    """The files of a spool in order; what has another name is no part of it."""
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(SpoolFile(int(match[1], 16), int(match[2], 16), path) for match, path in found)


class SpoolDamaged(Exception):
    """A file of the spool is damaged where no crash can have cut it. Says which, where, and what is lost."""


def read_groups(file: SpoolFile, opener_for: OpenerFor, *, last: bool) -> Iterator[Group]:
    """The groups of a file in order. With `last` (of its epoch) a torn end ends it; else it raises SpoolDamaged.

    Each group is checked to follow the one before: sequence numbers without holes.
    """
    with file.path.open("rb") as stream:
        try:
            header = SpoolHeader.decode(stream.read(HEADER_SIZE))
        except FormatError as error:
            if last and isinstance(error, Truncated):
                return  # begun, and the crash came before its header was durable
            raise SpoolDamaged(f"{file.path}: {error}") from error
        if (header.epoch, header.number) != (file.epoch, file.number):
            raise SpoolDamaged(f"{file.path} is file {header.number} of epoch {header.epoch}: it was renamed")
        opener = opener_for(header)
        expected, ordinal = header.sequence, 0
        while True:
            at = HEADER_SIZE if not ordinal else stream.tell()
            try:
                group = _next_group(stream.read(FRAME_SIZE), stream.read, header, ordinal, opener)
            except (Truncated, BadMagic, Corrupt) as error:
                if last:
                    return
                raise SpoolDamaged(f"{file.path}: the group at byte {at} is damaged: {error}") from error
            if group is None:
                return
            if group.sequence != expected:
                raise SpoolDamaged(f"{file.path}: record {group.sequence} follows where {expected} should")
            expected, ordinal = expected + len(group), ordinal + 1
            yield group


def _next_group(
    frame: bytes, read: Callable[[int], bytes], header: SpoolHeader, ordinal: int, opener: GroupOpener
) -> Group | None:
    """The group after `frame`; None at the end of the file. Raises FormatError."""
    if not frame:
        return None
    found, length = decode_frame(frame)
    if found != ordinal:
        raise Corrupt(f"group {found} stands where group {ordinal} should")
    sealed = read(length)
    if len(sealed) < length:
        raise Truncated(f"group {ordinal} is cut off")
    return decode_group(opener.open(group_nonce(ordinal), sealed, group_aad(header, ordinal)))
