# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen hold` and `everywhen release`."""

from __future__ import annotations

from typing import Annotated

import typer

from everywhen.formats.point import RecoveryPoint
from everywhen.interfaces.cli.app import KEEP, AsJson, PassphraseFile, Quiet, RecoveryKeyFile, Repo, app, context_of
from everywhen.interfaces.cli.context import Context
from everywhen.repository.ledger import Hold, Vm
from everywhen.repository.repository import Repository
from everywhen.services.addresses import parse_address
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.groups import PREFIX, parse_group
from everywhen.services.keep import holding
from everywhen.services.keep.policies import read_policies
from everywhen.services.keep.retention import sentence
from everywhen.services.times import local_time, rfc3339, zone_label


@app.command("hold", rich_help_panel=KEEP)
def hold(
    moment: Annotated[str | None, typer.Argument(metavar="MOMENT", help="VM[@WHEN], no group; without: all holds.")] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is shown wherever the moment is.")] = "",
    until: Annotated[
        str | None, typer.Option("--until", metavar="DATE|SPAN", help="As 2031-12-31 or 90d; without: until released.")
    ] = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Keep a moment whatever the policy says."""
    context = context_of(locals())
    with context.repository() as repository:
        catalog = read_catalog(repository)
        now = repository.surroundings.clock()
        if moment is None:
            _list(context, catalog, now)
            return
        vm, point = _find(context, repository, catalog, moment)
        end = holding.parse_until(until, now_ns=now, zone=context.zone) if until else 0
        made = holding.hold(repository, point, reason, end)
    context.output.document({"vm": vm.name, "time": rfc3339(point.time_ns), **_document(made)})
    context.output.line(f"Held {_until(context, end)}: {made.reason}")


@app.command("release", rich_help_panel=KEEP)
def release(
    moment: Annotated[str, typer.Argument(metavar="MOMENT", help="VM[@WHEN].")],
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Only the hold with this reason.")] = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """End a hold, and say what that means for the moment."""
    context = context_of(locals())
    with context.repository() as repository:
        catalog = read_catalog(repository)
        now = repository.surroundings.clock()
        vm, point = _find(context, repository, catalog, moment)
        holds = holding.holds_on(catalog, point, reason, now)
        policies = read_policies(repository.documents, catalog.vms)
        kept = holding.kept_without(catalog, policies, vm, point, holds, now)
        holding.release(repository, holds)
    context.output.document(
        {
            "vm": vm.name,
            "time": rfc3339(point.time_ns),
            "released": [_document(one) for one in holds],
            "kept_as": list(kept),
        }
    )
    for one in holds:
        context.output.line(f'Released: "{one.reason}" ({one.by})')
    if kept:
        context.output.line(f"The moment stays for now, as: {', '.join(kept)}.")
    else:
        context.output.line(f"Nothing keeps it any more: the next prune drops it. {sentence(policies.of(vm).policy)}")


def _find(context: Context, repository: Repository, catalog: Catalog, text: str) -> tuple[Vm, RecoveryPoint]:
    if (group := parse_group(text)) is not None:
        do = [f"Hold it in each VM: everywhen points {PREFIX}{group[0]}, and everywhen hold VM@POINT"]
        raise WrongUsage("A hold is for a moment of one VM, not of a group.", on=text, do=do)
    address = parse_address(text)
    if address.path is not None or address.disk is not None:
        raise WrongUsage("A hold is for a whole moment, all disks of it.", on=text, do=["Say VM@WHEN."])
    dropped = next((point for point in catalog.dropped_points if point.point == address.when), None)
    if dropped is not None:
        raise NotFound(
            f"{dropped.point} was dropped.", on=text, do=[f"Take it back first: everywhen prune --undo {dropped.point}"]
        )
    now = repository.surroundings.clock()
    vm, point, found = catalog.find(address, now_ns=now, zone=context.zone, exact=False)
    context.output.line(found.words(vm.name, context.zone))
    return vm, point


def _list(context: Context, catalog: Catalog, now_ns: int) -> None:
    active = catalog.active_holds(now_ns)
    vms = {vm.vm: vm.name for vm in catalog.vms}
    points = {str(point.point): point for point in catalog.points}
    rows = []
    for one in active:
        point = points.get(one.point)
        name = vms.get(point.vm, "?") if point else "?"
        when = local_time(point.time_ns, context.zone) if point else "not readable"
        rows.append((one.point, name, when, _until(context, one.until_ns), one.reason, one.by))
    context.output.document([{"vm": row[1], **_document(one)} for one, row in zip(active, rows, strict=True)])
    context.output.table(["POINT", "VM", f"TIME ({zone_label(now_ns, context.zone)})", "HELD", "REASON", "BY"], rows)


def _until(context: Context, until_ns: int) -> str:
    return f"until {local_time(until_ns, context.zone)}" if until_ns else "until it is released"


def _document(one: Hold) -> dict[str, object]:
    until = rfc3339(one.until_ns) if one.until_ns else None
    return {"point": one.point, "reason": one.reason, "until": until, "by": one.by}
