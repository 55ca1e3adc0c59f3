# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen points`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from everywhen.formats.point import RecoveryPoint
from everywhen.interfaces.cli.app import LOOK, AsJson, PassphraseFile, Quiet, RecoveryKeyFile, Repo, app, context_of
from everywhen.interfaces.cli.completion import write_names
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.rolled_back import rolled_back_document
from everywhen.repository.ledger import Vm
from everywhen.services.addresses import branch_name
from everywhen.services.ages import SECOND, age, span
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.groups import members, parse_group_alone, points_at
from everywhen.services.sizes import size
from everywhen.services.times import local_time, rfc3339, zone_label

_CLOCKS_DIFFER = 2 * SECOND
"""By so much a person who looks for a time of the guest's may be led to another moment."""


@app.command("points", rich_help_panel=LOOK)
def points(
    vm: Annotated[str | None, typer.Argument(metavar="[VM|group:NAME]")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The newest so many.")] = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Recovery points, newest first."""
    context = context_of(locals())
    with context.repository() as repository:
        catalog = read_catalog(repository)
        now = repository.surroundings.clock()
    write_names(context.env, context.repository_name(), catalog)
    vms = {found.vm: found for found in _named(catalog, vm)}
    chosen = [point for point in reversed(catalog.points) if point.vm in vms][:limit]
    shared = _shared(catalog, {found.group for found in vms.values() if found.group})
    context.output.document([_document(catalog, vms[point.vm], point, shared) for point in chosen])
    rows = [
        (
            point.point,
            vms[point.vm].name,
            local_time(point.time_ns, context.zone),
            age(now - point.time_ns),
            point.reached,
            str(len(point.disks)),
            size(sum(disk.bytes_changed for disk in point.disks.values())),
            size(sum(disk.bytes_stored for disk in point.disks.values())),
            _note(context, catalog, (vms[point.vm], point), now, shared),
        )
        for point in chosen
    ]
    head = f"TIME ({zone_label(now, context.zone)})"
    columns = ["POINT", "VM", head, "AGE", "CONSISTENCY", "DISKS", "CHANGED", "STORED", "NOTE"]
    context.output.table(columns, rows, right=["DISKS", "CHANGED", "STORED"])
    for text in catalog.unreadable:
        context.output.warn(text)


def _named(catalog: Catalog, name: str | None) -> Sequence[Vm]:
    """One VM, all of a group, or all. Raises NotFound, WrongUsage."""
    if not name:
        return catalog.vms
    group = parse_group_alone(name)
    return [catalog.vm(name)] if group is None else members(catalog, group)


@dataclass(frozen=True, slots=True)
class _Shared:
    """An instant of which several VMs of a group have a point; `lacking`: those that have none."""

    group: str
    vms: list[str]
    lacking: list[str]


def _shared(catalog: Catalog, groups: set[str]) -> dict[str, _Shared]:
    """By point."""
    found: dict[str, _Shared] = {}
    for group in groups:
        vms = members(catalog, group)
        for points in points_at(catalog, vms).values():
            there = _Shared(group, sorted(points), [vm.name for vm in vms if vm.name not in points])
            found |= dict.fromkeys((point.point for point in points.values()), there)
    return found


def _note(context: Context, catalog: Catalog, of: tuple[Vm, RecoveryPoint], now: int, shared: Mapping[str, _Shared]) -> str:
    vm, point = of
    held = [hold for hold in catalog.active_holds(now) if hold.point == point.point]
    parts = [f'"{point.mark}"'] if point.mark else []
    if (back := point.rolled_back) is not None:
        parts.append(f"rolled back to {local_time(back.time_ns, context.zone)}; before: {branch_name(vm.name, back.branch)}")
    if (there := shared.get(point.point)) is not None:
        parts.append(f"group {there.group}" + (f" without {', '.join(there.lacking)}" if there.lacking else ""))
    parts += [f"held: {hold.reason}" for hold in held]
    parts += [point.why] if point.why else []
    if point.guest_clock is not None and abs(ahead := point.guest_clock.ahead_ns) >= _CLOCKS_DIFFER:
        parts.append(f"its clock was {span(abs(ahead))} {'ahead' if ahead > 0 else 'behind'}")
    return ", ".join(parts)


def _document(catalog: Catalog, vm: Vm, point: RecoveryPoint, shared: Mapping[str, _Shared]) -> dict[str, object]:
    holds = [hold for hold in catalog.holds if hold.point == point.point]
    there = shared.get(point.point)
    return {
        "id": point.point,
        "vm": vm.name,
        "time": rfc3339(point.time_ns),
        "consistency": point.reached,
        "why": point.why,
        "mark": point.mark,
        "group": {"group": there.group, "vms": there.vms} if there else None,
        "rolled_back": rolled_back_document(vm.name, point.rolled_back),
        "parent": point.parent.point if point.parent else None,
        "held": [{"reason": hold.reason, "until": rfc3339(hold.until_ns) if hold.until_ns else None} for hold in holds],
        "disks": {
            name: {
                "size": disk.tree.size,
                "format": disk.format,
                "bytes_read": disk.bytes_read,
                "bytes_changed": disk.bytes_changed,
                "bytes_stored": disk.bytes_stored,
            }
            for name, disk in point.disks.items()
        },
        "files": sorted(point.files),
        "guest_clock_ahead_seconds": round(point.guest_clock.ahead_ns / SECOND, 3) if point.guest_clock else None,
    }
