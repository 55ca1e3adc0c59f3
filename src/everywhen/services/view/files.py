# SPDX-License-Identifier: AGPL-3.0-or-later
"""The files of the guest at one moment: its volumes, their file systems, and paths in them.

With a disk, a path begins with the name of a volume: `/p1/etc/passwd`. Without one, it is the guest's own (`guest_root.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import RLock

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, flag, mapping, objects, text, whole
from everywhen.guest.errors import NoSuchPath
from everywhen.guest.footprint import Ranges
from everywhen.guest.messages import Message
from everywhen.guest.recognition import Role
from everywhen.guest.tree import DriveLetters, FileSystem
from everywhen.guest.values import error_of, letters_of, places_of, short, shorts
from everywhen.guest.walking import Found, find
from everywhen.nbd.devices import Device
from everywhen.services.view.guest_root import guest_tree
from everywhen.services.view.parser import PATIENCE_S, Parser
from everywhen.services.view.remote_file_system import RemoteFileSystem, RemoteVolume
from everywhen.services.view.running_parsers import RunningParsers
from everywhen.services.view.volumes import GuestVolume


class NoSuchVolume(NoSuchPath):
    """A path on a disk that does not begin with the name of one of its volumes."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a path leads to. `before`: what stands before paths of this file system (`/p1`), empty for the guest's own."""

    system: FileSystem
    found: Found
    before: str

    def spelled(self, path: str) -> str:
        """A path of this file system as it is asked for."""
        return f"{self.before}{path}".rstrip("/") or "/"


class GuestFiles:
    """The files of one moment. For several threads; `close` it, and again when something was asked after that."""

    def __init__(
        self,
        disks: Mapping[str, Device],
        failures: tuple[type[Exception], ...],
        *,
        patience_s: float = PATIENCE_S,
        running: RunningParsers | None = None,
    ) -> None:
        """`failures`: what the disks raise when they cannot be read; all that is asked here raises these too. `running`: of
        all moments whose files are looked at by one process.
        """
        self._running = running or RunningParsers()
        self._parser = Parser(disks, failures, patience_s=patience_s, starting=self._running.starting)
        self._sizes = {name: disk.size for name, disk in disks.items()}
        self._volumes: list[GuestVolume] | None = None
        self._systems: dict[tuple[str, str], FileSystem] = {}
        self._tree: FileSystem | None = None
        self._lock = RLock()
        self.problems: list[str] = []
        """What is wrong with tables of partitions and volumes; known when the volumes have been asked for."""

    def close(self) -> None:
        """End what reads them."""
        self._parser.close()
        self._running.ended(self._parser)

    def end(self) -> None:
        """The same for good: whoever asks after this, or waits for an answer, is told so. Raises nothing."""
        self._parser.end()
        self._running.ended(self._parser)

    def forget(self) -> None:
        """Of the disks, which are another moment's from here on, nothing is known any more. Raises GuestError."""
        with self._lock:
            self._volumes, self._tree, self.problems = None, None, []
            self._systems.clear()
            self._parser.ask({"ask": "forget"}, lambda _: True)

    def noted(self) -> tuple[dict[str, Ranges], bool]:
        """By disk, the bytes on which all rests that was answered since `forget`, or since this was asked last.

        As long as they are the same, the answers are. And whether a whole log is among them, of which hardly anything counts.

        Raises GuestError where that cannot be told.
        """
        found, ended = self._parser.ask({"ask": "noted"}, self._decode_noted)
        if ended is not None:
            raise ended
        return found

    def _decode_noted(self, answer: Message) -> tuple[dict[str, Ranges], bool]:
        noted = {short(one, "disk"): places_of(one, "ranges") for one in objects(answer.head, "noted")}
        if any(ranges and sum(ranges[-1]) > self._sizes.get(disk, 0) for disk, ranges in noted.items()):
            raise Corrupt("places that are on no disk")
        return noted, flag(answer.head, "coarse")

    @property
    def volumes(self) -> list[GuestVolume]:
        """All volumes, by disk; a logical volume over several disks is there once. Raises GuestError."""
        with self._lock:
            if self._volumes is None:
                found, ended = self._parser.ask({"ask": "volumes"}, _decode_volumes)
                if ended is not None:
                    raise ended
                self._volumes, self.problems = found
            return self._volumes

    def system(self, volume: GuestVolume) -> FileSystem:
        """The file system of a volume. Raises GuestError."""
        key = (volume.disks[0], volume.name)
        with self._lock:
            found = self._systems.get(key)
            if found is None:
                found = self._systems[key] = RemoteFileSystem(self._parser, *key)
            return found

    def device(self, volume: GuestVolume) -> RemoteVolume:
        """The volume itself, without what its file system's journal holds."""
        return RemoteVolume(self._parser, volume.disks[0], volume.name, volume.size)

    def letters(self, volume: GuestVolume) -> DriveLetters:
        """The letters that the Windows on a volume gives to all. Raises GuestError."""
        question = {"ask": "letters", "disk": volume.disks[0], "volume": volume.name}
        found, ended = self._parser.ask(question, lambda answer: letters_of(answer.head))
        if ended is not None:
            raise ended
        return found

    def guest(self) -> FileSystem:
        """All that the guest sees, as one. Raises GuestError where nothing looks like a guest's system."""
        with self._lock:
            if self._tree is None:
                self._tree = guest_tree(self.volumes, self.system, self.letters)
            return self._tree

    def place(self, disk: str | None, path: str, *, follow: bool = True) -> Place:
        """What `path` leads to; a link at its end is followed if `follow`. Raises GuestError; NoSuchPath with the whole
        path.
        """
        if disk is None:
            system = self.guest()
            return Place(system, find(system, path, follow=follow), "")
        name, _, rest = path.strip("/").partition("/")
        volume = next((one for one in self.volumes if one.name == name and disk in one.disks), None)
        if volume is None:
            raise NoSuchVolume(path, "/")
        system = self.system(volume)
        try:
            return Place(system, find(system, f"/{rest}", follow=follow), f"/{name}")
        except NoSuchPath as error:
            raise NoSuchPath(path, f"/{name}{error.nearest}".rstrip("/")) from error

    def beside(self, disk: str | None, nearest: str) -> list[str]:
        """Names in the nearest folder that exists, for who meant another one. Raises GuestError."""
        if disk is not None and nearest == "/":
            return [volume.name for volume in self.volumes if disk in volume.disks]
        place = self.place(disk, nearest)
        return [one.name for one in place.system.entries(place.found.entry)]


def _decode_volumes(answer: Message) -> tuple[list[GuestVolume], list[str]]:
    found = [_volume(one) for one in objects(answer.head, "volumes")]
    problems = []
    for one in objects(answer.head, "problems"):
        disk, error = short(one, "disk"), error_of(mapping(one, "error"))
        problems.append(f"{disk}: {error}" if disk else str(error))
    return found, problems


def _volume(source: Json) -> GuestVolume:
    try:
        role = Role(text(source, "role"))
    except ValueError as error:
        raise Corrupt("a volume with a role that there is not") from error
    problem = None if source.get("problem") is None else error_of(mapping(source, "problem"))
    name, disks = short(source, "name"), shorts(source, "disks")
    if not name or "/" in name or not disks:
        raise Corrupt("a volume without a name, or on no disk")
    whose = (name, disks, whole(source, "size"), short(source, "kind"), role, problem)
    return GuestVolume(*whose, short(source, "part_uuid"), short(source, "part_label"))
