# SPDX-License-Identifier: AGPL-3.0-or-later
"""The questions to the process that parses guests' file systems, answered there.

Each question stands alone: it names the volume, and the entry as it was answered before. So the process can be killed at
any time, and the next one goes on where this one was; what it keeps between questions (file systems, contents, listings
that were not at their end) only saves time.

| ask | with | answer |
|---|---|---|
| volumes | | volumes, problems of partition tables by disk |
| open | | kind, label, uuid, notes, local_times, case_sensitive, root |
| subvolume | number, or none | entry |
| letters | | disk and volume of each drive letter in the registry there, whole |
| entries | entry, from | entries from this one on, more |
| child | entry, name | entry |
| content | entry, stream | size; where it is small, and can be read, runs, and the bytes are the body |
| read | entry, stream, offset, length | the bytes are the body |
| device | offset, length | bytes of the volume itself, as they are on its disks, are the body |
| runs | entry, stream, from, begin | runs from this one on, which begins there, more |
| streams, attributes, metadata | entry | streams · names and lengths, values in the body · spans |
| forget | | from here on the disks are another moment's: nothing that is kept is true |
| noted | | what was read of each disk since `forget` or the last `noted`; fails where this process was never asked to forget |

All but the first and the last two name the volume, by `disk` and `volume`. An answer that has `failed` has nothing else, but
for `entries` and `runs`: there it is what ended the list.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

from everywhen.block.device import DeviceError
from everywhen.formats.fields import Json, mapping, text, whole
from everywhen.guest.drive_letters import drive_letters
from everywhen.guest.errors import GuestError, GuestLimit, NoSuchPath, parsing
from everywhen.guest.ext_journal import ReplayedVolume
from everywhen.guest.footprint import Footprint, LaidOver, taking_down
from everywhen.guest.messages import CHUNK, LARGEST, SMALL, Message
from everywhen.guest.replaying import replayed
from everywhen.guest.tree import Content, Entry, FileSystem, Readable
from everywhen.guest.values import entry_of, error_json, letters_json, listed_json, run_json, sound_entry_json
from everywhen.guest.volumes import Volume, Volumes, find_volumes, open_file_system

_BATCH = 256
"""Entries in an answer; as many of the longest names and targets as there are fit into a message."""
_RUNS = 8192
_MOST_RANGES = 100_000
_CONTENTS = 64
_LISTINGS = 64

_T = TypeVar("_T")


class _Kept(Generic[_T]):
    """The values used last; of one key there may be several, any of which will do."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._values: OrderedDict[Hashable, list[_T]] = OrderedDict()

    def take(self, key: Hashable) -> _T | None:
        values = self._values.get(key)
        if values is None:
            return None
        self._count -= 1
        value = values.pop()
        if not values:
            del self._values[key]
        return value

    def put(self, key: Hashable, value: _T) -> None:
        self._values.setdefault(key, []).append(value)
        self._values.move_to_end(key)
        self._count += 1
        if self._count > self._most:
            self.take(next(iter(self._values)))


class Answering:
    """Answers questions about the disks of one moment."""

    def __init__(self, disks: Mapping[str, Readable]) -> None:
        self._disks = disks
        self._volumes: Volumes | None = None
        self._systems: dict[tuple[str, str], FileSystem] = {}
        self._notes: dict[tuple[str, str], tuple[str, ...]] = {}
        self._contents: _Kept[Content] = _Kept(_CONTENTS)
        self._listings: _Kept[Iterator[Any]] = _Kept(_LISTINGS)
        self._footprint: Footprint | None = None
        self._answers: dict[str, Callable[[Json], Message]] = {
            "volumes": self._list_volumes,
            "open": self._open,
            "subvolume": self._subvolume,
            "letters": self._letters,
            "entries": self._entries,
            "child": self._child,
            "content": self._content,
            "read": self._read,
            "device": self._device,
            "runs": self._runs,
            "streams": self._streams,
            "attributes": self._attributes,
            "metadata": self._metadata,
            "forget": self._forget,
            "noted": self._noted,
        }

    def answer(self, question: Json) -> bytes:
        """The answer, as it is sent; what fails is one, too. Raises KeyError, Corrupt for what is no question."""
        answer = self._answers[text(question, "ask")]
        try:
            with taking_down(self._footprint), parsing("this file system"):
                return answer(question).encode()
        except (GuestError, DeviceError) as error:
            return Message({"failed": error_json(error)}).encode()

    def _found(self) -> Volumes:
        if self._volumes is None:
            self._volumes = find_volumes(self._disks)
        return self._volumes

    def _forget(self, question: Json) -> Message:
        del question
        self._volumes = None
        self._systems, self._notes = {}, {}
        self._contents, self._listings = _Kept(_CONTENTS), _Kept(_LISTINGS)
        self._footprint = Footprint()
        return Message({})

    def _noted(self, question: Json) -> Message:
        del question
        if self._footprint is None:
            raise GuestLimit("nobody knows what was read before this process was begun")
        ranges, coarse = self._footprint.ranges(), self._footprint.coarse
        self._footprint = Footprint()
        if sum(map(len, ranges.values())) > _MOST_RANGES:
            raise GuestLimit(f"more than {_MOST_RANGES:,} places were read")
        return Message(
            {
                "noted": [{"disk": disk, "ranges": [list(one) for one in found]} for disk, found in ranges.items()],
                "coarse": coarse,
            }
        )

    def _list_volumes(self, question: Json) -> Message:
        del question
        found = self._found()
        return Message(
            {
                "volumes": [_volume_json(volume) for volume in found.found],
                "problems": [{"disk": disk, "error": error_json(error)} for disk, error in found.problems],
            }
        )

    def _system(self, question: Json) -> FileSystem:
        disk, name = text(question, "disk"), text(question, "volume")
        system = self._systems.get((disk, name))
        if system is None:
            volume, opening = self._volume(question), Footprint()
            with self._opening(opening):
                shown, self._notes[disk, name] = replayed(volume)
                if self._footprint is not None and _from_memory(volume, shown):
                    shown = replace(shown, content=LaidOver(shown.content, volume.content, opening))
                system = self._systems[disk, name] = open_file_system(shown, self._found().found)
            if self._footprint is not None:
                self._take(opening, volume, shown)
        return system

    @contextmanager
    def _opening(self, opening: Footprint) -> Iterator[None]:
        """All that is read in the body goes there; where it cannot be opened, that is why."""
        try:
            with taking_down(opening):
                yield
        except Exception:
            if self._footprint is not None:
                self._footprint.take(opening)
            raise

    def _take(self, opening: Footprint, volume: Volume, shown: Volume) -> None:
        """What is read to open a file system only leads to what says what is in it, but in Btrfs, whose superblock names the
        newest of all its trees.
        """
        if isinstance(shown.content, LaidOver):
            shown.content.is_open = True
        if volume.kind == "btrfs" and self._footprint is not None:
            self._footprint.take(opening)

    def _volume(self, question: Json) -> Volume:
        disk, name = text(question, "disk"), text(question, "volume")
        volume = next((one for one in self._found().found if one.name == name and disk in one.disks), None)
        if volume is None:
            raise NoSuchPath(name, "/")
        return volume

    def _open(self, question: Json) -> Message:
        system = self._system(question)
        return Message(
            {
                "kind": system.kind,
                "label": system.label,
                "uuid": system.uuid,
                "notes": [*self._notes[text(question, "disk"), text(question, "volume")], *system.notes],
                "local_times": system.local_times,
                "case_sensitive": system.case_sensitive,
                "root": sound_entry_json(system.root),
            }
        )

    def _subvolume(self, question: Json) -> Message:
        number = whole(question, "number") if "number" in question else None
        return Message({"entry": sound_entry_json(self._system(question).subvolume(number))})

    def _letters(self, question: Json) -> Message:
        return Message(letters_json(drive_letters(self._system(question), self._found().found)))

    def _entries(self, question: Json) -> Message:
        entry, system = _entry(question), self._system(question)
        return self._listed(question, "entries", _BATCH, lambda: system.entries(entry), listed_json)

    def _child(self, question: Json) -> Message:
        return Message({"entry": sound_entry_json(self._system(question).child(_entry(question), text(question, "name")))})

    def _content(self, question: Json) -> Message:
        """Of a small one all of it: most files are small, and each question takes 0.2 ms."""
        content = self._opened(question)
        size = content.size
        if size > SMALL:
            return Message({"size": size})
        try:
            with parsing("this content"):
                return Message({"size": size, "runs": [run_json(run) for run in content.runs()]}, content.read(0, size))
        except (GuestError, DeviceError):
            return Message({"size": size})  # who reads it is told

    def _read(self, question: Json) -> Message:
        offset, length = whole(question, "offset"), whole(question, "length", most=CHUNK)
        return Message({}, self._opened(question).read(offset, length))

    def _device(self, question: Json) -> Message:
        offset, length = whole(question, "offset"), whole(question, "length", most=CHUNK)
        return Message({}, self._volume(question).content.read(offset, length))

    def _runs(self, question: Json) -> Message:
        content = self._opened(question)
        return self._listed(question, "runs", _RUNS, content.runs, run_json)

    def _streams(self, question: Json) -> Message:
        found = self._system(question).streams(_entry(question))
        return Message({"streams": [{"name": one.name, "size": one.size} for one in found]})

    def _attributes(self, question: Json) -> Message:
        found = self._system(question).attributes(_entry(question))
        body = b"".join(found.values())
        if len(body) > LARGEST:
            raise GuestLimit(f"{len(body)} bytes of attributes")
        return Message({"attributes": [{"name": name, "length": len(value)} for name, value in found.items()]}, body)

    def _metadata(self, question: Json) -> Message:
        found = self._system(question).metadata(_entry(question))
        return Message({"spans": [[span.place, span.length] for span in found]})

    def _opened(self, question: Json) -> Content:
        """The content that is asked about; the ones used last are kept."""
        entry, stream = _entry(question), text(question, "stream")
        key = (*_place(question), entry.identity, stream)
        content = self._contents.take(key) or self._system(question).open(entry, stream)
        self._contents.put(key, content)
        return content

    def _listed(
        self, question: Json, what: str, most: int, begin: Callable[[], Iterator[_T]], spelled: Callable[[_T], Any]
    ) -> Message:
        """Some of a list from `from` on: a listing that stopped there goes on, if it is still there, or else a new one.

        Several who list the same folder each have theirs: one that began anew each time would take a minute for 10,000 names.
        """
        first = whole(question, "from")
        key = (*_place(question), _entry(question).identity, what)
        listing = self._listings.take((*key, first)) or itertools.islice(begin(), first, None)
        found = []
        try:
            with parsing(f"this {what} list"):
                for one in itertools.islice(listing, most):
                    found.append(spelled(one))  # noqa: PERF401 - what came before an error is kept
        except (GuestError, DeviceError) as error:
            return Message({what: found, "more": False, "failed": error_json(error)})
        more = len(found) == most
        if more:
            self._listings.put((*key, first + most), listing)
        return Message({what: found, "more": more})


def _from_memory(volume: Volume, shown: Volume) -> bool:
    """Whether a log is laid over it from memory; that of ext is read where it lies, whenever a block is that it has."""
    return shown.content is not volume.content and not isinstance(shown.content, ReplayedVolume)


def _place(question: Json) -> tuple[str, str, str]:
    return text(question, "disk"), text(question, "volume"), text(question, "stream", "")


def _entry(question: Json) -> Entry:
    source = mapping(question, "entry")
    return entry_of(source, root=not source.get("name"))


def _volume_json(volume: Volume) -> Json:
    return {
        "name": volume.name,
        "disks": list(volume.disks),
        "size": volume.size,
        "kind": volume.kind,
        "role": volume.role.value,
        "problem": error_json(volume.problem) if volume.problem else None,
        "part_uuid": volume.part_uuid,
        "part_label": volume.part_label,
    }
