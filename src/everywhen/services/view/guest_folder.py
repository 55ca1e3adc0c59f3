# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest's file system as folders that somebody else walks through: a path at a time, in any order, from several threads.

A kernel asks for one path after the other, from the top each time. So entries that were found are kept, as many as `Known` has
room for: who lists a folder and then asks for each name in it costs one question, not one for each part of each path.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b

from everywhen.formats.layouts.runs import Runs
from everywhen.guest.errors import GuestDamaged, GuestError, GuestLimit, GuestUnsupported, NoSuchPath, WrongKind
from everywhen.guest.messages import CHUNK, SMALL
from everywhen.guest.names import name_error, to_bytes
from everywhen.guest.tree import Content, Entry, FileSystem, Kind, Unreadable
from everywhen.guest.walking import DEEPEST, find
from everywhen.services.view.inner_links import inner_target
from everywhen.services.view.nodes import File, Folder, Link, Node, Special

MOST_KNOWN = 100_000
"""Entries that are kept, of all folders of a process: some 80 MB."""
MOST_NAMES = 2_000_000
"""In one folder: some 200 MB while it is listed."""
LARGEST = (1 << 63) - 1
"""Bytes of a file: no system has an offset beyond. A guest's disk can claim more."""

MOST_RUNS = 1_000_000
"""Of one file: 200 MB while they are found, 16 MB then."""
_MUCH = 64 << 10

Parts = tuple[str, ...]
Say = Callable[[str], None]


class Known:
    """Entries by file system and path, those used last. For several threads."""

    def __init__(self, most: int = MOST_KNOWN) -> None:
        self._most = most
        self._found: OrderedDict[tuple[int, Parts], Entry | GuestError] = OrderedDict()
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def system(self) -> int:
        """A number for a file system that nobody else has."""
        return next(self._numbers)

    def get(self, system: int, path: Parts) -> Entry | GuestError | None:
        """What is known of it: the entry, or why it cannot be shown."""
        with self._lock:
            found = self._found.get((system, path))
            if found is not None:
                self._found.move_to_end((system, path))
            return found

    def put(self, system: int, path: Parts, found: Entry | GuestError) -> None:
        """Keep it for a while."""
        with self._lock:
            self._found[system, path] = found
            self._found.move_to_end((system, path))
            if len(self._found) > self._most:
                self._found.popitem(last=False)


class Ahead:
    """The content of a guest's file for several threads; for who reads much, more is asked for at once.

    A kernel that reads on and on asks for 128 KiB at a time, in several threads and not always in order. A question costs
    0.3 ms, whatever it asks for.
    """

    def __init__(self, content: Content) -> None:
        self._content = content
        self._begin = 0
        self._piece = b""
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """The bytes, fewer only at the end. Raises GuestError, and what the disks raise."""
        begin = offset // CHUNK * CHUNK
        if not _MUCH <= length < CHUNK or self._content.size <= SMALL or offset + length > begin + CHUNK:
            return self._content.read(offset, length)
        with self._lock:
            if not self._piece or begin != self._begin:
                try:
                    self._piece = self._content.read(begin, CHUNK)
                except GuestError:
                    return self._content.read(offset, length)  # what is wrong may lie beside
                self._begin = begin
            return self._piece[offset - begin : offset - begin + length]

    def data(self) -> Runs:
        """Which bytes are no holes; all of them where that cannot be told, or would take too much to tell."""
        size = self._content.size
        found = []
        try:
            for run in self._content.runs():
                if not run.zero and run.start < size:
                    found.append((run.start, min(run.end, size) - run.start))
                if len(found) > MOST_RUNS:
                    return Runs.whole(size)
        except GuestError:
            return Runs.whole(size)  # who reads is told
        return Runs.of_extents(found)


class GuestFolder:
    """Paths are tuples of names from the file system's root. All raise GuestError, and what the disks raise."""

    def __init__(self, system: FileSystem, known: Known, say: Say, *, where: str, time_ns: int) -> None:
        """`say`: told, a line each, what cannot be shown at all; `where` this is shown. What has no time has `time_ns`."""
        self._system = system
        self._known = known
        self._say = say
        self._where = where
        self._time_ns = time_ns
        self._number = known.system()
        self._attributes: tuple[Parts, dict[str, bytes]] | None = None

    def look_up(self, path: Parts) -> Node:
        """What is there; links are not followed."""
        entry, stream = self._found(path)
        whose = self._time(entry), entry, self._identity(entry, stream)
        if entry.kind is Kind.FOLDER:
            return Folder(*whose)
        if entry.kind is Kind.LINK:
            target = inner_target(path[:-1], entry.target or "", self._resolved)
            if to_bytes(target) is None:
                raise GuestUnsupported(f"{self._spelled(path)}: a link to {target!r}, which cannot be written in bytes")
            return Link(target, *whose)
        return self._file(entry, stream) if entry.kind is Kind.FILE else Special(*whose)

    def names(self, path: Parts) -> list[str]:
        """What is in a folder; also what cannot be read, whose `look_up` says why. Raises where a part of it is missing."""
        way = self._way(path)
        folder = way[-1]
        if folder.kind is not Kind.FOLDER:
            raise WrongKind(f"{self._spelled(path)}: {folder.kind}, not a folder")
        above = {entry.identity for entry in way}
        found: dict[str, None] = {}
        for one in self._system.entries(folder):
            below = (*path, one.name)
            if (error := _unnameable(one)) is not None:
                self._say(f"{self._spelled(path)}: an entry is not shown: {error}")
            elif one.name not in found:  # of two of one name the first, as `child` has it
                self._known.put(self._number, below, self._checked(one, above, below))
                found[one.name] = None
            if len(found) > MOST_NAMES:
                raise GuestLimit(f"{self._spelled(path)}: more than {MOST_NAMES:,} names in one folder")
        return list(found)

    def open(self, path: Parts) -> tuple[File, Ahead]:
        """A file and its content."""
        entry, stream = self._found(path)
        content = self._system.open(entry, stream)
        if content.size > LARGEST:
            raise GuestLimit(f"{self._spelled(path)}: a size of {content.size} bytes")
        return self._file(entry, stream), Ahead(content)

    def attributes(self, path: Parts) -> dict[str, bytes]:
        """Extended attributes by full name."""
        last = self._attributes  # `ls -l` asks three times for each file
        if last is None or last[0] != path:
            found = self._system.attributes(self._entry(path))
            last = self._attributes = (path, {name: value for name, value in found.items() if to_bytes(name) is not None})
        return last[1]

    def _found(self, path: Parts) -> tuple[Entry, str]:
        """What is there, and the name of its stream: `a.doc:Zone.Identifier`, where no file has that name, is a file too."""
        try:
            return self._entry(path), ""
        except NoSuchPath:
            base, colon, name = path[-1].partition(":")
            if not base or not colon:
                raise
            entry = self._entry((*path[:-1], base))
            stream = next((one for one in self._system.streams(entry) if one.name.casefold() == name.casefold()), None)
            if stream is None:
                raise
            return replace(entry, kind=Kind.FILE, size=stream.size, allocated=None), stream.name

    def _file(self, entry: Entry, stream: str) -> File:
        length = min(entry.size, LARGEST)
        stored = length if entry.allocated is None else min(entry.allocated, LARGEST)
        return File(length, stored, self._time(entry), entry, self._identity(entry, stream))

    def _time(self, entry: Entry) -> int:
        return self._time_ns if entry.times.modified is None else entry.times.modified

    def _identity(self, entry: Entry, stream: str) -> int:
        """By a hash: a guest chooses its numbers, and two files that look like one would be copied as one."""
        named = f"{self._where}\0{entry.subvolume}\0{entry.number}\0{stream}".encode(errors="surrogatepass")
        return int.from_bytes(blake2b(named, digest_size=8).digest()) | 1

    def _entry(self, path: Parts) -> Entry:
        known = self._known.get(self._number, path)
        return known if isinstance(known, Entry) else self._way(path)[-1]

    def _way(self, path: Parts) -> list[Entry]:
        """The entries from the root to the one at a path."""
        if len(path) > DEEPEST:
            raise GuestLimit(f"{self._where}: more than {DEEPEST} folders within folders")
        way = [self._system.root]
        for end in range(1, len(path) + 1):
            if way[-1].kind is not Kind.FOLDER:
                raise NoSuchPath(self._spelled(path), self._spelled(path[: end - 1]))
            below = path[:end]
            found = self._known.get(self._number, below)
            if found is None:
                entry = self._system.child(way[-1], below[-1])
                found = self._checked(entry, {one.identity for one in way}, below)
                self._known.put(self._number, below, found)
            if isinstance(found, GuestError):
                raise found.with_traceback(None)  # it is raised again and again
            way.append(found)
        return way

    def _checked(self, one: Entry | Unreadable, above: set[tuple[int, int]], path: Parts) -> Entry | GuestError:
        """Raises nothing: one that contains itself would be a way without end."""
        if isinstance(one, Unreadable):
            return one.error
        if one.kind is Kind.FOLDER and one.identity in above:
            return GuestDamaged(f"{self._spelled(path)}: this folder contains itself")
        return one

    def _resolved(self, path: str) -> str | None:
        try:
            return find(self._system, path, follow=False).path
        except GuestError:
            return None  # a link that leads nowhere is shown as one

    def _spelled(self, path: Sequence[str]) -> str:
        return "/".join((self._where, *path))


def _unnameable(one: Entry | Unreadable) -> GuestError | None:
    """Why nobody can ask for it by name."""
    if to_bytes(one.name) is None:
        return GuestUnsupported(f"{one.name!r}: a name that cannot be written in bytes")
    return one.error if isinstance(one, Unreadable) and name_error(one.name) else None
