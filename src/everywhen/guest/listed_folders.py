# SPDX-License-Identifier: AGPL-3.0-or-later
"""What most file systems have in common: their folders are lists of records with names, to be listed or searched for one.

Btrfs alone finds a name without reading the folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from everywhen.guest.errors import NoSuchPath, WrongKind, parsing
from everywhen.guest.lookups import Lookups
from everywhen.guest.names import name_error, shown
from everywhen.guest.tree import Entry, Kind, Stream, Unreadable

_R = TypeVar("_R")


class ListedFolders(ABC, Generic[_R]):
    """The questions of a FileSystem (guest/tree.py) that are about names, over records of whatever type."""

    case_sensitive: bool
    root: Entry

    def __init__(self) -> None:
        self._lookups = Lookups(self._keyed)

    @abstractmethod
    def _records(self, folder: Entry) -> Iterator[_R | Unreadable]:
        """All in a folder but `.` and `..`, in its order; what makes no sense is an Unreadable among them."""

    @abstractmethod
    def _name(self, record: _R) -> str:
        """Whatever it is: who shows it checks it."""

    @abstractmethod
    def _made(self, name: str, record: _R) -> Entry:
        """The entry of a record, by its name."""

    def _is_listed(self, folder: Entry, record: _R) -> bool:
        """Whether a listing has it, too."""
        del folder, record
        return True

    def _asked(self, name: str) -> tuple[Hashable, ...]:
        """What a name is looked for by: the first of these that is there at all."""
        return (name if self.case_sensitive else name.upper(),)

    def _keys(self, record: _R) -> tuple[Hashable, ...]:
        """What a record is found by."""
        return self._asked(self._name(record))

    def entries(self, folder: Entry) -> Iterator[Entry | Unreadable]:
        """As FileSystem has it."""
        with parsing(folder.name or "/"):
            for one in self._of(folder):
                if isinstance(one, Unreadable):
                    yield one
                elif self._is_listed(folder, one):
                    yield self._shown(one)

    def child(self, folder: Entry, name: str) -> Entry:
        """As FileSystem has it."""
        with parsing(name):
            found = self._lookups.find(folder, *self._asked(name))
            if found is not None and not name_error(known := self._name(found)):
                return self._made(known, found)
        raise NoSuchPath(name, folder.name or "/")

    def subvolume(self, number: int | None) -> Entry:
        """There are none, but on Btrfs."""
        del number
        return self.root

    def streams(self, entry: Entry) -> tuple[Stream, ...]:
        """None, but on NTFS."""
        del entry
        return ()

    def attributes(self, entry: Entry) -> dict[str, bytes]:
        """None, but on Unix's."""
        del entry
        return {}

    def _shown(self, record: _R) -> Entry | Unreadable:
        name = self._name(record)
        return shown(name, lambda: self._made(name, record))

    def _keyed(self, folder: Entry) -> Iterator[tuple[tuple[Hashable, ...], _R]]:
        for one in self._of(folder):
            if not isinstance(one, Unreadable):
                yield self._keys(one), one

    def _of(self, folder: Entry) -> Iterator[_R | Unreadable]:
        demand_folder(folder)
        return self._records(folder)


def demand_folder(folder: Entry) -> None:
    """Raises WrongKind for anything else."""
    if folder.kind is not Kind.FOLDER:
        raise WrongKind(f"{folder.name}: a {folder.kind}, not a folder")


def demand_file(entry: Entry, stream: str) -> None:
    """Raises WrongKind for what is no file, and for a stream of one: for file systems without streams."""
    if stream or entry.kind is not Kind.FILE:
        raise WrongKind(f"{entry.name}: {'no such stream' if stream else f'a {entry.kind} has no content'}")
