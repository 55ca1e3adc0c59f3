# SPDX-License-Identifier: AGPL-3.0-or-later
"""The spool's reading end: groups in order, from files that may still grow, with the torn tail of a crash recognised."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from everywhen.formats.errors import FormatError, Truncated
from everywhen.formats.segment import HEADER_SIZE, Group, SegmentHeader
from everywhen.repository.segments import GroupOpener, read_groups, read_header

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.segment")


OpenerFor = Callable[[SegmentHeader], GroupOpener]


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


def read_file_header(file: SpoolFile) -> SegmentHeader | None:
    """A file's header; None where it is not written yet, or was cut off. Raises SpoolDamaged."""
    with file.path.open("rb") as stream:
        return _header(file, stream, last=True)


def first_sequence(file: SpoolFile) -> int | None:
    """The number of a file's first record; None where its header is not written yet. Raises SpoolDamaged."""
    header = read_file_header(file)
    return None if header is None else header.sequence


def read_spooled(file: SpoolFile, opener_for: OpenerFor, *, last: bool) -> Iterator[tuple[Group, int]]:
    """The groups of a file in order, and where in the file each ends.

    With `last` (of its epoch) a torn end ends it; else it raises SpoolDamaged.
    """
    with file.path.open("rb") as stream:
        header = _header(file, stream, last=last)
        if header is None:
            return
        end = HEADER_SIZE
        try:
            for group, end in read_groups(stream, header, opener_for(header)):
                yield group, end
        except FormatError as error:
            if last:
                return
            raise SpoolDamaged(f"{file.path}: the group at byte {end} is damaged: {error}") from error


def _header(file: SpoolFile, stream: BinaryIO, *, last: bool) -> SegmentHeader | None:
    try:
        header = read_header(stream)
    except FormatError as error:
        if last and isinstance(error, Truncated):
            return None  # begun, and the crash came before its header was durable
        raise SpoolDamaged(f"{file.path}: {error}") from error
    if (header.epoch, header.number) != (file.epoch, file.number):
        raise SpoolDamaged(f"{file.path} is segment {header.number} of epoch {header.epoch}: it was renamed")
    return header
