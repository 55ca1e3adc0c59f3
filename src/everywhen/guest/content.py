# SPDX-License-Identifier: AGPL-3.0-or-later
"""Contents of files, read from what says where they are: runs, found when they are needed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from everywhen.guest.errors import GuestDamaged, GuestLimit, parsing
from everywhen.guest.reading import piece
from everywhen.guest.tree import Readable, Run, Span

_MOST_SAYING = 1 << 20
"""Blocks that say where one content is, above which nobody is told: 4 GiB of them."""

RunSource = Callable[[int], Iterator[Run]]
"""The runs of a content in order from the one in which the byte at this offset lies; to its end or beyond, gaps left out."""


class Inline:
    """A short content that is already here; `place` is where its bytes are on the volume, if known."""

    def __init__(self, content: bytes, place: int | None = None) -> None:
        self._content = content
        self._place = place

    @property
    def size(self) -> int:
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]

    def runs(self) -> Iterator[Run]:
        if self._content:
            stored = None if self._place is None else Span(self._place, self.size)
            yield Run(0, self.size, zero=False, stored=stored)


class Stored:
    """A content that is in runs on a volume. `what` names it in errors; gaps between runs are zeroes."""

    def __init__(self, volume: Readable, size: int, source: RunSource, what: str) -> None:
        self._volume = volume
        self._size = size
        self._source = source
        self._what = what
        self._last = Run(0, 0, zero=True)

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._size)
        if offset >= end:
            return b""
        if self._last.start <= offset and end <= self._last.end:
            return self._bytes(self._last, offset, end)
        parts = []
        for run in self._filled(offset):
            stop = min(run.end, end)
            parts.append(self._bytes(run, offset, stop))
            offset = stop
            if offset == end:
                self._last = run
                break
        return b"".join(parts)

    def runs(self) -> Iterator[Run]:
        return self._filled(0)

    def _filled(self, offset: int) -> Iterator[Run]:
        """Runs from the one at `offset` to the end of the content, its gaps filled with zeroes."""
        with parsing(self._what):
            yield from self._without_gaps(offset)

    def _without_gaps(self, offset: int) -> Iterator[Run]:
        at = offset
        for run in self._source(offset):
            if run.end <= at:
                raise GuestDamaged(f"{self._what}: its runs overlap")
            if run.start > at:
                yield Run(at, min(run.start, self._size) - at, zero=True)
                at = run.start
            elif run.start < at and at != offset:
                raise GuestDamaged(f"{self._what}: its runs overlap")
            if at >= self._size:
                return
            yield _cut(run, self._size)
            at = run.end
            if at >= self._size:
                return
        if at < self._size:
            yield Run(at, self._size - at, zero=True)

    def _bytes(self, run: Run, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of the content, all in `run`."""
        if run.zero:
            return bytes(end - start)
        if run.stored is None:
            raise GuestDamaged(f"{self._what}: nothing says where its bytes from {start} are")
        return piece(self._volume, run.stored.place + start - run.start, end - start, self._what)


def _cut(run: Run, end: int) -> Run:
    """The part of a run before `end`; what is stored as it is is cut with it."""
    if run.end <= end:
        return run
    stored = run.stored
    if stored is not None and stored.length == run.length:
        stored = Span(stored.place, end - run.start)
    return Run(run.start, end - run.start, run.zero, stored)


def listed(runs: list[Run]) -> RunSource:
    """A source over runs that are all known already, in order."""

    def source(offset: int) -> Iterator[Run]:
        low, high = 0, len(runs)
        while low < high:
            middle = (low + high) // 2
            if runs[middle].end <= offset:
                low = middle + 1
            else:
                high = middle
        for index in range(low, len(runs)):
            yield runs[index]

    return source


def valid_until(source: RunSource, valid: int) -> RunSource:
    """The runs of a content up to the length that was ever written; behind it the guest reads zeroes, whatever is stored."""

    def cut(offset: int) -> Iterator[Run]:
        if offset >= valid:
            return
        for run in source(offset):
            if run.start >= valid:
                return
            if run.end > valid:
                yield _cut(run, valid)
                return
            yield run

    return cut


def all_said(blocks: Iterator[Span], what: str) -> tuple[Span, ...]:
    """The blocks that say where a content is. Raises GuestLimit where they are too many."""
    found = tuple(itertools.islice(blocks, _MOST_SAYING + 1))
    if len(found) > _MOST_SAYING:
        raise GuestLimit(f"{what}: where its content is takes more than {_MOST_SAYING} blocks to say")
    return found
