# SPDX-License-Identifier: AGPL-3.0-or-later
"""A rollback that is under way, so that the same command goes on wherever it was killed: `rollback.json` in the VM's folder of
this host's state. Written as a whole before each step that it tells of, durable on return.

| field | type | meaning |
|---|---|---|
| asked | texts | the moments that the command named: by them it knows itself again |
| vm, repository | text | ids, as hex digits |
| branch | whole | the number for what is left |
| point, sequence | text, whole or null | the moment: the journal's records before `sequence` over a point (null: point alone) |
| time_ns | whole | when that was |
| disks | object | by disk that is set back: `path` and `format` of its image |
| others | texts | disks that stay as they are |
| ran | flag | whether the VM ran, and is to be started again |
| configured | flag | whether its definition is to be that of the moment, too |
| step | text | what has been done: see `Step` |
| undo | flag | whether the present is written back instead |
| present | text or null | the point of what the disks held last |
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from everywhen.block.target_descriptor import OPEN_FLAGS, Descriptor, sync_folder
from everywhen.capture.stored_disk import StoredDisk
from everywhen.formats.errors import Corrupt, FormatError
from everywhen.formats.fields import Json, flag, mapping, optional_text, parse_json, text, texts, whole
from everywhen.formats.ids import PointId, is_point_id
from everywhen.repository.index.process_lock import try_lock
from everywhen.services.failures import Busy, Damage

_NAME = "rollback.json"
_LOCK = "rollback.lock"


class Step(StrEnum):
    """What of a rollback has been done, in this order."""

    BEGUN = "begun"
    PRESENT = "present"
    """The VM is off, and `present` has what its disks hold."""
    MARKED = "marked"
    """From here on the disks may be a mixture of two moments."""
    WRITTEN = "written"
    COMMITTED = "committed"
    """The point is there that says it."""
    UNMARKED = "unmarked"
    STARTED = "started"


_ORDER = list(Step)


@dataclass(frozen=True, slots=True)
class Goal:
    """The moment gone back to: a point, with the journal's records up to before `sequence` over it (None: none)."""

    point: PointId
    sequence: int | None
    time_ns: int


@dataclass(frozen=True, slots=True)
class Record:
    """One VM's."""

    asked: tuple[str, ...]
    vm: str
    repository: str
    branch: int
    goal: Goal
    disks: dict[str, StoredDisk]
    others: tuple[str, ...]
    ran: bool
    configured: bool = False
    step: Step = Step.BEGUN
    undo: bool = False
    present: PointId | None = None

    def has(self, step: Step) -> bool:
        """Whether that has been done."""
        return _ORDER.index(self.step) >= _ORDER.index(step)

    @property
    def command(self) -> str:
        """What goes on with it."""
        return f"everywhen rollback {' '.join(self.asked)}"

    def to_json(self) -> Json:
        goal = {"point": self.goal.point, "sequence": self.goal.sequence, "time_ns": self.goal.time_ns}
        return {
            "asked": list(self.asked),
            "vm": self.vm,
            "repository": self.repository,
            "branch": self.branch,
            **goal,
            "disks": {name: {"path": disk.path, "format": disk.image_format} for name, disk in self.disks.items()},
            "others": list(self.others),
            "ran": self.ran,
            "configured": self.configured,
            "step": self.step.value,
            "undo": self.undo,
            "present": self.present,
        }

    @classmethod
    def from_json(cls, value: Json) -> Record:
        """Raises Corrupt."""
        sequence = None if value.get("sequence") is None else whole(value, "sequence")
        present = optional_text(value, "present")
        disks = mapping(value, "disks")
        step = text(value, "step")
        if step not in _ORDER:
            raise Corrupt(f"{step!r} is no step of a rollback")
        return cls(
            asked=tuple(texts(value, "asked")),
            vm=text(value, "vm"),
            repository=text(value, "repository"),
            branch=whole(value, "branch"),
            goal=Goal(_point(text(value, "point")), sequence, whole(value, "time_ns")),
            disks={
                name: StoredDisk(text(mapping(disks, name), "path"), text(mapping(disks, name), "format")) for name in disks
            },
            others=tuple(texts(value, "others")),
            ran=flag(value, "ran"),
            configured=flag(value, "configured"),
            step=Step(step),
            undo=flag(value, "undo"),
            present=None if present is None else _point(present),
        )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While the body runs, no other run on this host rolls back the VM with this folder. Raises Busy, OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | OPEN_FLAGS, 0o600)
    try:
        if not try_lock(descriptor):
            what = f"{folder.name} is being rolled back by another run on this host."
            raise Busy(what, on=folder.name, safe="Nothing was changed; that one goes on.")
        yield
    finally:
        os.close(descriptor)


def read_record(folder: Path) -> Record | None:
    """The one of the VM with this folder; None where no rollback is under way. Raises Damage, OSError."""
    place = folder / _NAME
    try:
        raw = place.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return Record.from_json(parse_json(str(place), raw))
    except FormatError as error:
        raise Damage(
            f"{place} says that a rollback of {folder.name} is under way, and cannot be read: {error}.",
            on=folder.name,
            safe="Nothing was done.",
            do=["Which disks are half written: everywhen doctor. When all are whole again, remove that file."],
        ) from error


def broken_off(state: Path) -> list[str]:
    """A sentence for each VM of this host whose rollback is not over. Raises OSError."""
    found = []
    for place in sorted(state.glob(f"*/{_NAME}")):
        try:
            record = read_record(place.parent)
        except (Damage, OSError) as error:
            found.append(str(error))
            continue
        if record is not None:
            undo = " --undo" if record.undo else ""
            found.append(f"a rollback of {place.parent.name} is under way, or was broken off; go on: {record.command}{undo}")
    return found


def write_record(folder: Path, record: Record) -> None:
    """Replace the older one as a whole. Raises OSError, TargetError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = str(folder / _NAME)
    new = f"{place}-new"
    file = Descriptor(new, os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | OPEN_FLAGS, 0o600))
    try:
        file.write(0, json.dumps(record.to_json(), ensure_ascii=False).encode())
        file.sync()
    finally:
        file.close()
    os.replace(new, place)
    sync_folder(str(folder))


def remove_record(folder: Path) -> None:
    """It is over. Raises OSError."""
    (folder / _NAME).unlink()
    sync_folder(str(folder))


def _point(word: str) -> PointId:
    if not is_point_id(word):
        raise Corrupt(f"{word!r} is not a point id")
    return PointId(word)
