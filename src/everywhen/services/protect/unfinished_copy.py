# SPDX-License-Identifier: AGPL-3.0-or-later
"""Copies of disks that ended before they were complete, and what it takes to go on with them (docs/capture.md, "Copies").

A bitmap of ours on each such disk records from before its first byte was read. So what was read once, and is not in the bitmap,
is what the disk still holds, however often the copy was interrupted. `copy.json` in the VM's folder on this host says how far
each has come; whoever finds no bitmap of its name on the disk has another disk, or another QEMU, and reads all of it.

| field | meaning |
|---|---|
| disks | by name: see below |

Disk: `since` (in the place of a point's id in the bitmap's name; a new one for each bitmap), `size` (bytes), `left` (pairs of
block numbers: what had not been looked at, the end not included), `kept` (object: by that the recipient finds what it took;
null: nothing is kept, and `left` means nothing).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from everywhen.capture import bitmaps
from everywhen.capture.nodes import DiskNode
from everywhen.capture.qmp import Monitor
from everywhen.formats.errors import Corrupt, FormatError
from everywhen.formats.fields import Json, canonical_json, mapping, parse_json, text, whole
from everywhen.formats.ids import PointId, Randomness, is_point_id, new_point_id
from everywhen.repository.intake import Ranges

_NAME = "copy.json"
_LONGEST = 64 << 20
_APART_S = 5.0
"""So much of a copy is read again at most: 250 MB at the usual pace. Each time the open packs are stored as they are."""


@dataclass(frozen=True, slots=True)
class DiskCopy:
    """A copy of one disk: how its bitmap is called, the disk's size in bytes, what is left, and what the recipient kept."""

    since: PointId
    size: int
    left: Ranges
    kept: Json | None

    def to_json(self) -> Json:
        return {"since": self.since, "size": self.size, "left": [list(one) for one in self.left], "kept": self.kept}

    @classmethod
    def from_json(cls, value: Json) -> DiskCopy:
        """Raises Corrupt."""
        since = text(value, "since")
        if not is_point_id(since):
            raise Corrupt(f"{since!r} names no bitmap of a copy")
        kept = None if value.get("kept") is None else mapping(value, "kept")
        return cls(PointId(since), whole(value, "size"), _ranges(value.get("left")), kept)


class UnfinishedCopies:
    """Those of one VM."""

    def __init__(self, folder: Path, randomness: Randomness) -> None:
        """`folder`: the VM's on this host. Raises OSError."""
        self._path = folder / _NAME
        self._randomness = randomness
        self._disks = self._read()

    def begin(self, monitor: Monitor, disks: Mapping[str, DiskNode]) -> None:
        """Copies of these disks begin, or go on where their bitmaps are there; no tap is attached yet.

        Raises OSError, MonitorError, CommandFailed.
        """
        found = {name: self._going_on(monitor, name, node) for name, node in disks.items()}
        self._disks = {name: one or self._new(disks[name].size) for name, one in found.items()}
        if not disks:
            self.forget()
            return
        # Before the bitmaps: with one that was begun later than what is kept was read, all of that would be believed.
        self._write()
        for name, one in found.items():
            if one is None:
                bitmaps.begin(monitor, {disks[name].node: name}, self._disks[name].since)

    def of(self, name: str) -> DiskCopy | None:
        """The copy of a disk; None where none was begun."""
        return self._disks.get(name)

    @property
    def kept(self) -> dict[str, Json]:
        """What the recipient kept, by disk."""
        return {name: one.kept for name, one in self._disks.items() if one.kept is not None}

    def keep(self, name: str, left: Ranges, kept: Json) -> None:
        """Remember how far a copy has come. Raises OSError."""
        before = self._disks[name]
        self._disks[name] = DiskCopy(before.since, before.size, left, kept)
        self._write()

    def leave(self, monitor: Monitor, disks: Mapping[str, DiskNode]) -> None:
        """Nobody copies now: bitmaps of copies of which nothing is kept go. Raises OSError, MonitorError, CommandFailed."""
        for name, one in list(self._disks.items()):
            recording = recorded(monitor, disks[name], name, one) if one.kept is None and name in disks else None
            if recording is not None:
                bitmaps.remove(monitor, disks[name].node, recording.name)
                del self._disks[name]
        if self.kept:
            self._write()
        else:
            self.forget()

    def forget(self) -> None:
        """All are complete. Raises OSError."""
        forget(self._path.parent)

    def _going_on(self, monitor: Monitor, name: str, node: DiskNode) -> DiskCopy | None:
        """The copy of a disk whose bitmap is there; one that is of another size is removed."""
        one = self._disks.get(name)
        recording = recorded(monitor, node, name, one)
        if one is None or recording is None or one.size == node.size:
            return one if recording is not None else None
        bitmaps.remove(monitor, node.node, recording.name)
        return None

    def _new(self, size: int) -> DiskCopy:
        return DiskCopy(new_point_id(self._randomness), size, [], None)

    def _read(self) -> dict[str, DiskCopy]:
        try:
            with self._path.open("rb") as file:
                disks = mapping(parse_json(_NAME, file.read(_LONGEST)), "disks")
            return {name: DiskCopy.from_json(mapping(disks, name)) for name in disks}
        except (FileNotFoundError, FormatError):
            return {}  # then all is read

    def _write(self) -> None:
        new = self._path.with_name(f"{_NAME}-new")
        new.write_bytes(canonical_json({"disks": {name: one.to_json() for name, one in self._disks.items()}}))
        os.replace(new, self._path)


class Keeping:
    """Remembers now and then how far the copy of one disk has come."""

    def __init__(self, put: Callable[[Ranges], None], monotonic: Callable[[], float]) -> None:
        """`put` makes durable what was taken, and remembers what is left; `monotonic`: seconds that never run backwards."""
        self._put = put
        self._monotonic = monotonic
        self._next = monotonic() + _APART_S

    @property
    def is_due(self) -> bool:
        """Whether that was last done so long ago that a copy has to rest for it."""
        return self._monotonic() >= self._next

    def keep(self, left: Ranges) -> None:
        """Do it. Raises StorageError, OSError."""
        self._put(left)
        self._next = self._monotonic() + _APART_S


def forget(folder: Path) -> None:
    """Of the VM of this folder nothing is gone on with: its bitmaps are gone. Raises OSError."""
    (folder / _NAME).unlink(missing_ok=True)


def is_kept(folder: Path) -> bool:
    """Whether something of a copy is, for the VM of this folder."""
    return (folder / _NAME).exists()


def recorded(monitor: Monitor, node: DiskNode, name: str, copy: DiskCopy | None) -> bitmaps.Recording | None:
    """The bitmap that has recorded since before the first byte of a copy was read. Raises MonitorError, CommandFailed."""
    found = bitmaps.recordings(monitor, node.node) if copy is not None else []
    return next((one for one in found if copy is not None and (one.point, one.disk) == (copy.since, name)), None)


def together(*many: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges of blocks as one list, sorted and disjoint."""
    merged: Ranges = []
    for first, end in sorted(one for ranges in many for one in ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged


def _ranges(value: object) -> Ranges:
    if not isinstance(value, list):
        raise Corrupt("field 'left' is not a list")
    found: Ranges = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(one) is int and one >= 0 for one in pair):
            raise Corrupt("field 'left' has what is no range of blocks")
        found.append((pair[0], pair[1]))
    return together(found)
