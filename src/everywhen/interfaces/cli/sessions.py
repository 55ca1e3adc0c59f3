# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen sessions`."""

from __future__ import annotations

from everywhen.interfaces.cli.app import LOOK, AsJson, PassphraseFile, Quiet, RecoveryKeyFile, Repo, app, context_of
from everywhen.services.ages import SECOND, age
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.standing import Work, at_work
from everywhen.services.times import local_time, rfc3339, zone_label


@app.command("sessions", rich_help_panel=LOOK)
def sessions(
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What is open: devices, mounts, restores; prune and gc leave it alone."""
    context = context_of(locals())
    with context.repository() as repository:
        now = repository.surroundings.clock()
        catalog = read_catalog(repository)
        there = [work for work in at_work(repository, "leases/", now) if work.alive and work.presence.began_ns]
    there.sort(key=lambda work: work.presence.began_ns)
    context.output.document([_document(work, catalog, now) for work in there])
    if not there:
        context.output.line("Nothing is open.")
        return
    rows = []
    for work in there:
        one = work.presence
        since = local_time(one.began_ns, context.zone)
        moments = ", ".join(f"{vm}@{point}" for vm, point in _named(work, catalog))
        who = f"{one.holder.user or '?'}@{one.holder.host or '?'} pid {one.holder.pid}"
        rows.append((since, age(now - one.began_ns), one.what, moments, who))
    context.output.table([f"SINCE ({zone_label(now, context.zone)})", "FOR", "WHAT", "MOMENT", "WHO"], rows)


def _named(work: Work, catalog: Catalog) -> list[tuple[str, str]]:
    """(VM, point) of what a lease keeps."""
    names = {vm.vm: vm.name for vm in catalog.vms}
    vms: dict[str, str] = {point.point: names.get(point.vm, "?") for point in (*catalog.points, *catalog.dropped_points)}
    return [(vms.get(point, "?"), point) for point in work.presence.points]


def _document(work: Work, catalog: Catalog, now_ns: int) -> dict[str, object]:
    one = work.presence
    return {
        "id": one.name.removeprefix("leases/"),
        "what": one.what,
        "moments": [{"vm": vm, "point": point} for vm, point in _named(work, catalog)],
        "since": rfc3339(one.began_ns),
        "age_seconds": round((now_ns - one.began_ns) / SECOND, 3),
        "user": one.holder.user,
        "host": one.holder.host,
        "pid": one.holder.pid,
    }
