# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a path leads to at one moment, and on which bytes of the disks that rests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from blake3 import blake3

from everywhen.guest.errors import GuestError, NoSuchPath, WrongKind
from everywhen.guest.footprint import Ranges
from everywhen.guest.recognition import Role
from everywhen.guest.tree import Content, Entry, Kind
from everywhen.nbd.devices import Device
from everywhen.services.view.files import GuestFiles, Place

READ = 64 << 20
"""Bytes of a content up to which it is read and compared; of larger ones size and times stand for it."""
_PIECE = 1 << 20
_NAMED_IN = ((0, 128), (1024 + 104, 32))
"""(offset, length) of where UUIDs and labels are: in boot sectors and XFS's superblock; in that of ext. No counters there."""


@dataclass(frozen=True, slots=True)
class Rests:
    """Bytes by disk; None: nobody knows, so it may be all of them. `coarse`: a whole log is among them, which every write of
    the guest's changes: single writes are not worth looking at.
    """

    ranges: Mapping[str, Ranges] | None
    coarse: bool = False


@dataclass(frozen=True, slots=True)
class Sight:
    """`state` is the same as long as the content is. `entry`: None where there is none. `footprint`: what it rests on. `notes`:
    what whoever looks must know. `problem`: why it cannot be read.
    """

    state: tuple[object, ...]
    entry: Entry | None
    footprint: Rests
    notes: tuple[str, ...] = ()
    problem: str = ""


def look(files: GuestFiles, disk: str | None, path: str) -> Sight:
    """What `path` leads to in files of which nothing is known yet. Raises what disks raise."""
    try:
        place = place_of(files, disk, path)
    except (NoSuchPath, WrongKind):
        return Sight(("not there",), None, noted(files))
    except GuestError as error:
        return Sight(("unreadable", str(error)), None, noted(files), problem=str(error))
    entry, problem = place.found.entry, ""
    try:
        state = _state(place, entry)
    except GuestError as error:
        state, problem = ("unreadable", entry.size, entry.times.modified, str(error)), str(error)
    return Sight(state, entry, noted(files), (*files.problems, *place.system.notes), problem)


def place_of(files: GuestFiles, disk: str | None, path: str) -> Place:
    """What a path leads to. Raises as GuestFiles.place.

    A volume that the guest's mount table has and that is not there may be one that has another name now: then what all volumes
    are called counts, too.
    """
    if disk is None and files.guest().notes:
        for volume in files.volumes:
            for offset, length in _NAMED_IN if volume.role is Role.FILES else ():
                files.device(volume).read(offset, length)
    return files.place(disk, path)


def _state(place: Place, entry: Entry) -> tuple[object, ...]:
    if entry.kind is not Kind.FILE:
        return entry.kind, entry.target, entry.device
    if entry.size > READ:
        return entry.kind, entry.size, entry.times.modified, entry.times.changed
    return entry.kind, entry.size, _digest(place.system.open(entry))


def _digest(content: Content) -> bytes:
    hasher = blake3()
    at = 0
    while piece := content.read(at, _PIECE):
        hasher.update(piece)
        at += len(piece)
    return hasher.digest()


def noted(files: GuestFiles) -> Rests:
    """What the answers rest on that were given since this was asked last."""
    try:
        return Rests(*files.noted())
    except GuestError:
        return Rests(None)  # the process that read it has ended meanwhile


class _Turned:
    """A Device that is a disk of one moment, then of another one of the same size."""

    def __init__(self, disk: Device) -> None:
        self.disk = disk
        self.size = disk.size

    def read(self, offset: int, length: int) -> bytes:
        return self.disk.read(offset, length)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return self.disk.read_cached(offset, length)

    def status(self, offset: int, length: int) -> Iterable[tuple[int, bool]]:
        return self.disk.status(offset, length)


class TurningFiles:
    """The files of one moment after the other, parsed by one process: its start takes as long as twenty moments."""

    def __init__(self, failures: tuple[type[Exception], ...]) -> None:
        """`failures`: what disks raise when they cannot be read."""
        self._failures = failures
        self._turned: dict[str, _Turned] = {}
        self._files: GuestFiles | None = None

    def at(self, disks: Mapping[str, Device]) -> GuestFiles:
        """The files of the moment with these disks, until the next one is asked for. Raises GuestError."""
        if self._files is None or {name: disk.size for name, disk in disks.items()} != self._sizes():
            self.close()
            self._turned = {name: _Turned(disk) for name, disk in disks.items()}
            self._files = GuestFiles(self._turned, self._failures)
        for name, disk in disks.items():
            self._turned[name].disk = disk
        self._files.forget()
        return self._files

    def _sizes(self) -> dict[str, int]:
        return {name: turned.size for name, turned in self._turned.items()}

    def close(self) -> None:
        """End the process."""
        if self._files is not None:
            self._files.close()
            self._files = None
