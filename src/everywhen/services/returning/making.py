# SPDX-License-Identifier: AGPL-3.0-or-later
"""A plan carried out: disks, UEFI variables, TPM, then the domain; what was made is taken back when a step fails.

The domain comes last: nobody can start one whose disks are not complete.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from everywhen.block.target_file import PARTIAL_SUFFIX
from everywhen.capture.qmp import MonitorError
from everywhen.hypervisor.host import VmHost
from everywhen.repository.repository import Repository
from everywhen.services.failures import Failed
from everywhen.services.restore import Mode, RestoredDisk, RestoreOrder, restore
from everywhen.services.returning.leftovers import Ledger, Made, identity_of
from everywhen.services.returning.placing import DiskPlace
from everywhen.services.returning.planning import Earlier, Plan
from everywhen.services.returning.wishes import Check, failed

Report = Callable[[int, int | None], None]
Ordered = Callable[[DiskPlace, Mode], RestoreOrder]
"""How a disk's restore is ordered, which knows the moment."""


@dataclass(frozen=True, slots=True)
class MakeOrder:
    """What is made where; `made`: what of it there is already, and what is written down as it goes on."""

    plan: Plan
    host: VmHost
    ledger: Ledger
    made: Made
    ordered: Ordered


def taken_up(made: Made | None, moment: str) -> Earlier:
    """What a return of the same moment has left, and this one goes on with; nothing is changed. Raises OSError."""
    if made is None or made.moment != moment:
        return Earlier()
    whole = {path for name, path in made.disks.items() if made.complete.get(name) and _same(path, made.complete[name])}
    begun = {path for name, path in made.disks.items() if not made.complete.get(name)}
    return Earlier(frozenset(whole), frozenset(begun), made.uuid, made.defined)


def _same(path: str, identity: list[int]) -> bool:
    return os.path.exists(path) and identity_of(path) == identity


def goes_on_with(made: Made, moment: str, plan: Plan) -> bool:
    """Whether what was begun is of the same moment, and in places of this plan."""
    ours = {place.path for place in plan.places} | {f"{place.pool}/{place.volume}" for place in plan.places if place.volume}
    return made.moment == moment and set(made.disks.values()) <= ours


def left_over(made: Made | None, moment: str, plan: Plan, host: VmHost) -> list[Check]:
    """What an earlier return has left that this one does not go on with. Raises MonitorError."""
    if made is None or goes_on_with(made, moment, plan):
        return []
    if is_defined(made, host):
        ways = (f"virsh start {made.name}", f"Another one beside it: --as new --name {made.name}-restored")
        return [failed(f'"{made.name}" is defined already, with all disks, by a restore of {made.moment}.', *ways)]
    if not (removing := _removing(made, host)):
        return []
    go_on = f"Go on with it, with what was said then: everywhen restore {made.moment} --define {made.uri}"
    what = f'A restore of {made.moment} as "{made.name}" was killed, and has left something.'
    return [failed(what, go_on, *(f"Remove it: {words}" for words in removing))]


def is_defined(made: Made, host: VmHost) -> bool:
    """Whether its last step was done, though it did not come to say so. Raises MonitorError."""
    return made.defined and any((one.name, one.uuid) == (made.name, made.uuid) for one in host.domains())


def _removing(made: Made, host: VmHost) -> list[str]:
    """Commands."""
    files = [path for path in (*made.disks.values(), *made.states) if os.path.isabs(path)]
    found = [path for one in files for path in (one, one + PARTIAL_SUFFIX) if os.path.isfile(path) or os.path.isdir(path)]
    volumes = [path for path in made.disks.values() if not os.path.isabs(path) and host.has_volume(*path.split("/", 1))]
    words = [f"rm -r {' '.join(shlex.quote(path) for path in found)}"] if found else []
    return words + [
        f"virsh vol-delete --pool {shlex.quote(pool)} {shlex.quote(name)}"
        for pool, _, name in (one.partition("/") for one in volumes)
    ]


def make(repository: Repository, order: MakeOrder, report: Report) -> list[RestoredDisk]:
    """Disks in their places, and the domain defined. Raises Failure, MonitorError, and errors of the layers below."""
    plan, host, ledger, made = order.plan, order.host, order.ledger, order.made
    if is_defined(made, host):  # by an earlier one, which was killed then
        ledger.clear()
        return []
    try:
        for name, path in made.disks.items():  # of an earlier one, which was killed
            if not made.complete.get(name) and path not in _given(plan):
                _remove_disk(path, host, whole=False)
        written = _disks(repository, order, report)
        for state in plan.states:
            if (check := state.check()) is not None:
                raise check.kind(f"Meanwhile: {check.what}", on=state.path, do=check.do)
            if not os.path.lexists(state.path):
                made.states.append(state.path)
                ledger.write(made)
                state.put()
        _define(order)
    except BaseException as error:
        _take_back(order, error)
        raise
    ledger.clear()
    for pool in sorted({place.pool for place in plan.places if place.pool}):
        with suppress(MonitorError):  # it lists them at its next refresh, then
            host.refresh(pool)
    return written


def _disks(repository: Repository, order: MakeOrder, report: Report) -> list[RestoredDisk]:
    plan, host, ledger, made = order.plan, order.host, order.ledger, order.made
    waiting = [place for place in plan.places if not place.there]
    total = sum(place.disk.used for place in waiting)
    done = 0
    written = []
    for place in waiting:
        made.disks[place.disk.name] = f"{place.pool}/{place.volume}" if place.volume else place.path
        ledger.write(made)
        if place.volume:
            path = host.make_volume(place.pool, place.volume, place.disk.size)
            if path != place.path:
                raise Failed(f"libvirt made the volume {place.volume} at {path}, and not at {place.path}.", on=place.pool)
        base = done
        mode: Mode = "overwrite" if place.is_device else "new"

        def advance(now: int, whole: int | None, base: int = base, used: int = place.disk.used) -> None:
            # Read back, too, a restore counts twice as much.
            report(base + (used * now // whole if whole else used), total)

        result = restore(repository, order.ordered(place, mode), advance)
        written += result.disks
        done += place.disk.used
        made.complete[place.disk.name] = identity_of(place.path)
        ledger.write(made)
    return written


def _define(order: MakeOrder) -> None:
    # libvirtd may have been restarted since the first byte.
    with VmHost(order.host.uri) as fresh:
        _define_with(fresh, order)


def _define_with(fresh: VmHost, order: MakeOrder) -> None:
    plan, made = order.plan, order.made
    uuid = str(plan.made.uuid)
    there = [one for one in fresh.domains() if one.name == plan.name or one.uuid == uuid]
    if there:  # libvirt would replace it
        raise Failed(f'A domain "{there[0].name}" (UUID {there[0].uuid}) appeared meanwhile.', on=plan.name)
    made.defined = True
    order.ledger.write(made)
    fresh.define(plan.made.xml)


def _take_back(order: MakeOrder, error: BaseException) -> None:
    """What cannot be is added to the error."""
    plan, host, ledger, made = order.plan, order.host, order.ledger, order.made
    left = []
    try:
        if is_defined(made, host):
            host.undefine(made.uuid)
    except MonitorError as trouble:
        error.add_note(f'The domain "{made.name}" is defined, and has what was made: {trouble}')
        return
    for state in plan.states:
        if state.path in made.states:
            try:
                state.remove()
            except OSError as trouble:
                left.append(f"{state.path} ({trouble.strerror})")
    for path in made.disks.values():
        try:
            if path not in _given(plan):
                _remove_disk(path, host, whole=True)
        except (OSError, MonitorError) as trouble:
            left.append(f"{path} ({trouble})")
    if left:
        error.add_note(f"What was made is not wholly taken back: {', '.join(left)}.")
    else:
        ledger.clear()


def _given(plan: Plan) -> set[str]:
    """Devices that were there before, and are written over."""
    return {place.path for place in plan.places if place.is_device and not place.volume}


def _remove_disk(path: str, host: VmHost, *, whole: bool) -> None:
    """An image or volume that was made; without `whole` only what is not complete of it."""
    if not os.path.isabs(path):
        pool, _, name = path.partition("/")
        host.remove_volume(pool, name)
        return
    with suppress(FileNotFoundError):
        os.unlink(path + PARTIAL_SUFFIX)
    with suppress(FileNotFoundError):
        if whole or not os.path.getsize(path):  # an empty one keeps the name for the partial one
            os.unlink(path)
