# SPDX-License-Identifier: AGPL-3.0-or-later
"""File systems put together as a guest does: each in a folder of another one. The whole is a file system again.

Folders that others are mounted on are known by what they are, not by their names, as in a kernel: whichever way leads
there. What is mounted is opened when somebody looks into it; until then the folder shows what it is itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from everywhen.guest.errors import NoSuchPath, WrongKind
from everywhen.guest.tree import Content, Entry, FileSystem, Kind, Span, Stream, Unreadable

Mounted = tuple[FileSystem, Entry]
"""A file system, and the folder in it that is its root here."""

_DEVICE_PATH = re.compile(r"\\(?:\?\?|\\\?)\\(?=[A-Za-z]:)")
_VOLUME = re.compile(r"(?:\\(?:\?\?|\\\?)\\)?(Volume\{[^\\]*\})(?=\\|$)")
_DRIVE = re.compile(r"[A-Za-z]:(?:\\|$)")
_PART = 1 << 64


class JoinedTree:
    """A FileSystem of several; entries' subvolumes tell which of them they are of."""

    kind = "guest"
    label = ""
    uuid = ""

    def __init__(self, root: Mounted, notes: tuple[str, ...] = (), *, volumes: Mapping[str, str] | None = None) -> None:
        """`volumes`: drives by what links on NTFS call their volumes (`volume{…}`)."""
        self._parts: list[Callable[[], Mounted]] = [lambda: root]
        self._opened: dict[int, Mounted] = {0: root}
        self._points: dict[tuple[int, int], int] = {}
        self._drives: dict[int, str] = {}
        self._notes = notes
        self._volumes = volumes or {}
        self.case_sensitive = root[0].case_sensitive

    def mount(self, folder: Entry, opened: Callable[[], Mounted], *, drive: str = "") -> None:
        """Show another file system in a folder of this one. `drive`: its letter and colon, where links in it may begin with
        one.
        """
        self._points[folder.identity] = len(self._parts)
        self._drives[len(self._parts)] = drive
        self._parts.append(opened)

    @property
    def root(self) -> Entry:
        return self._outward(0, replace(self._opened[0][1], name=""))

    @property
    def notes(self) -> tuple[str, ...]:
        """Also those of what has been opened until now."""
        return (*self._notes, *(note for system, _ in self._opened.values() for note in system.notes))

    @property
    def local_times(self) -> bool:
        """Whether it is so in any of what has been opened."""
        return any(system.local_times for system, _ in self._opened.values())

    def entries(self, folder: Entry) -> Iterator[Entry | Unreadable]:
        part, system, inner = self._inward(folder)
        for one in system.entries(inner):
            yield one if isinstance(one, Unreadable) else self._outward(part, one)

    def child(self, folder: Entry, name: str) -> Entry:
        part, system, inner = self._inward(folder)
        return self._outward(part, system.child(inner, name))

    def open(self, entry: Entry, stream: str = "") -> Content:
        _, system, inner = self._inward(entry)
        return system.open(inner, stream)

    def streams(self, entry: Entry) -> tuple[Stream, ...]:
        _, system, inner = self._inward(entry)
        return system.streams(inner)

    def attributes(self, entry: Entry) -> dict[str, bytes]:
        _, system, inner = self._inward(entry)
        return system.attributes(inner)

    def metadata(self, entry: Entry) -> tuple[Span, ...]:
        """Places are on the entry's own volume."""
        _, system, inner = self._inward(entry)
        return system.metadata(inner)

    def subvolume(self, number: int | None) -> Entry:
        del number  # here they are folders
        return self.root

    def mounted_at(self, entry: Entry) -> Mounted:
        """What is shown there, to be shown in another place too: without what is mounted below it, as `mount --bind` does."""
        _, system, inner = self._inward(entry)
        return system, inner

    def _inward(self, entry: Entry) -> tuple[int, FileSystem, Entry]:
        """Which file system, and its own entry; of a folder that something is mounted on, the root of that."""
        point = self._points.get(entry.identity)
        if point is None:
            part, subvolume = divmod(entry.subvolume, _PART)
            return part, self._mounted(part)[0], replace(entry, subvolume=subvolume)
        return point, *self._mounted(point)

    def _mounted(self, part: int) -> Mounted:
        found = self._opened.get(part)
        if found is None:
            found = self._opened[part] = self._parts[part]()
        return found

    def _outward(self, part: int, entry: Entry) -> Entry:
        target = entry.target
        if target is not None and entry.kind is Kind.LINK and self._opened[part][0].kind == "ntfs":
            target = self._with_slashes(target, self._drives.get(part, ""))
        return replace(entry, subvolume=part * _PART + entry.subvolume, target=target)

    def _with_slashes(self, target: str, drive: str) -> str:
        """Where a link on NTFS leads, as a path here: `C:\\Users` is `/C:/Users`."""
        if (volume := _VOLUME.match(target)) and volume[1].lower() in self._volumes:
            target = f"{self._volumes[volume[1].lower()]}{target[volume.end() :]}"
        target = _DEVICE_PATH.sub("", target)
        if drive and _DRIVE.match(target):
            target = f"/{target[0].upper()}{target[1:]}"
        elif drive and target.startswith("\\") and not target.startswith("\\\\"):
            target = f"/{drive}{target}"
        return target.replace("\\", "/")


class Drives:
    """A FileSystem that is nothing but a folder with folders of these names, for others to be mounted on."""

    kind = "drives"
    label = ""
    uuid = ""
    notes: tuple[str, ...] = ()
    local_times = False
    case_sensitive = False

    def __init__(self, names: list[str]) -> None:
        self.root = Entry(name="", kind=Kind.FOLDER, number=0, size=0)
        self._folders = [Entry(name=name, kind=Kind.FOLDER, number=number, size=0) for number, name in enumerate(names, 1)]

    def entries(self, folder: Entry) -> Iterator[Entry | Unreadable]:
        if folder.number == 0:
            yield from self._folders

    def child(self, folder: Entry, name: str) -> Entry:
        for one in self.entries(folder):
            if isinstance(one, Entry) and one.name.casefold() == name.casefold():
                return one
        raise NoSuchPath(name, "/")

    def subvolume(self, number: int | None) -> Entry:
        del number
        return self.root

    def open(self, entry: Entry, stream: str = "") -> Content:
        raise WrongKind(f"{entry.name}{stream and ':'}{stream}: a folder has no content")

    def streams(self, entry: Entry) -> tuple[Stream, ...]:
        del entry
        return ()

    def attributes(self, entry: Entry) -> dict[str, bytes]:
        del entry
        return {}

    def metadata(self, entry: Entry) -> tuple[Span, ...]:
        del entry
        return ()
