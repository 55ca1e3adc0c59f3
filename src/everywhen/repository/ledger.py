# SPDX-License-Identifier: AGPL-3.0-or-later
"""What people and policies decided about points: drops, what was taken back of them, holds; and which VMs there are. All
are documents, kept where the data is, since nothing else tells them (I-10).

`drops/<id>`: `points` dropped together, `dropped_ns`, `effective_ns` (gc may delete them from then on; until then
undoing the drop brings them back), `why`, `by`. A drop stays after its points are deleted: it explains to `verify` why
a parent in the chain is missing.
`undone/<id>`: `drop`, `points` of it that are moments again, `undone_ns`, `by`. Taking back adds up: nobody rewrites what
somebody else may be rewriting. It stays as long as its drop.
`holds/<id>`: `point`, `reason`, `until_ns` (0: no end), `by`.
`vms/<id>`: `name` (ours), `source` (the hypervisor's name), `uuid` (the hypervisor's, may be ''), `policy` (may be ''), `group`
(of VMs that only make sense together; '' or absent: none).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from everywhen.formats.errors import FormatError
from everywhen.formats.fields import Json, text, texts, whole
from everywhen.repository.documents import Documents
from everywhen.repository.errors import Damaged
from everywhen.repository.space import with_reserve
from everywhen.storage.base import ObjectNotFound

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Drop:
    """Moments dropped by one run of prune, or by a person."""

    drop: str
    points: list[str]
    dropped_ns: int
    effective_ns: int
    why: str
    by: str

    def to_json(self) -> Json:
        times = {"dropped_ns": self.dropped_ns, "effective_ns": self.effective_ns}
        return {"kind": "drop", "points": self.points, **times, "why": self.why, "by": self.by}

    @classmethod
    def from_json(cls, name: str, value: Json) -> Drop:
        times = (whole(value, "dropped_ns"), whole(value, "effective_ns"))
        return cls(name, texts(value, "points"), *times, text(value, "why"), text(value, "by"))


@dataclass(frozen=True, slots=True)
class Undone:
    """Moments of one drop that were taken back together."""

    undone: str
    drop: str
    points: list[str]
    undone_ns: int
    by: str

    def to_json(self) -> Json:
        return {"kind": "undone", "drop": self.drop, "points": self.points, "undone_ns": self.undone_ns, "by": self.by}

    @classmethod
    def from_json(cls, name: str, value: Json) -> Undone:
        return cls(name, text(value, "drop"), texts(value, "points"), whole(value, "undone_ns"), text(value, "by"))


@dataclass(frozen=True, slots=True)
class Hold:
    """A point that must stay; `until_ns` 0: until released."""

    hold: str
    point: str
    reason: str
    until_ns: int
    by: str

    def to_json(self) -> Json:
        return {"kind": "hold", "point": self.point, "reason": self.reason, "until_ns": self.until_ns, "by": self.by}

    @classmethod
    def from_json(cls, name: str, value: Json) -> Hold:
        return cls(name, text(value, "point"), text(value, "reason"), whole(value, "until_ns"), text(value, "by"))

    def active(self, now_ns: int) -> bool:
        """Whether it still holds."""
        return not self.until_ns or now_ns < self.until_ns


@dataclass(frozen=True, slots=True)
class Vm:
    """A protected machine: an identity of ours, whatever the hypervisor calls it."""

    vm: str
    name: str
    source: str
    uuid: str
    policy: str
    created_ns: int
    group: str = ""

    def to_json(self) -> Json:
        names = {"name": self.name, "source": self.source, "uuid": self.uuid}
        return {"kind": "vm", **names, "policy": self.policy, "created_ns": self.created_ns, "group": self.group}

    @classmethod
    def from_json(cls, name: str, value: Json) -> Vm:
        names = (text(value, "name"), text(value, "source"), text(value, "uuid"))
        return cls(name, *names, text(value, "policy"), whole(value, "created_ns"), text(value, "group", ""))


def in_force(drops: Iterable[Drop], undone: Iterable[Undone]) -> list[Drop]:
    """The drops with the points that were not taken back; none that has no points left."""
    back: dict[str, set[str]] = {}
    for one in undone:
        back.setdefault(one.drop, set()).update(one.points)
    left = [replace(drop, points=[p for p in drop.points if p not in back.get(drop.drop, ())]) for drop in drops]
    return [drop for drop in left if drop.points]


class Ledger:
    """Reads and writes drops, what was taken back of them, holds and VMs of one repository.

    What deletes must not do so while a decision cannot be read: it raises Damaged. For who only reads there is `unreadable`: a
    list that gets a sentence for each document that cannot be read, and the document is left out (rule 4.9.6).
    """

    def __init__(self, documents: Documents, unreadable: list[str] | None = None) -> None:
        self._documents = documents
        self._unreadable = unreadable

    def drops(self) -> list[Drop]:
        """All drops, without what was taken back. Raises Damaged."""
        drops = self.all_drops()
        before = len(self._unreadable or ())
        undone = self._all("undone/", Undone.from_json)
        if len(self._unreadable or ()) > before:
            return []  # what it took back is not known: rather a dropped moment too many than one too few
        return in_force(drops, undone)

    def all_drops(self) -> list[Drop]:
        """All drops as they were written. Raises Damaged."""
        return self._all("drops/", Drop.from_json)

    def holds(self) -> list[Hold]:
        """All holds, ended ones too. Raises Damaged."""
        return self._all("holds/", Hold.from_json)

    def vms(self) -> list[Vm]:
        """All VMs, by name. Raises Damaged."""
        return sorted(self._all("vms/", Vm.from_json), key=lambda vm: (vm.name, vm.created_ns, vm.vm))

    def current(self, vm: Vm) -> Vm:
        """The record of this VM as it is now; `vm` itself where there is none. Raises Damaged."""
        return self._read("vms/", vm.vm, Vm.from_json) or vm

    def put_drop(self, drop: Drop) -> None:
        """Drop moments, or say anew when a drop takes effect."""
        self._put("drops/" + drop.drop, drop.to_json())

    def put_hold(self, hold: Hold) -> None:
        """Hold a moment."""
        self._put("holds/" + hold.hold, hold.to_json())

    def put_vm(self, vm: Vm) -> None:
        """Create or change a VM's record."""
        self._put("vms/" + vm.vm, vm.to_json())

    def put_undone(self, undone: Undone) -> None:
        """Take points out of a drop, so that they are moments again (only before gc deleted them)."""
        self._put("undone/" + undone.undone, undone.to_json())

    def release(self, hold: Hold) -> None:
        """End a hold."""
        self._documents.delete("holds/" + hold.hold)

    def _put(self, name: str, value: Json) -> None:
        """At the expense of the reserve where there is no room: a full disk is when people decide what stays and what goes.

        Never if absent: ids are random, and a first try may have failed at the twin only.
        """
        with_reserve(self._documents.store, lambda: self._documents.put(name, value))

    def _all(self, prefix: str, decode: Callable[[str, Json], T]) -> list[T]:
        found = (self._read(prefix, name, decode) for name in self._documents.names(prefix))
        return [value for value in found if value is not None]

    def _read(self, prefix: str, name: str, decode: Callable[[str, Json], T]) -> T | None:
        try:
            return decode(name, self._documents.get(prefix + name))
        except ObjectNotFound:
            return None  # removed since it was listed
        except FormatError as error:
            why = f"{prefix}{name} cannot be read: {error}"
            if self._unreadable is None:
                raise Damaged(f"{why}. What it says is not known, so nothing was done") from error
            self._unreadable.append(why)
            return None
