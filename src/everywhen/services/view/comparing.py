# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is different between the files of two moments: by metadata first, by content where that leaves it open.

A file whose size, times of change, owner and mode are the same is taken to be the same; one whose size is the same and whose
times are not is read on both sides, as far as the first difference. So is one whose time is known to two seconds only (FAT):
it may have changed again within these. Blocks that both moments have are fetched once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from everywhen.guest.errors import GuestError
from everywhen.guest.tree import Content, Entry, Kind, Unreadable
from everywhen.guest.walking import DEEPEST, Found, walk
from everywhen.services.view.files import Place

_PIECE = 1 << 20
_FAT_STEP = 2_000_000_000


class What(StrEnum):
    """What became of an entry."""

    APPEARED = "appeared"
    VANISHED = "vanished"
    CHANGED = "changed"
    """Its content, its kind, or where it leads."""
    ATTRIBUTES = "attributes"
    """Only what is said about it: owner, mode, times."""
    RENAMED = "renamed"


@dataclass(frozen=True, slots=True)
class Difference:
    """An entry at `path` (one that vanished: where it was), before and after. `old_path`: of what was renamed."""

    what: What
    path: str
    before: Entry | None
    after: Entry | None
    old_path: str | None = None


@dataclass(slots=True)
class Differences:
    """All that is different, by path; what could not be compared, and why; how many entries were looked at."""

    found: list[Difference] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    looked_at: int = 0


def compare(before: Place | None, after: Place | None, progress: Callable[[int], None]) -> Differences:
    """Everything at and below two places, of which one may not be there. `progress`: told how many entries were looked at.

    Raises what disks raise.
    """
    comparing = _Comparing(before, after, progress)
    comparing.run()
    comparing.result.found = sorted(_with_renames(comparing.result.found), key=lambda one: one.path)
    return comparing.result


class _Comparing:
    def __init__(self, before: Place | None, after: Place | None, progress: Callable[[int], None]) -> None:
        self._before = before
        self._after = after
        self._progress = progress
        self._entered: set[tuple[tuple[int, int], tuple[int, int]]] = set()
        self.result = Differences()

    def run(self) -> None:
        before, after = self._before, self._after
        if before is None or after is None:
            for side, what in ((before, What.VANISHED), (after, What.APPEARED)):
                if side is not None:
                    self._alone(side, side.found, what, side.spelled(side.found.path))
            return
        waiting: list[tuple[str, Entry, Entry]] = []
        path = after.spelled(after.found.path).rstrip("/")
        self._pair(path, before.found.entry, after.found.entry, waiting)
        while waiting:
            self._folders(*waiting.pop(), waiting)

    def _folders(self, path: str, before: Entry, after: Entry, waiting: list[tuple[str, Entry, Entry]]) -> None:
        key = before.identity, after.identity
        if key in self._entered or path.count("/") > DEEPEST:
            self.result.unreadable.append((path, "this folder has been found under another name already, or is too deep"))
            return
        self._entered.add(key)
        old, new = self._listed(self._before, path, before), self._listed(self._after, path, after)
        for name in old.keys() | new.keys():
            inner = f"{path}/{name}"
            if name in old and name in new:
                self._pair(inner, old[name], new[name], waiting)
            elif name in old and self._before is not None:
                self._alone(self._before, Found(inner, old[name]), What.VANISHED, inner)
            elif self._after is not None:
                self._alone(self._after, Found(inner, new[name]), What.APPEARED, inner)

    def _listed(self, place: Place | None, path: str, folder: Entry) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        if place is None:
            return found
        try:
            for one in place.system.entries(folder):
                if isinstance(one, Unreadable):
                    self.result.unreadable.append((f"{path}/{one.name}", str(one.error)))
                else:
                    found[one.name] = one
        except GuestError as error:
            self.result.unreadable.append((path or "/", str(error)))
        self._count(len(found))
        return found

    def _count(self, entries: int) -> None:
        self.result.looked_at += entries
        self._progress(self.result.looked_at)

    def _alone(self, place: Place, found: Found, what: What, path: str) -> None:
        """What is on one side only, with all that is below it."""
        below = walk(place.system, found) if found.entry.kind is Kind.FOLDER else iter(())
        self._add(what, path, found.entry)
        for one in below:
            inner = one.path if isinstance(one, Found) else one[0]
            spelled = f"{path}{inner[len(found.path.rstrip('/')) :]}"
            if isinstance(one, Found):
                self._count(1)
                self._add(what, spelled, one.entry)
            else:
                self.result.unreadable.append((spelled, str(one[1].error)))

    def _add(self, what: What, path: str, entry: Entry) -> None:
        gone = what is What.VANISHED
        self.result.found.append(Difference(what, path, entry if gone else None, None if gone else entry))

    def _pair(self, path: str, before: Entry, after: Entry, waiting: list[tuple[str, Entry, Entry]]) -> None:
        """The same name on both sides."""
        path = path or "/"
        if before.kind is after.kind is Kind.FOLDER:
            waiting.append((path.rstrip("/"), before, after))
            if _owned(before) != _owned(after):
                self.result.found.append(Difference(What.ATTRIBUTES, path, before, after))
            return
        if before.kind is not after.kind:
            sides = ((self._before, before, What.VANISHED), (self._after, after, What.APPEARED))
            for place, entry, what in sides:
                if place is not None:
                    self._alone(place, Found(path, entry), what, path)
            return
        same_told = _told(before) == _told(after)
        if same_told and not _may_hide_a_change(after):
            return
        what = What.CHANGED
        try:
            if self._same(before, after):
                if same_told:
                    return
                what = What.ATTRIBUTES
        except GuestError as error:
            self.result.unreadable.append((path, str(error)))
        self.result.found.append(Difference(what, path, before, after))

    def _same(self, before: Entry, after: Entry) -> bool:
        if (before.size, before.target, before.device) != (after.size, after.target, after.device):
            return False
        if before.kind is not Kind.FILE or self._before is None or self._after is None:
            return True
        return same_content(self._before.system.open(before), self._after.system.open(after))


def same_content(before: Content, after: Content) -> bool:
    """Whether two contents are equal; what is a hole in both is not read. Raises GuestError, and what disks raise."""
    if before.size != after.size:
        return False
    return all(
        before.read(at, length) == after.read(at, length)
        for start, end in _stored_in_either(before, after)
        for at in range(start, end, _PIECE)
        for length in (min(_PIECE, end - at),)
    )


def _stored_in_either(before: Content, after: Content) -> Iterator[tuple[int, int]]:
    """Ascending, disjoint stretches of the contents of which not both are holes."""
    ones, others = iter(before.runs()), iter(after.runs())
    one, other = next(ones, None), next(others, None)
    at = 0
    while one is not None and other is not None:
        end = min(one.end, other.end)
        if not (one.zero and other.zero):
            yield at, end
        at = end
        one = next(ones, None) if one.end == end else one
        other = next(others, None) if other.end == end else other


def _owned(entry: Entry) -> tuple[object, ...]:
    return entry.mode, entry.uid, entry.gid


def _told(entry: Entry) -> tuple[object, ...]:
    """All that is said of a file, but for what reading it changes."""
    times = entry.times
    return *_owned(entry), entry.size, entry.target, entry.device, times.modified, times.changed


def _may_hide_a_change(entry: Entry) -> bool:
    """Whether it can have changed without another time: FAT knows them to two seconds, and Linux writes no others there."""
    times = entry.times
    return entry.kind is Kind.FILE and times.changed is None and (times.modified or 0) % _FAT_STEP == 0


def _with_renames(found: list[Difference]) -> Iterator[Difference]:
    """What vanished here and appeared there as the same file is one difference; what a renamed folder has in it, none."""
    gone = {_own(one.before): one for one in found if one.what is What.VANISHED and one.before}
    moved: dict[str, str] = {}
    pairs: dict[int, Difference] = {}
    for one in sorted(found, key=lambda one: one.path):  # folders before what is in them
        old = gone.get(_own(one.after)) if one.what is What.APPEARED and one.after else None
        if old is not None and id(old) not in pairs:
            pairs[id(old)] = pairs[id(one)] = Difference(What.RENAMED, one.path, old.before, one.after, old.path)
            moved[one.path] = old.path
    for one in found:
        pair = pairs.get(id(one))
        if pair is None:
            yield one
        elif one.what is What.APPEARED and not _goes_along(pair, moved):
            yield pair


def _goes_along(pair: Difference, moved: dict[str, str]) -> bool:
    new_folder, _, new_name = pair.path.rpartition("/")
    old_folder, _, old_name = (pair.old_path or "").rpartition("/")
    return new_name == old_name and moved.get(new_folder) == old_folder


def _own(entry: Entry | None) -> tuple[object, ...]:
    """What stays the same in a rename, and is not the same again in a file that got the number of one that was deleted."""
    if entry is None:
        return ()
    size = None if entry.kind is Kind.FOLDER else (entry.size, entry.times.modified)
    return entry.kind, entry.identity, entry.times.created, size
