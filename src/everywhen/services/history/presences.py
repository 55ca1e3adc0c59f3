# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names that match a pattern, in the newest moment and all recovery points: from which to which each was there.

The newest tree is walked, folder by folder, and what was read for each folder is taken down. Going back, a folder is
listed again only at points in which one of these bytes is another one; the others are known to be the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import translate

from everywhen.guest.errors import GuestError, NoSuchPath, WrongKind
from everywhen.guest.tree import Entry, Kind, Unreadable
from everywhen.guest.walking import DEEPEST
from everywhen.services.history.folder_footprints import FolderFootprints
from everywhen.services.history.line import At
from everywhen.services.history.opening import OpenedHistory
from everywhen.services.history.sight import noted, place_of
from everywhen.services.view.files import GuestFiles, Place

_WAY = "way"
"""In place of a folder: the way to the first one, and what opening its file system rests on."""


@dataclass(slots=True)
class Presence:
    """A path that was there from one point of the line to another one, all the time; `entry` as it was in the last of them.

    The number after that of the last point means the newest moment, where that is after it.
    """

    path: str
    entry: Entry
    first: int
    last: int


@dataclass(slots=True)
class _Folder:
    entry: Entry
    found: dict[str, Entry] = field(default_factory=dict)
    """What matches, by name."""
    folders: dict[str, Entry] = field(default_factory=dict)


class Presences:
    """Not for several threads."""

    def __init__(self, opened: OpenedHistory, where: tuple[str | None, str], pattern: str) -> None:
        """`where`: the disk (None: the guest's own view), and the folder to begin with."""
        self._line = opened.line
        self._newest = opened.newest
        self._traces = opened.traces
        self._files = opened.files
        self._disk, self._start = where
        self._pattern = pattern
        self._footprints = FolderFootprints()
        self._tree: dict[str, _Folder] = {}
        self._open: dict[str, Presence] = {}
        self._lost: set[str] = set()
        self._gained: dict[str, Entry] = {}
        self._begun: Callable[[list[Presence]], None] = lambda _: None
        self._index = 0
        self.opened = 0
        """Points that were opened."""
        self.unreadable: dict[str, str] = {}
        """Folders and entries that could not be looked into at some point, and why."""
        self.notes: tuple[str, ...] = ()
        """What whoever looks must know, of any of the moments."""

    def moment(self, number: int) -> At:
        """The moment that a number in a Presence means."""
        return self._line.at_point(number) if number <= self._newest.index else self._newest

    @property
    def last(self) -> int:
        """The number of the newest moment."""
        return self._newest.index + (self._newest > self._line.at_point(self._newest.index))

    def all(self, progress: Callable[[int], None], begun: Callable[[list[Presence]], None]) -> Iterator[Presence]:
        """Those there are, in no order. `progress`: told each point.

        `begun`: told what was not there in the moments that were looked at before, by path, as soon as it is found; its `first`
        is not known then. It may turn the files to another moment.

        Raises Damaged, StorageError, GuestError.
        """
        self._begun = begun
        at = self._newest.index
        for number in range(self.last, at - 1, -1):
            self._index = number
            yield from self._begin_anew()
        while at:
            for other, found in self._traces.differing(at, self._footprints.blocks()):
                at = other
                progress(other)
                touched = None if found is None else self._footprints.touched(found, self._traces.contents)
                if touched == set():
                    continue
                self._index = other
                yield from self._begin_anew() if touched is None or _WAY in touched else self._look_again(touched)
                break
        for one in self._open.values():
            one.first = 0
            yield one

    def _begin_anew(self) -> Iterator[Presence]:
        """Walk all of it; gives what is there no more, going back."""
        files, place = self._turn()
        self._footprints = FolderFootprints()
        self._footprints.put(_WAY, noted(files).ranges)
        for folder in list(self._tree):
            self._remove(folder)
        if place is not None and place.found.entry.kind is Kind.FOLDER:
            self.notes = tuple(dict.fromkeys((*self.notes, *files.problems, *place.system.notes)))
            self._walk(files, place, [(place.spelled(place.found.path).rstrip("/"), place.found.entry)])
        yield from self._settled()

    def _look_again(self, touched: set[str]) -> Iterator[Presence]:
        """List these folders again; gives what is there no more, going back."""
        files, place = self._turn()
        noted(files)  # the way is what it was
        for folder in sorted(touched, key=lambda path: path.count("/")):  # those above others first
            old = self._tree.get(folder)
            if old is None or place is None:
                continue  # the one above has it no more
            self._remove(folder)
            new = self._listed(files, place, folder, old.entry)
            same = {
                name for name, one in new.folders.items() if name in old.folders and old.folders[name].identity == one.identity
            }
            waiting = [f"{folder}/{name}" for name in old.folders if name not in same]
            while waiting:
                gone = self._remove(waiting.pop())
                waiting += gone
            self._walk(files, place, [(f"{folder}/{name}", one) for name, one in new.folders.items() if name not in same])
        yield from self._settled()

    def _remove(self, folder: str) -> list[str]:
        """Let go of a folder's listing; the folders in it."""
        self._footprints.drop(folder)
        known = self._tree.pop(folder, None)
        if known is None:
            return []
        self._lost.update(f"{folder}/{name}" for name in known.found)
        return [f"{folder}/{name}" for name in known.folders]

    def _walk(self, files: GuestFiles, place: Place, waiting: list[tuple[str, Entry]]) -> None:
        """List folders that are not known, and all below them; each once, whatever they say."""
        entered = {one.entry.identity for one in self._tree.values()} if waiting else set()
        while waiting:
            folder, entry = waiting.pop()
            if entry.identity in entered or folder.count("/") > DEEPEST:
                continue
            entered.add(entry.identity)
            found = self._listed(files, place, folder, entry)
            waiting += [(f"{folder}/{name}", one) for name, one in found.folders.items()]

    def _listed(self, files: GuestFiles, place: Place, folder: str, entry: Entry) -> _Folder:
        named = re.compile(translate(self._pattern), 0 if place.system.case_sensitive else re.IGNORECASE)
        listed = self._tree[folder] = _Folder(entry)
        try:
            for one in place.system.entries(entry):
                if isinstance(one, Unreadable):
                    self.unreadable[f"{folder}/{one.name}"] = str(one.error)
                    continue
                if one.kind is Kind.FOLDER:
                    listed.folders[one.name] = one
                if named.match(one.name):
                    listed.found[one.name] = one
        except GuestError as error:
            self.unreadable[folder or "/"] = str(error)
        self._footprints.put(folder, noted(files).ranges)
        self._gained |= {f"{folder}/{name}": one for name, one in listed.found.items()}
        return listed

    def _settled(self) -> Iterator[Presence]:
        """After all changes at a point."""
        for path in self._lost - self._gained.keys():
            one = self._open.pop(path)
            one.first = self._index + 1
            yield one
        new = [Presence(path, self._gained[path], 0, self._index) for path in sorted(self._gained.keys() - self._open.keys())]
        self._open |= {one.path: one for one in new}
        self._lost, self._gained = set(), {}
        self._begun(new)

    def _turn(self) -> tuple[GuestFiles, Place | None]:
        """The files of the point, and the folder to begin with, if it is there."""
        self.opened += 1
        files = self._files.at(self._line.disks(self.moment(self._index)))
        try:
            return files, place_of(files, self._disk, self._start)
        except (NoSuchPath, WrongKind):
            return files, None
        except GuestError as error:
            self.unreadable[self._start] = str(error)
            return files, None
