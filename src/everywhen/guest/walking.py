# SPDX-License-Identifier: AGPL-3.0-or-later
"""Paths in a file system, and all that is below a folder: the same for every kind, and bounded whatever the folders say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from everywhen.guest.errors import GuestDamaged, GuestError, LinkUnusable, NoSuchPath, WrongKind
from everywhen.guest.tree import Entry, FileSystem, Kind, Unreadable

MOST_LINKS = 40
"""On the way to one entry, as in Linux."""
MOST_PARTS = 4096
DEEPEST = 1024
"""Folders within folders; a path on Linux has at most 4096 bytes."""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry and the path where it was found, from the root of its file system, without links."""

    path: str
    entry: Entry


def find(system: FileSystem, path: str, *, follow: bool = True) -> Found:
    """What `path` leads to. Links on the way are followed; one at its end only with `follow`.

    Raises NoSuchPath (with the nearest that exists), WrongKind, LinkUnusable, and what the file system raises.
    """
    waiting = _parts(path)[::-1]
    way = [system.root]
    links = 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            way = way[:-1] or way
            continue
        if way[-1].kind is not Kind.FOLDER:
            raise WrongKind(f"{_spelled(way)}: a {way[-1].kind}, not a folder")
        try:
            entry = system.child(way[-1], part)
        except NoSuchPath as error:
            raise NoSuchPath(path, _spelled(way)) from error
        if entry.kind is not Kind.LINK or not (waiting or follow):
            way.append(entry)
            continue
        links += 1
        if links > MOST_LINKS:
            raise LinkUnusable(f"{path}: more than {MOST_LINKS} links on the way; they lead round in circles")
        target = _target(system, entry)
        if target.startswith("/"):
            way = way[:1]
        waiting += _parts(target)[::-1]
        if len(waiting) > MOST_PARTS:
            raise LinkUnusable(f"{path}: the links on the way make it longer than any path")
    return Found(_spelled(way), way[-1])


def is_there(system: FileSystem, path: str) -> bool:
    """Whether a path leads to something; a link at its end need not lead anywhere. Raises what the device does."""
    try:
        find(system, path, follow=False)
    except GuestError:
        return False
    return True


def walk(system: FileSystem, start: Found) -> Iterator[Found | tuple[str, Unreadable]]:
    """All below a folder, folders before what is in them; links are not followed. What cannot be read comes with its path.

    Each folder is entered once: one that is found again (a loop, or a second name) is an Unreadable, so that this ends
    after as many entries as there are, whatever the folders say.
    """
    entered = {start.entry.identity}
    levels = [(start.path.rstrip("/"), _listed(system, start.entry))]
    while levels:
        folder, entries = levels[-1]
        item = next(entries, None)
        if item is None:
            levels.pop()
        elif isinstance(item, Unreadable):
            yield f"{folder}/{item.name}", item
        elif item.kind is not Kind.FOLDER:
            yield Found(f"{folder}/{item.name}", item)
        elif item.identity in entered or len(levels) > DEEPEST:
            reason = "this folder has been found under another name already" if len(levels) <= DEEPEST else "too deep"
            yield f"{folder}/{item.name}", Unreadable(item.name, GuestDamaged(f"{folder}/{item.name}: {reason}; not entered"))
        else:
            entered.add(item.identity)
            yield Found(f"{folder}/{item.name}", item)
            levels.append((f"{folder}/{item.name}", _listed(system, item)))


def _listed(system: FileSystem, folder: Entry) -> Iterator[Entry | Unreadable]:
    """The entries of a folder; what ends them too early comes as the last of them."""
    try:
        yield from system.entries(folder)
    except GuestError as error:
        yield Unreadable("", error)


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(parts) > MOST_PARTS:
        raise NoSuchPath(f"{path[:40]}…", "/")
    return parts


def _target(system: FileSystem, link: Entry) -> str:
    """Where a link leads, written with slashes. Raises LinkUnusable if that is another volume."""
    target = link.target or ""
    if system.kind == "ntfs":
        if target[1:2] == ":" or target.startswith("\\\\"):
            raise LinkUnusable(f"{link.name}: leads to {target}; which drive that is, the volume does not know")
        target = target.replace("\\", "/")
    if not target:
        raise LinkUnusable(f"{link.name}: a link that leads nowhere")
    return target


def _spelled(way: list[Entry]) -> str:
    return "/" + "/".join(entry.name for entry in way[1:])
