# SPDX-License-Identifier: AGPL-3.0-or-later
"""The guest's files at one moment as folders: all that the guest sees as one tree, each file system alone, volumes as devices.

The process that parses them (`parser.py`) is started when somebody asks the first question, and may be ended at any time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from everywhen.guest.errors import GuestError
from everywhen.guest.names import name_error
from everywhen.guest.recognition import Role
from everywhen.guest.tree import FileSystem
from everywhen.nbd.devices import Device
from everywhen.services.escape import visible
from everywhen.services.sizes import size
from everywhen.services.view.files import GuestFiles
from everywhen.services.view.guest_folder import GuestFolder, Known, Say
from everywhen.services.view.moments import FAILURES
from everywhen.services.view.remote_file_system import RemoteVolume
from everywhen.services.view.running_parsers import RunningParsers
from everywhen.services.view.volumes import GuestVolume

Opened = Callable[[], FileSystem]
Notes = Callable[[], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Shared:
    """What all moments of a process have in common: bounds on what it keeps."""

    known: Known = field(default_factory=Known)
    running: RunningParsers = field(default_factory=RunningParsers)


class GuestFolders:
    """Of one moment, for several threads. All raise GuestError, and FAILURES; `close` it, and again after later questions."""

    def __init__(self, disks: Mapping[str, Device], shared: Shared, say: Say, *, where: str, time_ns: int) -> None:
        """`say`: told, a line each, what whoever looks there must know; `where` they are shown. `time_ns`: of the moment."""
        self._files = GuestFiles(disks, FAILURES, running=shared.running)
        self._known = shared.known
        self._say = say
        self._where = where
        self._time_ns = time_ns
        self._folders: dict[str, GuestFolder] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """End what reads them."""
        self._files.close()

    def end(self) -> None:
        """The same for good: whoever waits for an answer is told so."""
        self._files.end()

    def guest(self) -> GuestFolder:
        """As the guest sees itself. Raises NoSystem where no volume looks like a guest's root."""
        return self._folder("files", self._files.guest, self._notes)

    def volume(self, volume: GuestVolume) -> GuestFolder:
        """One file system alone."""
        where = f"volumes/{volume.disks[0]}/{volume.name}"
        return self._folder(where, lambda: self._files.system(volume), lambda: self._notes_of(volume))

    def volumes(self, disk: str) -> list[GuestVolume]:
        """The volumes that are shown with a disk: those that begin on it. One over several disks is shown once."""
        return [one for one in self._files.volumes if one.disks[0] == disk and name_error(one.name) is None]

    def device(self, volume: GuestVolume) -> RemoteVolume:
        """The bytes of a volume."""
        return self._files.device(volume)

    def note(self) -> str:
        """What there is, and what whoever looks there must know: a text for people, harmless for a terminal."""
        lines = []
        for volume in self._files.volumes:
            lines.append(f"volumes/{volume.disks[0]}/{volume.name}: {self._words(volume)}, {size(volume.size)}")
            lines += [f"    {note}" for note in self._notes_of(volume)]
        lines += [f"disk/{problem}" for problem in self._files.problems]
        lines += [f"files: {note}" for note in self._guest_notes()]
        return "".join(f"{visible(line)}\n" for line in lines)

    def _folder(self, below: str, opened: Opened, notes: Notes) -> GuestFolder:
        with self._lock:
            found = self._folders.get(below)
        if found is not None:
            return found
        where = f"{self._where}/{below}"
        new = GuestFolder(opened(), self._known, self._say, where=where, time_ns=self._time_ns)
        with self._lock:
            found = self._folders.setdefault(below, new)
        if found is new:
            for note in notes():
                self._say(f"{where}: {note}")
        return found

    def _words(self, volume: GuestVolume) -> str:
        try:
            return self._files.system(volume).kind if volume.role is Role.FILES else volume.words
        except GuestError:
            return volume.words

    def _notes(self) -> Iterator[str]:
        """Of all that the guest sees."""
        yield from self._files.problems
        for volume in self._files.volumes:
            yield from (f"{volume.disks[0]}:/{volume.name}: {note}" for note in self._notes_of(volume))
        yield from self._guest_notes()

    def _notes_of(self, volume: GuestVolume) -> list[str]:
        notes = [] if volume.problem is None else [str(volume.problem)]
        if volume.role is not Role.FILES:
            return notes
        try:
            system = self._files.system(volume)
        except GuestError as error:
            return [*notes, str(error)]
        local = ["Times are of the guest's own zone, which the file system does not say."] if system.local_times else []
        return [*notes, *system.notes, *local]

    def _guest_notes(self) -> list[str]:
        """Without those that single volumes have."""
        try:
            tree = self._files.guest()
        except GuestError as error:
            return [str(error)]
        known = {note for volume in self._files.volumes for note in self._notes_of(volume)}
        return [note for note in tree.notes if note not in known]
