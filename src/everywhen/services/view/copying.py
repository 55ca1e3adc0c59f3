# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files of a guest copied into a folder here, as much like they were there as this machine allows.

| of the guest | here |
|---|---|
| content | with its holes |
| mode, times | the same, in ns; where there is no mode (NTFS, FAT) what the umask leaves; FAT's times as if they were UTC |
| owner, group | by number, if root copies; else who copies owns them, and set-user-id and set-group-id are left out |
| extended attributes | as far as the file system here takes them |
| second names (hard links) | second names of the copy |
| symbolic links | as they are; they are never followed |
| NTFS's named streams | files beside: `letter.doc:Zone.Identifier` |
| devices, pipes, sockets | left out, and said |

What cannot be read or written is told, and the rest is copied. What ends the copy: no room, and a repository that is out of
reach.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from everywhen.block.device import DeviceError
from everywhen.guest.errors import GuestDamaged, GuestError, GuestLimit, GuestUnsupported
from everywhen.guest.messages import CHUNK
from everywhen.guest.tree import Entry, FileSystem, Kind, Unreadable
from everywhen.repository.errors import Damaged
from everywhen.services.view.measuring import weight
from everywhen.services.view.restoring import Restoring
from everywhen.services.view.target_folder import NewFile, TargetFolder, name_bytes

DEEPEST = 256
"""Folders within folders; each is held open."""
_LARGEST = (1 << 63) - 1
_ENDING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_OF_ONE = (GuestError, DeviceError, Damaged)
"""What is wrong with one file of the guest's, and says nothing of the next one."""


@dataclass(slots=True)
class Copied:
    """What a copy has come to."""

    files: int = 0
    folders: int = 0
    links: int = 0
    bytes: int = 0
    """Of content, without holes."""
    passed: int = 0
    """Of the `weight` of all that is to be copied, as much as is done, also of what could not be copied."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """What is not there: path and why."""
    lost: Counter[str] = field(default_factory=Counter)
    """What could not be restored, of how many: `owner`, `user.comment`."""


@dataclass(slots=True)
class _Level:
    """A folder that is being copied; `names` lead to its copy from the target."""

    path: str
    entry: Entry
    target: TargetFolder
    names: tuple[bytes, ...]
    entries: Iterator[Entry | Unreadable]
    made: bool


class Copying:
    """One copy out of one file system."""

    def __init__(self, system: FileSystem, target: TargetFolder, report: Callable[[Copied], None], *, umask: int) -> None:
        """Into `target`, which stays the caller's; `report` is called as it goes on."""
        self._system = system
        self._target = target
        self._report = report
        self._attributes = Restoring(umask)
        self._first: dict[tuple[int, int], tuple[tuple[bytes, ...], bytes]] = {}
        self._entered: set[tuple[int, int]] = set()
        self._to_pass = 0
        self.copied = Copied(lost=self._attributes.lost)

    def copy(self, entry: Entry, name: str) -> None:
        """Copy one entry, and all that is below it, as `name`. Raises OSError that ends it, and what disks raise but for
        Damaged.
        """
        levels: list[_Level] = []
        with self._told(name):
            self._one(_Level("", entry, self._target, (), iter(()), made=False), entry, name, levels)
        self._descend(levels)
        self._report(self.copied)

    def copy_content(self, folder: Entry, *, made: bool) -> None:
        """Copy what is in a folder into the target itself; if that was `made` for it, it is to be like it. Raises as `copy`."""
        self._entered.add(folder.identity)
        self._descend([_Level("", folder, self._target, (), self._system.entries(folder), made)])

    def _descend(self, levels: list[_Level]) -> None:
        """All that is in a folder and below it; without a call for each level, whose number is the guest's."""
        try:
            while levels:
                level = levels[-1]
                one = None
                with self._told(level.path or "/"):  # what ends the list of a folder ends it for us
                    one = next(level.entries, None)
                if one is None:
                    self._finish(levels.pop())
                elif isinstance(one, Unreadable):
                    self._problem(_below(level, one.name), str(one.error))
                else:
                    with self._told(_below(level, one.name)):
                        self._one(level, one, one.name, levels)
                self._report(self.copied)
        finally:
            for level in levels:
                self._close(level)

    def _one(self, level: _Level, entry: Entry, name: str, levels: list[_Level]) -> None:
        """An entry of a folder; a folder is put on top of the levels."""
        raw = name_bytes(name)
        if entry.kind is Kind.FOLDER:
            levels.append(self._begun(level, entry, name, raw))
        elif entry.kind is Kind.FILE:
            with self._passing(entry):
                self._file(level, entry, raw)
        elif entry.kind is Kind.LINK:
            level.target.link(raw, (entry.target or "").encode("utf-8", "surrogateescape"))
            self._attributes.link(level.target.descriptor, raw, entry)
            self.copied.links += 1
        else:
            raise GuestUnsupported(f"a {entry.kind}, which has no content; left out")
        self._streams(level, entry, name)

    def _begun(self, level: _Level, entry: Entry, name: str, raw: bytes) -> _Level:
        if entry.identity in self._entered:
            raise GuestDamaged("this folder has been found under another name already; not entered")
        if len(level.names) >= DEEPEST:
            raise GuestUnsupported(f"more than {DEEPEST} folders within folders")
        self._entered.add(entry.identity)
        folder, made = level.target.folder(raw)
        self.copied.folders += 1
        return _Level(_below(level, name), entry, folder, (*level.names, raw), self._system.entries(entry), made)

    def _finish(self, level: _Level) -> None:
        """A folder's own attributes, when nothing is put into it any more; one that was here before keeps its own."""
        with self._told(level.path or "/"):
            if level.made:
                self._attributes.opened(level.target.descriptor, level.entry, self._system.attributes(level.entry))
        self._close(level)

    def _close(self, level: _Level) -> None:
        if level.target is not self._target:
            level.target.close()

    def _file(self, level: _Level, entry: Entry, raw: bytes) -> None:
        if entry.links > 1 and (first := self._first.get(entry.identity)) is not None and self._second_name(level, raw, *first):
            self.copied.files += 1
            return
        with level.target.file(raw) as new:
            self._content(entry, "", new)
            self._attributes.opened(new.descriptor, entry, self._system.attributes(entry))
            new.complete()
        self.copied.files += 1
        if entry.links > 1:
            self._first[entry.identity] = (level.names, raw)

    def _second_name(self, level: _Level, raw: bytes, names: tuple[bytes, ...], first: bytes) -> bool:
        """Whether the file system here takes one."""
        folder = self._target.within(names)
        try:
            level.target.second_name(raw, folder, first)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            return False
        finally:
            folder.close()
        return True

    def _streams(self, level: _Level, entry: Entry, name: str) -> None:
        for stream in self._system.streams(entry):
            beside = f"{name}:{stream.name}"
            with self._told(_below(level, beside)), level.target.file(name_bytes(beside)) as new:
                self._content(entry, stream.name, new)
                self._attributes.opened(new.descriptor, entry, {})
                new.complete()
                self.copied.files += 1

    def _content(self, entry: Entry, stream: str, new: NewFile) -> None:
        content = self._system.open(entry, stream)
        if content.size > _LARGEST:
            raise GuestLimit(f"a size of {content.size} bytes")
        os.ftruncate(new.descriptor, content.size)
        for run in content.runs():
            if run.zero:
                continue
            for at in range(run.start, run.end, CHUNK):
                piece = content.read(at, min(CHUNK, run.end - at))
                if os.pwrite(new.descriptor, piece, at) != len(piece):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.copied.bytes += len(piece)
                self.copied.passed = min(self.copied.passed + len(piece), self._to_pass)
                self._report(self.copied)

    @contextmanager
    def _passing(self, entry: Entry) -> Iterator[None]:
        """A file is passed with all its weight when it is done, whatever came of it."""
        self._to_pass = self.copied.passed + weight(entry)
        try:
            yield
        finally:
            self.copied.passed = self._to_pass

    def _problem(self, path: str, why: str) -> None:
        self.copied.problems.append((path, why))

    @contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """What is wrong with one entry is kept to be told."""
        try:
            yield
        except _OF_ONE as error:
            self._problem(path, str(error))
        except FileExistsError:
            self._problem(path, "it is here already; --overwrite replaces it")
        except UnicodeEncodeError:
            self._problem(path, "it leads to a name that cannot be written here")
        except OSError as error:
            if error.errno in _ENDING:
                raise OSError(error.errno, error.strerror, path) from error  # which of them: descriptors have no names
            self._problem(path, error.strerror or str(error))


def _below(level: _Level, name: str) -> str:
    return f"{level.path}/{name}" if level.path else name
