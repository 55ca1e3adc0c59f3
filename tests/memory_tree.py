# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest's file system in memory, for what is done with one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from everywhen.formats.filesystems.btrfs import TOP_LEVEL
from everywhen.guest.errors import GuestError, NoSuchPath, WrongKind
from everywhen.guest.tree import Content, Entry, Kind, Run, Span, Stream, Unreadable


class MemoryContent:
    """Bytes; `error` is raised when they are read."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self.content = content
        self.error = error

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        if self.error:
            raise self.error
        return self.content[offset : offset + length]

    def runs(self) -> Iterator[Run]:
        if self.content:
            yield Run(0, len(self.content), zero=False)


@dataclass
class Node:
    """An entry and what is in it: names and nodes (or why they cannot be shown), or bytes."""

    entry: Entry
    inner: dict[str, Node | GuestError] = field(default_factory=dict)
    content: bytes = b""
    attributes: dict[str, bytes] = field(default_factory=dict)
    streams: dict[str, bytes] = field(default_factory=dict)
    error: Exception | None = None


class MemoryFileSystem:
    """A FileSystem."""

    local_times = False

    def __init__(self, kind: str = "ext4", *, label: str = "", uuid: str = "", case_sensitive: bool = True) -> None:
        self.kind, self.label, self.uuid, self.case_sensitive = kind, label, uuid, case_sensitive
        self.notes: tuple[str, ...] = ()
        self.default = TOP_LEVEL
        """Of Btrfs: the number of the folder that is mounted when no subvolume is said."""
        self._nodes = {0: Node(Entry(name="", kind=Kind.FOLDER, number=0, size=0))}

    @property
    def root(self) -> Entry:
        return self._nodes[0].entry

    def add(self, path: str, kind: Kind = Kind.FILE, **fields: Any) -> Node:
        """An entry, with all folders on the way; `fields` are the entry's or the node's."""
        folder = self._nodes[0]
        *way, name = path.strip("/").split("/")
        for part in way:
            inner = folder.inner.get(part)
            folder = inner if isinstance(inner, Node) else self._put(folder, part, Node(self._entry(part, Kind.FOLDER, {})))
        mine = {key: fields.pop(key) for key in ("content", "attributes", "streams", "error") if key in fields}
        entry = self._entry(name, kind, {"size": len(mine.get("content", b"")), **fields})
        return self._put(folder, name, Node(entry, **mine))

    def put(self, folder: str, name: str, what: Node | GuestError) -> None:
        """What is there already under another name, or cannot be shown."""
        found = self._nodes[0]
        for part in folder.strip("/").split("/"):
            inner = found.inner[part] if part else found
            assert isinstance(inner, Node)
            found = inner
        found.inner[name] = what

    def subvolume(self, number: int | None) -> Entry:
        found = self.default if number is None else number
        return self.root if self.kind != "btrfs" or found == TOP_LEVEL else self._nodes[found].entry

    def entries(self, folder: Entry) -> Iterator[Entry | Unreadable]:
        for name, one in self._nodes[folder.number].inner.items():
            yield replace(one.entry, name=name) if isinstance(one, Node) else Unreadable(name, one)

    def child(self, folder: Entry, name: str) -> Entry:
        for one in self.entries(folder):
            if one.name == name or (not self.case_sensitive and one.name.casefold() == name.casefold()):
                if isinstance(one, Unreadable):
                    raise one.error
                return one
        raise NoSuchPath(name, folder.name)

    def open(self, entry: Entry, stream: str = "") -> Content:
        node = self._nodes[entry.number]
        if stream:
            return MemoryContent(node.streams[stream])
        if entry.kind is not Kind.FILE:
            raise WrongKind(f"{entry.name}: a {entry.kind} has no content")
        return MemoryContent(node.content, node.error)

    def streams(self, entry: Entry) -> tuple[Stream, ...]:
        return tuple(Stream(name, len(content)) for name, content in self._nodes[entry.number].streams.items())

    def attributes(self, entry: Entry) -> dict[str, bytes]:
        return self._nodes[entry.number].attributes

    def metadata(self, entry: Entry) -> tuple[Span, ...]:
        return ()

    def _entry(self, name: str, kind: Kind, fields: dict[str, Any]) -> Entry:
        return Entry(**{"name": name, "kind": kind, "number": len(self._nodes), "size": 0, **fields})

    def _put(self, folder: Node, name: str, node: Node) -> Node:
        folder.inner[name] = self._nodes[node.entry.number] = node
        return node
