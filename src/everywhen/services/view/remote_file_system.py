# SPDX-License-Identifier: AGPL-3.0-or-later
"""A file system of a guest (`guest/tree.py`) that is parsed in another process, and its volume: each question goes there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias, TypeVar

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, flag, mapping, objects, whole
from everywhen.guest import values
from everywhen.guest.errors import GuestLimit
from everywhen.guest.messages import CHUNK, Message
from everywhen.guest.tree import Content, Entry, Run, Span, Stream, Unreadable
from everywhen.services.view.parser import Parser

_T = TypeVar("_T")
Field: TypeAlias = Json | str | int
_MOST_LISTED = 1 << 24
"""Entries of a folder, or runs of a content: who believes that there are more fills his memory."""
_MOST_SIZE = (1 << 64) - 1


class RemoteFileSystem:
    """A FileSystem. Each call raises ParserEnded too, and what the disks raise. For several threads, which wait for each
    other.
    """

    def __init__(self, parser: Parser, disk: str, volume: str) -> None:
        """Opens it. Raises GuestError, and what the disks raise."""
        self._parser = parser
        self._place = {"disk": disk, "volume": volume}
        self.asked("open", self._describe)

    def subvolume(self, number: int | None) -> Entry:
        if self.kind != "btrfs":
            return self.root

        def decoded(answer: Message) -> Entry:
            return values.entry_of(mapping(answer.head, "entry"), root=True)

        return self.asked("subvolume", decoded, **({} if number is None else {"number": number}))

    def entries(self, folder: Entry) -> Iterator[Entry | Unreadable]:
        def decoded(answer: Message) -> list[Entry | Unreadable]:
            return [values.listed_of(one) for one in objects(answer.head, "entries")]

        for some in self.listed("entries", {"entry": values.entry_json(folder)}, decoded):
            yield from some

    def child(self, folder: Entry, name: str) -> Entry:
        def decoded(answer: Message) -> Entry:
            return values.entry_of(mapping(answer.head, "entry"))

        return self.asked("child", decoded, entry=values.entry_json(folder), name=name)

    def open(self, entry: Entry, stream: str = "") -> Content:
        return _RemoteContent(self, {"entry": values.entry_json(entry), "stream": stream})

    def streams(self, entry: Entry) -> tuple[Stream, ...]:
        if self.kind != "ntfs":
            return ()  # no other kind has any, and nobody needs to be asked for each file
        return self.asked("streams", lambda answer: values.streams_of(answer.head), entry=values.entry_json(entry))

    def attributes(self, entry: Entry) -> dict[str, bytes]:
        def decoded(answer: Message) -> dict[str, bytes]:
            return values.attributes_of(answer.head, answer.body)

        return self.asked("attributes", decoded, entry=values.entry_json(entry))

    def metadata(self, entry: Entry) -> tuple[Span, ...]:
        return self.asked("metadata", lambda answer: values.spans_of(answer.head), entry=values.entry_json(entry))

    def asked(self, ask: str, decode: Callable[[Message], _T], **fields: Field) -> _T:
        """The answer to a question about this volume."""
        value, ended = self._parser.ask({"ask": ask, **self._place, **fields}, decode)
        if ended is not None:
            raise ended
        return value

    def listed(self, ask: str, fields: Json, decode: Callable[[Message], list[_T]]) -> Iterator[list[_T]]:
        """A list, some of it at a time. What ends it too early is raised after what came before it."""

        def decoded(answer: Message) -> tuple[list[_T], bool]:
            some, more = decode(answer), flag(answer.head, "more")
            if more and not some:
                raise Corrupt("a list that goes on with nothing")
            return some, more

        first, more = 0, True
        while more:
            question = {"ask": ask, **self._place, **fields, "from": first}
            (some, more), ended = self._parser.ask(question, decoded)
            first += len(some)
            if first > _MOST_LISTED:
                raise GuestLimit(f"a list of more than {_MOST_LISTED:,}")
            yield some
            if ended is not None:
                raise ended

    def _describe(self, answer: Message) -> bool:
        head = answer.head
        self.kind = values.short(head, "kind")
        self.label = values.short(head, "label")
        self.uuid = values.short(head, "uuid")
        self.notes = values.shorts(head, "notes")
        self.local_times = flag(head, "local_times")
        self.case_sensitive = flag(head, "case_sensitive")
        self.root = values.entry_of(mapping(head, "root"), root=True)
        return True


class RemoteVolume:
    """The bytes of a volume as they are on its disks, which may be several. Raises as RemoteFileSystem. For several threads."""

    def __init__(self, parser: Parser, disk: str, volume: str, size: int) -> None:
        self.size = size
        self._parser = parser
        self._question = {"ask": "device", "disk": disk, "volume": volume}

    def read(self, offset: int, length: int) -> bytes:
        """Fewer only at its end, none past it."""
        end = min(offset + length, self.size)
        parts = [self._piece(at, min(CHUNK, end - at)) for at in range(offset, end, CHUNK)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _piece(self, offset: int, length: int) -> bytes:
        value, ended = self._parser.ask({**self._question, "offset": offset, "length": length}, _exactly(length))
        if ended is not None:
            raise ended
        return value


class _RemoteContent:
    """A Content."""

    def __init__(self, system: RemoteFileSystem, place: Json) -> None:
        self._system = system
        self._place = place
        self.size = 0
        self._all: bytes | None = None
        self._few: list[Run] = []
        system.asked("content", self._describe, **place)

    def read(self, offset: int, length: int) -> bytes:
        if self._all is not None:
            return self._all[offset : offset + length]
        length = max(0, min(length, self.size - offset))
        parts = [self._piece(at, min(CHUNK, offset + length - at)) for at in range(offset, offset + length, CHUNK)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def runs(self) -> Iterator[Run]:
        if self._all is not None:
            yield from self._few
            return
        end = 0

        def decoded(answer: Message) -> list[Run]:
            nonlocal end
            found = self._within(values.runs_of(answer.head, end))
            end = found[-1].end if found else end
            return found

        for some in self._system.listed("runs", self._place, decoded):
            yield from some

    def _describe(self, answer: Message) -> bool:
        self.size = whole(answer.head, "size", most=_MOST_SIZE)
        if "runs" in answer.head:
            if len(answer.body) != self.size:
                raise Corrupt(f"{len(answer.body)} bytes of {self.size}")
            self._all, self._few = answer.body, self._within(values.runs_of(answer.head, 0))
        return True

    def _within(self, runs: list[Run]) -> list[Run]:
        """Raises Corrupt for runs beyond the end: who copies them would go on for ever."""
        if runs and runs[-1].end > self.size:
            raise Corrupt(f"runs up to {runs[-1].end} of {self.size} bytes")
        return runs

    def _piece(self, offset: int, length: int) -> bytes:
        return self._system.asked("read", _exactly(length), **self._place, offset=offset, length=length)


def _exactly(length: int) -> Callable[[Message], bytes]:
    def decoded(answer: Message) -> bytes:
        if len(answer.body) != length:
            raise Corrupt(f"{len(answer.body)} bytes where {length} were asked for")
        return answer.body

    return decoded
