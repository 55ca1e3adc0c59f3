# SPDX-License-Identifier: AGPL-3.0-or-later
"""Groups of VMs that only make sense together: `group:NAME[@WHEN]`, who is in one, and the instant at which all can be opened.

Why all records up to one time, taken of each VM, belong together: docs/decisions/0005-groups.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from functools import partial

from everywhen.formats.point import RecoveryPoint
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.ages import SECOND
from everywhen.services.catalog import Catalog
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.naming import is_name
from everywhen.services.opening import open_at
from everywhen.services.spelling import nearest
from everywhen.services.times import Stretch, local_time, rfc3339, zone_label
from everywhen.services.whens import Latest, When, choose

PREFIX = "group:"
_SAID = 10 * SECOND
"""What was asked for and what there is differ by more than asking itself takes."""


def parse_group(text: str) -> tuple[str, str] | None:
    """Name and WHEN (usual: latest) of a group's address; None where `text` is none. Raises WrongUsage."""
    if not text.startswith(PREFIX):
        return None
    name, at, when = text.removeprefix(PREFIX).partition("@")
    if not is_name(name) or (at and not when.strip()):
        raise WrongUsage(f'"{text}" does not name a group: that looks like {PREFIX}erp or {PREFIX}erp@-10m.', on=text)
    return name, when if at else "latest"


def parse_group_alone(text: str) -> str | None:
    """Name of a group where no time can be told; None where `text` names none. Raises WrongUsage."""
    found = parse_group(text)
    if found is not None and "@" in text:
        raise WrongUsage(f"{PREFIX}{found[0]} stands here without a time.", on=text, safe="Nothing was done.")
    return found[0] if found else None


def members(catalog: Catalog, group: str) -> list[Vm]:
    """The VMs of a group, by name. Raises NotFound."""
    found = [vm for vm in catalog.vms if vm.group == group]
    if not found:
        close = nearest(group, sorted({vm.group for vm in catalog.vms if vm.group}))
        hint = f" Close: {close[0]}." if close else ""
        do = ["Put a VM into it: everywhen protect VM ... --group NAME"]
        raise NotFound(f'No VM is in a group "{group}" in {catalog.url}.{hint}', on=group, do=do)
    return found


def points_at(catalog: Catalog, vms: Sequence[Vm]) -> dict[int, dict[str, RecoveryPoint]]:
    """Instants of which at least two of these VMs have a recovery point: those points, by the names of their VMs."""
    found: dict[int, dict[str, RecoveryPoint]] = {}
    for vm in vms:
        for point in catalog.points_of(vm):
            found.setdefault(point.time_ns, {})[vm.name] = point
    return {time_ns: points for time_ns, points in found.items() if len(points) > 1}


@dataclass(frozen=True, slots=True)
class GroupMoment:
    """One instant of a group. `in_order`: one clock stamped the writes of all its VMs, and in their order; else it is the same
    time by the clocks of several hosts, or of one host before the VMs were in a group.

    `held_back`: the VMs of which nothing later is known, where later was asked for.
    """

    group: str
    vms: list[Vm]
    time_ns: int
    in_order: bool
    held_back: list[str]

    def words(self, zone: tzinfo) -> str:
        """The line that an answer begins with."""
        when = f"{local_time(self.time_ns, zone)} {zone_label(self.time_ns, zone)}"
        order = "in write order across them"
        how = f"one instant, {order}" if self.in_order else f"the same clock time, not {order}"
        later = f"; of {', '.join(self.held_back)} nothing later is known" if self.held_back else ""
        return f"group {self.group} at {when}: {', '.join(vm.name for vm in self.vms)} ({how}{later})"


def find_instant(repository: Repository, catalog: Catalog, group: str, when: When, *, now_ns: int, zone: tzinfo) -> GroupMoment:
    """The newest instant that `when` allows, and at which each VM of the group can be opened for sure.

    Raises NotFound (there is none), WrongUsage (several are meant), Damaged, StorageError.
    """
    vms = members(catalog, group)
    if when.writes_back:
        raise WrongUsage(f"{when.written}: single writes are counted in one VM, not in a group.", on=group)
    clocks: dict[str, str | None] = {}

    def stands(vm: Vm, at_ns: int) -> int:
        at_ns = _before_gap(catalog.history_of(vm), at_ns)
        opened = open_at(repository, catalog, vm, at_ns, zone=zone)
        clocks[vm.name] = opened.point.journal.clock if opened.point.journal else None
        return at_ns if opened.found.exact else opened.stands_ns

    asked = _asked(catalog, group, vms, when, now_ns=now_ns, zone=zone)
    try:
        found, held_back = common_instant({vm.name: partial(stands, vm) for vm in vms}, asked.latest_ns)
    except NotFound as error:
        raise NotFound(
            f"Group {group} has no instant at or before {when.written} at which all its VMs can be opened: {error.what}",
            on=group,
            safe="Nothing was written.",
            do=["Each VM alone: everywhen restore VM@WHEN --to PATH", "everywhen points VM"],
        ) from error
    if found < asked.earliest_ns and not isinstance(when.target, Latest | Stretch):
        raise not_exact(group, when, found, held_back)
    if asked.latest_ns - found < _SAID:
        held_back = []
    return GroupMoment(group, vms, found, len(set(clocks.values())) == 1 and None not in clocks.values(), held_back)


def not_exact(group: str, when: When, found_ns: int, held_back: Sequence[str]) -> NotFound:
    """That not all VMs of a group can be opened at exactly that time."""
    why = f" Of {', '.join(held_back)} nothing is known for sure then." if held_back else ""
    return NotFound(
        f"Not all VMs of group {group} can be opened at exactly {when.written}.{why}",
        on=group,
        safe="Nothing was written.",
        do=[f"The latest before: {PREFIX}{group}@{rfc3339(found_ns)}"],
    )


def common_instant(stands: Mapping[str, Callable[[int], int]], asked_ns: int) -> tuple[int, list[str]]:
    """The newest instant, not after the one asked for, at which all stand; and who made it earlier.

    `stands`, by name: the newest instant, not after the one it is asked for, at which that one can be opened for sure. Raises
    what they do, where there is none.
    """
    held_back: list[str] = []
    while True:
        known = {name: stand(asked_ns) for name, stand in stands.items()}
        earliest = min(known.values())
        if earliest == asked_ns:
            return earliest, held_back
        asked_ns, held_back = earliest, [name for name, one in known.items() if one == earliest]


def _asked(catalog: Catalog, group: str, vms: Sequence[Vm], when: When, *, now_ns: int, zone: tzinfo) -> Stretch:
    """What `when` allows. Raises NotFound, WrongUsage."""
    match when.target:
        case Stretch() as stretch:
            return stretch
        case Latest():
            newest = [point.time_ns for vm in vms if (point := catalog.newest(vm)) is not None]
            return Stretch(0, max([now_ns, *newest]))
    times: dict[int, str] = {}
    missing: NotFound | None = None
    for vm in vms:
        try:
            found = choose(vm.name, when, catalog.moments_for(vm, when), zone=zone)
        except NotFound as error:
            missing = error
        else:
            times.setdefault(found.moment.time_ns, found.moment.id)
    if len(times) == 1:
        (time_ns,) = times
        return Stretch(time_ns, time_ns)
    if times:
        do = [f"Say {PREFIX}{group}@{point} ({local_time(time_ns, zone)})." for time_ns, point in sorted(times.items())]
        raise WrongUsage(f"{when.written} fits {len(times)} instants of group {group}.", on=group, do=do)
    raise NotFound(f"No VM of group {group} has {when.written}.", on=group, do=["everywhen points VM"]) from missing


def _before_gap(points: Sequence[RecoveryPoint], at_ns: int) -> int:
    """That, or where the gap begins that it is in: the journal before reaches into a gap where one disk's tap went first."""
    if any(point.time_ns == at_ns for point in points):
        return at_ns  # a backup's, within the gap
    for point in points:
        position = point.journal
        if position is not None and position.gap is not None and position.gap.from_ns < at_ns < position.began_ns:
            at_ns = position.gap.from_ns
    return at_ns
