# SPDX-License-Identifier: AGPL-3.0-or-later
"""A recovery point, and the tombstone that can stand in its place: JSON documents (see `document.py` for the envelope).

Recovery point:

| field | type | meaning |
|---|---|---|
| kind | text | `point` |
| point | text | its id, equal to the object's name |
| vm | text | id of the VM, 32 hex digits |
| time_ns | whole | the instant it shows, nanoseconds since 1970 UTC |
| number | whole | 1 for a VM's first point, then the parent's + 1 |
| epoch | whole | of the capture that made it (`repository/epochs.py`); images given to `backup` have their parent's, or 1 |
| parent | object or null | `point` and `digest` (keyed BLAKE3 of the parent's JSON): the authenticated chain |
| asked, reached, why | text | consistency asked for and reached, and why not more; for `application` who said so |
| disks | object | by disk name: see `Disk` |
| journal | object or null | where in a journal it was made: see `JournalPosition`; null for what was read from images |
| files | object | configuration files by name: `size` and `root` of a block map like a disk's |
| mark | text or null | the name that a person gave it |
| common | flag | whether it was made at an instant that all VMs of its group make points of; absent: no |
| rolled_back | object | of the first point after a rollback: see `RolledBack`; absent: none |
| guest_clock | object | `guest_ns`: its clock, as its agent told it when the host's said `host_ns`; absent: not known |
| seconds | number | how long it took to make |
| program | text | version that wrote it |

Disk: `size` bytes, `root` (hex name of the block map's root node, null: all zeroes), `format` of the image it was read from,
`bytes_read`, `bytes_changed` (content of blocks that differ from the parent's), `bytes_stored` (compressed, new).

Journal position: `stream` (32 hex digits, names the segments), `sequence` (the number after the newest record that the point
shows), `disks` (their names in the order in which the records number them), `began_ns` (the instant of the stream's first
moment), `gap` (object or null: what was not captured before that, `from_ns` since when and `why`; null where no capture was
before), `clock` (text or null: the clock that stamped its records; across VMs, times of one clock are in write order),
`clock_steps` (the newest 32 times that the host's clock was set: `at_ns` the instant that the records have, `from_ns` what the
clock would have said then, `to_ns` what it said; absent: none). The last four are the stream's and stand in each of its points,
because any of them may be dropped.

Rolled back: the disks were set back to another moment, on purpose: `point` and `time_ns`, the point and the instant gone back
to, and `branch`, how many times the VM was set back by then: what was left so is called `VM~branch`. The point's parent, where
it was not dropped, is the last one of that (`repository/branches.py`).

Tombstone: `kind` `tombstone`, `point`, `fenced_ns`, `why`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import (
    Json,
    flag,
    hexbytes,
    mapping,
    objects,
    optional_hexbytes,
    optional_text,
    text,
    texts,
    whole,
)
from everywhen.formats.ids import CHUNK_NAME_SIZE, ChunkName, PointId, is_point_id

CONSISTENCIES = ("none", "crash", "filesystem", "application")
"""From least to most."""

_LONGEST_SECONDS = 1 << 40


@dataclass(frozen=True, slots=True)
class Tree:
    """`size` bytes named by the root of a block map; `root` None: nothing but zeroes."""

    size: int
    root: ChunkName | None

    def to_json(self) -> Json:
        return {"size": self.size, "root": self.root.hex() if self.root else None}

    @classmethod
    def from_json(cls, value: Json) -> Tree:
        root = optional_hexbytes(value, "root", CHUNK_NAME_SIZE)
        return cls(whole(value, "size"), ChunkName(root) if root else None)


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk in a recovery point; figures in bytes."""

    tree: Tree
    format: str
    bytes_read: int
    bytes_changed: int
    bytes_stored: int

    def to_json(self) -> Json:
        figures = {
            "bytes_read": self.bytes_read,
            "bytes_changed": self.bytes_changed,
            "bytes_stored": self.bytes_stored,
        }
        return {**self.tree.to_json(), "format": self.format, **figures}

    @classmethod
    def from_json(cls, value: Json) -> Disk:
        figures = (whole(value, key) for key in ("bytes_read", "bytes_changed", "bytes_stored"))
        return cls(Tree.from_json(value), text(value, "format"), *figures)


@dataclass(frozen=True, slots=True)
class ParentLink:
    """The point before, and the keyed hash of its document."""

    point: PointId
    digest: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """What was not captured: everything after `from_ns`, until the next moment; and why."""

    from_ns: int
    why: str


@dataclass(frozen=True, slots=True)
class GuestClock:
    """What a guest's clock said when the host's said `host_ns`; both in nanoseconds since 1970."""

    host_ns: int
    guest_ns: int

    @property
    def ahead_ns(self) -> int:
        """By how much the guest's was ahead."""
        return self.guest_ns - self.host_ns

    def to_json(self) -> Json:
        return {"host_ns": self.host_ns, "guest_ns": self.guest_ns}

    @classmethod
    def from_json(cls, value: Json) -> GuestClock:
        """Raises Corrupt."""
        return cls(whole(value, "host_ns"), whole(value, "guest_ns"))


@dataclass(frozen=True, slots=True, order=True)
class ClockStep:
    """A host's clock was set, at the recorded instant `at_ns`: from what it would have said to what it said; ns since 1970."""

    at_ns: int
    from_ns: int
    to_ns: int

    @property
    def by_ns(self) -> int:
        """By how much; negative where it was set back."""
        return self.to_ns - self.from_ns

    def to_json(self) -> Json:
        return {"at_ns": self.at_ns, "from_ns": self.from_ns, "to_ns": self.to_ns}

    @classmethod
    def from_json(cls, value: Json) -> ClockStep:
        """Raises Corrupt."""
        return cls(whole(value, "at_ns"), whole(value, "from_ns"), whole(value, "to_ns"))


@dataclass(frozen=True, slots=True)
class RolledBack:
    """That the disks were set back to what they were at `time_ns`: to `point`, or to that with the journal's records after it.

    `branch`: how many times the VM was set back by then, from 1.
    """

    point: PointId
    time_ns: int
    branch: int

    def to_json(self) -> Json:
        return {"point": self.point, "time_ns": self.time_ns, "branch": self.branch}

    @classmethod
    def from_json(cls, value: Json) -> RolledBack:
        """Raises Corrupt."""
        return cls(_point_id(value), whole(value, "time_ns"), whole(value, "branch"))


@dataclass(frozen=True, slots=True)
class JournalPosition:
    """Where in a journal a point was made: from there on the journal's records lie over it.

    `began_ns`: the stream's first moment; `gap`: what was not captured before that; `clock`: what stamped it, where that is
    one that VMs of a host share; `clock_steps`: when the host's was set.
    """

    stream: str
    sequence: int
    disks: tuple[str, ...]
    began_ns: int = 0
    gap: Gap | None = None
    clock: str | None = None
    clock_steps: tuple[ClockStep, ...] = ()

    def to_json(self) -> Json:
        gap = {"from_ns": self.gap.from_ns, "why": self.gap.why} if self.gap else None
        place = {"stream": self.stream, "sequence": self.sequence, "disks": list(self.disks)}
        steps = {"clock_steps": [step.to_json() for step in self.clock_steps]} if self.clock_steps else {}
        return {**place, "began_ns": self.began_ns, "gap": gap, "clock": self.clock, **steps}

    @classmethod
    def from_json(cls, value: Json) -> JournalPosition:
        place = (hexbytes(value, "stream", 16).hex(), whole(value, "sequence"), tuple(texts(value, "disks")))
        gap = None if value.get("gap") is None else mapping(value, "gap")
        before = Gap(whole(gap, "from_ns"), text(gap, "why")) if gap else None
        steps = tuple(ClockStep.from_json(step) for step in objects(value, "clock_steps"))
        return cls(*place, whole(value, "began_ns", 0), before, optional_text(value, "clock"), steps)


@dataclass(frozen=True, slots=True)
class RecoveryPoint:
    """The sealed state of all disks of a VM, and its configuration, at one instant."""

    point: PointId
    vm: str
    time_ns: int
    number: int
    epoch: int
    parent: ParentLink | None
    asked: str
    reached: str
    why: str
    disks: dict[str, Disk]
    files: dict[str, Tree] = field(default_factory=dict)
    mark: str | None = None
    seconds: float = 0.0
    program: str = ""
    journal: JournalPosition | None = None
    common: bool = False
    guest_clock: GuestClock | None = None
    rolled_back: RolledBack | None = None

    def trees(self) -> list[Tree]:
        """All block maps that this point needs."""
        return [disk.tree for disk in self.disks.values()] + list(self.files.values())

    def to_json(self) -> Json:
        parent = {"point": self.parent.point, "digest": self.parent.digest.hex()} if self.parent else None
        plain: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "point",
                "vm",
                "time_ns",
                "number",
                "epoch",
                "asked",
                "reached",
                "why",
                "mark",
                "seconds",
                "program",
                "common",
            )
        }
        disks = {name: disk.to_json() for name, disk in self.disks.items()}
        files = {name: tree.to_json() for name, tree in self.files.items()}
        journal = self.journal.to_json() if self.journal else None
        clock = {"guest_clock": self.guest_clock.to_json()} if self.guest_clock else {}
        back = {"rolled_back": self.rolled_back.to_json()} if self.rolled_back else {}
        trees = {"disks": disks, "files": files}
        return {"kind": "point", **plain, "parent": parent, **trees, "journal": journal, **clock, **back}

    @classmethod
    def from_json(cls, value: Json) -> RecoveryPoint:
        """Raises Corrupt."""
        link = value.get("parent")
        if link is not None and not isinstance(link, dict):
            raise Corrupt("field 'parent' is not an object")
        parent = ParentLink(_point_id(link), hexbytes(link, "digest", 32)) if link else None
        asked, reached = text(value, "asked"), text(value, "reached")
        if asked not in CONSISTENCIES or reached not in CONSISTENCIES:
            raise Corrupt(f"consistency {asked!r}, {reached!r}")
        seconds = value.get("seconds", 0.0)
        # Written so that NaN, which compares with nothing, is refused too.
        if not isinstance(seconds, int | float) or not 0 <= seconds <= _LONGEST_SECONDS:
            raise Corrupt(f"field 'seconds' is not a number from 0 to {_LONGEST_SECONDS}")
        journal = value.get("journal")
        if journal is not None and not isinstance(journal, dict):
            raise Corrupt("field 'journal' is not an object")
        return cls(
            point=_point_id(value),
            vm=text(value, "vm"),
            time_ns=whole(value, "time_ns"),
            number=whole(value, "number"),
            epoch=whole(value, "epoch"),
            parent=parent,
            asked=asked,
            reached=reached,
            why=text(value, "why", ""),
            disks={name: Disk.from_json(mapping(mapping(value, "disks"), name)) for name in mapping(value, "disks")},
            files={name: Tree.from_json(mapping(mapping(value, "files"), name)) for name in mapping(value, "files")},
            mark=optional_text(value, "mark"),
            seconds=float(seconds),
            program=text(value, "program", ""),
            journal=JournalPosition.from_json(journal) if journal else None,
            common=flag(value, "common", False),
            guest_clock=GuestClock.from_json(mapping(value, "guest_clock")) if "guest_clock" in value else None,
            rolled_back=RolledBack.from_json(mapping(value, "rolled_back")) if "rolled_back" in value else None,
        )


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Stands where a point's object would be: its writer was fenced, or the point was deleted while a session stood."""

    point: PointId
    fenced_ns: int
    why: str

    def to_json(self) -> Json:
        return {"kind": "tombstone", "point": self.point, "fenced_ns": self.fenced_ns, "why": self.why}


def decode_point(value: Json) -> RecoveryPoint | Tombstone:
    """What stands under a point's name. Raises Corrupt."""
    kind = text(value, "kind")
    if kind == "tombstone":
        return Tombstone(_point_id(value), whole(value, "fenced_ns"), text(value, "why", ""))
    if kind != "point":
        raise Corrupt(f"a document of kind {kind!r} where a point was expected")
    return RecoveryPoint.from_json(value)


def _point_id(value: Json) -> PointId:
    word = text(value, "point")
    if not is_point_id(word):
        raise Corrupt(f"{word!r} is not a point id")
    return PointId(word)
