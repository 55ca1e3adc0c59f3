# SPDX-License-Identifier: AGPL-3.0-or-later
"""The tree of all moments as clients of a share may see it: without links, which WebDAV does not have.

*A word for a moment* (`@latest`, `@-10m`) is a folder. What it means is decided when somebody asks for it, and stays until
nobody has asked for anything in it for a minute: a client takes what it fetches in a hundred requests for one thing. After an
hour it is decided anew all the same, or who asks every half minute would never see a newer one.

*A guest's link to a file* is that file. One to a folder is not listed, since a client that copies a folder goes into all that
is listed in it, and `a -> .` has no end; whoever names a path that leads through one comes where it leads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from everywhen.interfaces.webdav.names import meant, shown_together
from everywhen.services.failures import Failed, Failure, NotFound, WrongUsage
from everywhen.services.translation import failing
from everywhen.services.view.folders import Folders
from everywhen.services.view.nodes import File, Folder, Link, Node, OpenFile

PINNED_S = 60.0
"""So long after the last request a word for a moment means the same."""
MOST_LISTED = 100_000
"""Names in one folder: what WebDAV wants to be said of so many takes 300 MB while it is made."""
LONGEST_PINNED_S = 3600.0
_MOST_PINNED = 1000
_MOST_LINKS = 40
"""On the way of one path, as in Linux."""
_MOMENT = 2
"""Names before what is inside a moment: its VM's, and its own."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is at a path: where that really is (names without links), and the folder or file."""

    path: tuple[str, ...]
    node: Folder | File


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A name in a folder of which nothing else is known, and why."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class _Pinned:
    """The name of the moment that a word means; by the monotonic clock, since when, and until when if nobody asks."""

    name: str
    since: float
    until: float

    def holds(self, now: float) -> bool:
        return now < min(self.until, self.since + LONGEST_PINNED_S)


class SharedTree:
    """Safe to use from several threads. All raise Failure alone: NotFound where nothing is at a path."""

    def __init__(self, folders: Folders, url: str, monotonic: Callable[[], float]) -> None:
        """`url` names the repository in messages."""
        self._folders = folders
        self._url = url
        self._monotonic = monotonic
        self._pinned: dict[tuple[str, str], _Pinned] = {}
        self._lock = threading.Lock()

    def find(self, shown: str) -> Found:
        """What is at a path as clients write it."""
        with failing(self._url):
            return self._walk((), [meant(part) for part in shown.split("/") if part])

    def names(self, folder: Found) -> list[str]:
        """What is in a folder, by the guest's names; the share may not show all of it."""
        where = "/".join(folder.path)
        with failing(self._url):
            names = self._folders.names(where)
        if len(names) > MOST_LISTED:
            raise Failed(f"{where} has {len(names):,} names; at most {MOST_LISTED:,} can be listed here.", on=where)
        return names

    def members(self, folder: Found, names: list[str]) -> Iterator[tuple[str, Found | Unreadable]]:
        """What these names of a folder stand for, by the names that are shown; one after the other."""
        for name, shown in shown_together(names).items():
            try:
                with failing(self._url):
                    found: Found | Unreadable = self._walk(folder.path, [name], listing=True)
            except (NotFound, WrongUsage):
                continue  # a link that leads nowhere or is not listed; or it has gone
            except Failure as failure:
                found = Unreadable(failure)
            yield shown, found

    def open(self, file: Found) -> OpenFile:
        """A file, to read it; what is read may raise anything that `services.translation` knows."""
        with failing(self._url):
            return self._folders.open("/".join(file.path))

    def _walk(self, begin: tuple[str, ...], names: list[str], *, listing: bool = False) -> Found:
        """Where names lead from a folder."""
        way, ahead, links = list(begin), deque(names), 0
        there: Node | None = None
        while ahead:
            name = ahead.popleft()
            if name == ".." and links and len(way) > _MOMENT:
                way.pop()
                there = None
                continue
            if name in (".", "..") or "/" in name or "\0" in name:
                raise _nothing(*way, name)
            node = self._folders.look_up("/".join((*way, name)))
            if isinstance(node, Link):
                links += 1
                if links > _MOST_LINKS:
                    raise _nothing(*way, name)
                target = self._pin(way[0], name, node) if len(way) + 1 == _MOMENT else node.target
                ahead.extendleft(reversed([part for part in target.split("/") if part not in ("", ".")]))
            else:
                way.append(name)
                there = node
        if there is None:
            there = self._folders.look_up("/".join(way))
        hidden = listing and links > 0 and len(begin) >= _MOMENT
        if not isinstance(there, File) and (hidden or not isinstance(there, Folder)):
            raise _nothing(*way)
        return Found(tuple(way), there)

    def _pin(self, vm: str, word: str, link: Link) -> str:
        """The name of the moment that a word means for now."""
        now = self._monotonic()
        with self._lock:
            known = self._pinned.get((vm, word))
            if known is None or not known.holds(now):
                known = _Pinned(link.target, now, now)
            if len(self._pinned) >= _MOST_PINNED:
                self._pinned = {key: one for key, one in self._pinned.items() if one.holds(now)}
            self._pinned[vm, word] = replace(known, until=now + PINNED_S)
            return known.name


def _nothing(*path: str) -> NotFound:
    where = "/".join(path)
    return NotFound(f"There is no {where}.", on=where)
