# SPDX-License-Identifier: AGPL-3.0-or-later
"""The journal of one capture in the repository: `journals/<stream>/<number>`, each a segment as it lay in the host's spool.

What a recovery point needs to be followed by moments is the name of its stream and a sequence number (`JournalPosition`).
Segments are put in order and never rewritten. Those at the beginning go when the policy keeps every write no longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from io import BytesIO

from everywhen.formats.errors import FormatError
from everywhen.formats.segment import HEADER_SIZE, Group, SegmentHeader
from everywhen.repository.errors import Damaged
from everywhen.repository.keys.segment_keys import open_segment
from everywhen.repository.once import put_once
from everywhen.repository.repository import Repository
from everywhen.repository.segments import read_groups
from everywhen.repository.space import demand_room
from everywhen.storage.base import Buffer

PREFIX = "journals/"
_NUMBER = re.compile(r"[0-9a-f]{16}")
"""What has another name is no segment: somebody else put it there."""


def streams(repository: Repository) -> dict[str, dict[int, int]]:
    """The segments there are: sizes in bytes by number, by stream (32 hex digits)."""
    found: dict[str, dict[int, int]] = {}
    for one in repository.store.list(PREFIX):
        stream, _, number = one.name.removeprefix(PREFIX).partition("/")
        if len(stream) == 32 and _NUMBER.fullmatch(number):
            found.setdefault(stream, {})[int(number, 16)] = one.size
    return found


class Journal:
    """The segments of one stream. For one thread."""

    def __init__(self, repository: Repository, stream: str) -> None:
        """`stream`: 32 hex digits."""
        self._repository = repository
        self._store = repository.store
        self.stream = stream
        self._headers: dict[int, SegmentHeader] = {}

    def put(self, number: int, parts: Sequence[Buffer]) -> None:
        """Store a segment, durable on return. Raises LowOnSpace, StorageError."""
        demand_room(self._store, first_copy=False)
        put_once(self._store, self._name(number), parts)

    def numbers(self) -> list[int]:
        """Numbers of the segments there are, ascending."""
        names = (one.name.rpartition("/")[2] for one in self._store.list(f"{PREFIX}{self.stream}/"))
        return sorted(int(name, 16) for name in names if _NUMBER.fullmatch(name))

    def delete(self, number: int) -> None:
        """Remove a segment; no error when there is none."""
        self._store.delete(self._name(number))

    def header(self, number: int) -> SegmentHeader:
        """Raises Damaged, ObjectNotFound, StorageError."""
        if number not in self._headers:
            self._headers[number] = self._decoded(number, self._store.get_range(self._name(number), 0, HEADER_SIZE))
        return self._headers[number]

    def groups(self, since: int) -> Iterator[Group]:
        """The groups that have records from sequence number `since` on, and all after them. Raises Damaged, StorageError."""
        numbers = self.numbers()
        expected: int | None = None
        for number in numbers[self._first(numbers, since) :]:
            for group in self.groups_of(number):
                if expected is not None and group.sequence != expected:
                    raise Damaged(f"journal {self.stream}: records {expected} to {group.sequence - 1} are missing")
                expected = group.sequence + len(group)
                if expected > since:
                    yield group

    def groups_of(self, number: int) -> Iterator[Group]:
        """The groups of one segment. Raises Damaged, ObjectNotFound, StorageError."""
        data = self._store.get(self._name(number))
        header = self._decoded(number, data)
        keyset = self._repository.unlocked.keyset
        stream = BytesIO(data)
        stream.seek(HEADER_SIZE)
        try:
            opener = open_segment(keyset, self._repository.id, header.cipher, header.generation, header.key)
            for group, _ in read_groups(stream, header, opener):
                yield group
        except FormatError as error:
            raise Damaged(f"{self._name(number)}: {error}") from error

    def _first(self, numbers: list[int], since: int) -> int:
        """Position of the last segment that does not begin after `since`."""
        low, high = 0, len(numbers)
        while high - low > 1:
            middle = (low + high) // 2
            if self.header(numbers[middle]).sequence <= since:
                low = middle
            else:
                high = middle
        return low

    def _decoded(self, number: int, data: bytes) -> SegmentHeader:
        try:
            header = SegmentHeader.decode(data)
        except FormatError as error:
            raise Damaged(f"{self._name(number)}: {error}") from error
        if (header.repository, header.stream.hex(), header.number) != (self._repository.id, self.stream, number):
            raise Damaged(f"{self._name(number)}: another segment stands in its place")
        return header

    def _name(self, number: int) -> str:
        return f"{PREFIX}{self.stream}/{number:016x}"
