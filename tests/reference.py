# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the disks may hold at a moment, by the log of `tests/recorder.py`: which writes a state has, and whether that can be.

A state of all disks says by each cell's content which of the cell's writes it has last. From that follows for every write
whether it is in or out, and a moment is right when
- each cell has content that was written there, and no write is in with one of its cells and out with another;
- no write is out that was answered before one was asked for that is in: then a power cut between the two explains the state.
Writes of several at once to the same cell would have no order that is known; the load must not make them, and that is checked.
Content that comes twice in a cell (zeroes) leaves several readings; the others decide, and what stays open is counted so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.recorder import CELL, DIGEST, ENTRY, LATE, TRIM, WRITE, ZEROES, digest

NEVER = 1 << 64


class Impossible(AssertionError):
    """The state is none in which a power cut could have left these disks."""


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """A write as its client saw it; times in ns since 1970, `answered` may be NEVER."""

    disk: str
    offset: int
    asked: int
    answered: int
    cells: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"the write of {len(self.cells) * CELL} bytes at {self.offset} of {self.disk} (asked {self.asked})"


class Cut(NamedTuple):
    """A state that can be: how many writes it has, at least and at most; when the last of them was asked for, and when the
    first that it has not was answered."""

    fewest: int
    most: int
    newest_in: int
    oldest_out: int


@dataclass
class Reference:
    """The log, and what the disks held before it."""

    bases: Mapping[str, bytes]
    writes: list[Write] = field(default_factory=list)
    late: list[tuple[int, int]] = field(default_factory=list)
    """(when, by how many ns) this machine woke a sleeper late."""
    _history: dict[str, dict[int, list[Write]]] = field(default_factory=dict)
    """By disk and number of the cell: its writes in order."""
    _bases: dict[str, list[bytes]] = field(default_factory=dict)

    @classmethod
    def read(cls, log: Path, bases: Mapping[str, bytes]) -> Reference:
        """A log that is complete. Any error that a client was given fails the test."""
        reference, raw, at = cls(bases), memoryview(log.read_bytes()), 0
        while at < len(raw):
            name, command, error, offset, length, asked, answered = ENTRY.unpack_from(raw, at)
            at += ENTRY.size
            export = name.rstrip(b"\0")
            if export == LATE:
                reference.late.append((asked, answered - asked))
                continue
            assert not error, f"a client was answered with error {error} to command {command} at {offset} of {export}"
            assert command != TRIM, "the load must not trim: what is read then is not defined"
            assert command in (WRITE, ZEROES)
            assert offset % CELL == length % CELL == 0
            cells = tuple(bytes(raw[at + DIGEST * n : at + DIGEST * (n + 1)]) for n in range(length // CELL))
            at += DIGEST * len(cells)
            reference.writes.append(Write(export.decode(), offset, asked, answered or NEVER, cells))
        reference.arrange()
        return reference

    def arrange(self) -> None:
        """Make the histories of the cells out of `bases` and `writes`."""
        self._history = {disk: defaultdict(list) for disk in self.bases}
        self._bases = {disk: _digests(base) for disk, base in self.bases.items()}
        for write in sorted(self.writes, key=lambda write: write.asked):
            for number in range(len(write.cells)):
                history = self._history[write.disk][write.offset // CELL + number]
                assert not history or history[-1].answered < write.asked, f"{write} began beside {history[-1]}"
                history.append(write)

    def cut(self, images: Mapping[str, bytes]) -> Cut:
        """Find the state among those that can be. Raises Impossible."""
        state = _State()
        for disk, image in images.items():
            assert len(image) == len(self.bases[disk])
            for number, (found, base) in enumerate(zip(_digests(image), self._bases[disk], strict=True)):
                self._place(state, disk, number, found, base)
        state.settle()
        relevant = [write for write in self.writes if write.disk in images]
        here = sum(state.known.get(write) is True for write in relevant)
        gone = sum(state.known.get(write) is False for write in relevant)
        return Cut(here, len(relevant) - gone, state.newest_in, state.oldest_out)

    def _place(self, state: _State, disk: str, number: int, found: bytes, base: bytes) -> None:
        history = self._history[disk].get(number, [])
        # How many of the cell's writes the state may have.
        readings = [0] if found == base else []
        readings += [n for n, write in enumerate(history, 1) if write.cells[number - write.offset // CELL] == found]
        if not readings:
            raise Impossible(f"byte {number * CELL} of {disk} has content that nobody wrote there")
        for write in history[: readings[0]]:
            state.put(write, here=True)
        for write in history[readings[-1] :]:
            state.put(write, here=False)
        if len(readings) > 1:
            state.open.append((f"byte {number * CELL} of {disk}", history, readings))

    def worst(self, since: int = 0, until: int = NEVER) -> int:
        """The longest that a write which was under way in this time (ns since 1970) took, in ns."""
        return max((w.answered - w.asked for w in self.writes if w.answered > since and w.asked < until), default=0)

    def latest(self, since: int = 0, until: int = NEVER) -> int:
        """By how much this machine woke a sleeper late in this time, in ns."""
        return max((late for at, late in self.late if since <= at < until), default=0)


class _State:
    """What is known of each write, by and by."""

    def __init__(self) -> None:
        self.known: dict[Write, bool] = {}
        self.newest_in = 0
        self.oldest_out = NEVER
        self.open: list[tuple[str, list[Write], list[int]]] = []
        self._last: Write | None = None
        self._first: Write | None = None

    def put(self, write: Write, *, here: bool) -> None:
        """A write is in the state, or out of it."""
        if self.known.setdefault(write, here) is not here:
            raise Impossible(f"{write} is there in part")
        if here and write.asked > self.newest_in:
            self.newest_in, self._last = write.asked, write
        if not here and write.answered < self.oldest_out:
            self.oldest_out, self._first = write.answered, write
        if self.oldest_out < self.newest_in:
            raise Impossible(f"{self._first} was answered at {self.oldest_out} and is not there; {self._last} is")

    def settle(self) -> None:
        """Decide cells with several readings by what the others say."""
        before = -1
        while before != len(self.known):
            before = len(self.known)
            for where, history, readings in self.open:
                for write in history:
                    if write.answered < self.newest_in:
                        self.put(write, here=True)
                    elif write.asked > self.oldest_out:
                        self.put(write, here=False)
                left = [n for n in readings if self._agrees(history, n)]
                if not left:
                    raise Impossible(f"{where} has content from another time than the rest")
                for write in history[: left[0]]:
                    self.put(write, here=True)
                for write in history[left[-1] :]:
                    self.put(write, here=False)

    def _agrees(self, history: list[Write], count: int) -> bool:
        """Whether a cell can have just its first `count` writes."""
        return all(self.known.get(write, n < count) is (n < count) for n, write in enumerate(history))


def _digests(image: bytes) -> list[bytes]:
    view = memoryview(image)
    return [digest(view[at : at + CELL]) for at in range(0, len(view), CELL)]
