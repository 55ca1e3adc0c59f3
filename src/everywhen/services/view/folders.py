# SPDX-License-Identifier: AGPL-3.0-or-later
"""All moments of all VMs as one tree of folders, which FUSE and WebDAV show:

    VM/@2026-11-21_10.32.05Z/disk/vda.raw           what is in the folder of a moment: `moment_folder.py`
    VM/@2026-11-21_10.32.05Z/files/etc/passwd
    VM~1/@2026-11-21_10.32.05Z/...                  what was left when the VM was rolled back

A VM's folder lists its recovery points (`names.py`) and `@latest`; whatever else may follow the @ of an address can be asked
for. It is a link to the folder of the moment that it means just now: who has gone into that folder stays in that moment,
however much later `@-10m` has become. Disks do not share one name `disk.raw`, since a VM may have several.

Who shows it asks `look_up` what is at a path, `names` what is in a folder, `open` and `attributes`. No path has links on its
way: the kernel follows them by itself; who has no kernel for that joins a `Link`'s target to the folder of the link. All
raise NotFound and WrongUsage for what is not there, else anything that `as_failure` (services/translation.py) knows: that is
an error of that path alone. A moment is opened when something in it is asked for, and held while a file of it is open and a
minute after. Somebody has to call `held.tidy` every few seconds, and `close` before the `OpenMoments` are closed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import tzinfo

from everywhen.formats.point import RecoveryPoint
from everywhen.repository.branches import rollbacks
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.addresses import Address, branch_name, split_branch
from everywhen.services.catalog import Catalog
from everywhen.services.failures import NotFound
from everywhen.services.opening import OpenedMoment, open_moment
from everywhen.services.view.guest_folder import Say
from everywhen.services.view.held import HeldMoment, HeldMoments
from everywhen.services.view.moment_folder import INSIDE, MomentFolder
from everywhen.services.view.moments import OpenMoments
from everywhen.services.view.names import LATEST, listed_names, name_of_instant, name_of_point
from everywhen.services.view.nodes import Folder, Link, Node, OpenFile

FRESH_S = 2.0
"""What there is, and what a name means that is not a moment's own, is looked for anew after so many seconds."""
_MOST_MEANINGS = 10_000


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What a name that was typed leads to, and until when (of the monotonic clock) that need not be asked again."""

    name: str
    time_ns: int
    until: float


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What there is, until (of the monotonic clock) it is looked for again; `listed`: names of points, by VM."""

    catalog: Catalog
    listed: dict[str, dict[str, RecoveryPoint]]
    until: float


class Folders:
    """The tree of one repository. Paths are relative to its root, with `/`. Safe to use from several threads."""

    def __init__(
        self,
        repository: Repository,
        moments: OpenMoments,
        *,
        zone: tzinfo,
        monotonic: Callable[[], float],
        before: Callable[[str], None],
        say: Say,
    ) -> None:
        """Times without a zone are the `zone`'s. `before`: called with a VM's name before its newest moments are looked for;
        `say`: told, a line each (names from guests as they are), what is not as it should be and yet no error."""
        self.held = HeldMoments(moments, monotonic, say)
        self._say = say
        self._repository = repository
        self._moments = moments
        self._zone = zone
        self._monotonic = monotonic
        self._before = before
        self._snapshot: _Snapshot | None = None
        self._meanings: dict[tuple[str, str], _Meaning] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Nothing is asked any more."""
        self.held.close()

    def look_up(self, path: str) -> Node:
        """What is there. Raises NotFound, WrongUsage (no such thing), Damaged, StorageError, FormatError."""
        match _parts(path):
            case []:
                return Folder(max((point.time_ns for point in self._known().catalog.points), default=0))
            case [vm]:
                return Folder(max((point.time_ns for point in self._catalog(vm).points_of(self._vm(vm))), default=0))
            case [vm, name]:
                return self._moment(vm, name)
            case [vm, name, *inner]:
                with self._using(vm, name) as held:
                    return self._folder(held).look_up(tuple(inner))
        raise _nothing(path)

    def names(self, path: str) -> list[str]:
        """What is in a folder. Raises as `look_up`."""
        match _parts(path):
            case []:
                return self._vms()
            case [vm]:
                listed = self._points(vm)
                return [*listed, LATEST] if listed else []
            case [vm, name]:
                self._moment(vm, name)
                return list(INSIDE)  # without opening it: who lists a thousand may want none
            case [vm, name, *inner]:
                with self._using(vm, name) as held:
                    return self._folder(held).names(tuple(inner))
        raise _nothing(path)

    def open(self, path: str) -> OpenFile:
        """A file, to read it. Raises as `look_up`; WrongKind for what has no content."""
        match _parts(path):
            case [vm, name, *inner] if inner:
                held = self.held.take(vm, name, lambda: self._address(vm, name))
            case _:
                raise _nothing(path)
        try:
            return OpenFile(*self._folder(held).open(tuple(inner)), lambda: self.held.give_back(held))
        except BaseException:
            self.held.give_back(held)
            raise

    def attributes(self, path: str) -> dict[str, bytes]:
        """Extended attributes, by full name (`user.comment`). Raises as `look_up`."""
        match _parts(path):
            case [vm, name, *inner] if inner:
                with self._using(vm, name) as held:
                    return self._folder(held).attributes(tuple(inner))
        return {}

    def _using(self, vm: str, name: str) -> AbstractContextManager[HeldMoment]:
        return self.held.using(vm, name, lambda: self._address(vm, name))

    def _folder(self, held: HeldMoment) -> MomentFolder:
        return MomentFolder(held, self._say, self._zone)

    def _known(self) -> _Snapshot:
        """What there is."""
        with self._lock:
            if self._snapshot is None or self._monotonic() >= self._snapshot.until:
                self._snapshot = _Snapshot(self._moments.catalog(), {}, self._monotonic() + FRESH_S)
            return self._snapshot

    def _vm(self, name: str) -> Vm:
        """The VM of that name of ours. Raises NotFound."""
        wanted = split_branch(name)[0]
        found = next((vm for vm in self._known().catalog.vms if vm.name == wanted), None)
        if found is None:
            raise _nothing(name)
        return found

    def _vms(self) -> list[str]:
        """Names of VMs, and of what their rollbacks left."""
        catalog = self._known().catalog
        branches = {vm.name: sorted(rollbacks(catalog.points_of(vm))) for vm in catalog.vms}
        return [name for vm, numbers in branches.items() for name in (vm, *(branch_name(vm, one) for one in numbers))]

    def _catalog(self, vm: str) -> Catalog:
        """What there is of a VM, or of a branch of it. Raises NotFound."""
        return self._known().catalog.on_branch(self._vm(vm), split_branch(vm)[1])

    def _points(self, vm: str) -> dict[str, RecoveryPoint]:
        """The points of a VM's history by the names of their folders. Raises NotFound."""
        known = self._known()
        if vm not in known.listed:  # with a thousand points it takes 2 ms, and each of them is asked for
            known.listed[vm] = listed_names(self._catalog(vm).history_of(self._vm(vm)))
        return known.listed[vm]

    def _moment(self, vm: str, name: str) -> Folder | Link:
        """The folder of a moment, or what leads to one. Raises as `look_up`."""
        if (held := self.held.is_open(vm, name)) is not None:
            return Folder(held.time_ns)
        point = self._listed(vm, name)
        if point is not None:
            return Folder(point.time_ns)
        meaning = self._meaning(vm, name)
        return Folder(meaning.time_ns) if meaning.name == name else Link(meaning.name, meaning.time_ns)

    def _listed(self, vm: str, name: str) -> RecoveryPoint | None:
        """The point whose own name this is. Raises NotFound for what is no name of a moment at all."""
        if not name.startswith("@") or name == "@":
            raise _nothing(f"{vm}/{name}")
        return self._points(vm).get(name)

    def _address(self, vm: str, name: str) -> Address:
        """What has to be opened for the folder of a moment. Raises NotFound."""
        point = self._listed(vm, name)
        return _address(vm, name[1:] if point is None else point.point)

    def _meaning(self, vm: str, name: str) -> _Meaning:
        """Which moment's own name stands for what somebody typed. Raises as `look_up`."""
        now = self._monotonic()
        with self._lock:
            known = self._meanings.get((vm, name))
        if known is not None and now < known.until:
            return known
        opened = self._resolved(vm, name)
        found = _Meaning(self._own_name(vm, name, opened), opened.found.moment.time_ns, now + FRESH_S)
        with self._lock:
            if len(self._meanings) >= _MOST_MEANINGS:
                self._meanings = {key: one for key, one in self._meanings.items() if now < one.until}
            self._meanings[vm, name] = found
        return found

    def _own_name(self, vm: str, typed: str, opened: OpenedMoment) -> str:
        """The name that leads to this moment and to no other; what was typed where there is none."""
        listed = self._points(vm)
        if not opened.found.writes_after:
            return name_of_point(opened.point, listed)
        own = name_of_instant(opened)
        candidates = [f"{own}~0" if own in listed else own]
        base, back, writes = typed.rpartition("~")
        if back:  # one of several writes of an instant: so many before a moment that has a name
            later = self._resolved(vm, base)
            named = name_of_instant(later) if later.found.writes_after else f"@{later.point.point}"
            candidates.append(f"{named}~{writes}")
        return next((name for name in candidates if self._resolved(vm, name).label == opened.label), typed)

    def _resolved(self, vm: str, name: str) -> OpenedMoment:
        """What a name means just now. Raises as `look_up`."""
        self._before(split_branch(vm)[0])
        address = _address(vm, name[1:])
        now_ns = self._repository.surroundings.clock()
        catalog = self._known().catalog
        return open_moment(self._repository, catalog, address, now_ns=now_ns, zone=self._zone, exact=False, contents=False)[1]


def _address(vm: str, when: str) -> Address:
    name, branch = split_branch(vm)
    return Address(name, None, when, branch=branch)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _nothing(path: str) -> NotFound:
    return NotFound(f"There is no {path}.", on=path)
