# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen sessions`, and `everywhen sessions close`."""

from __future__ import annotations

from typing import Annotated

import typer

from everywhen.interfaces.cli.app import LOOK, AsJson, PassphraseFile, Quiet, RecoveryKeyFile, Repo, app, context_of
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.ending_holders import end_holder
from everywhen.repository.repository import Repository
from everywhen.services.ages import SECOND, age
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.standing import Work, at_work
from everywhen.services.times import local_time, rfc3339, zone_label

_SHOWN = 6
"""Characters of an id; any that no other one begins with will do."""
_LASTING = ("serve ", "mount ", "boot ")
"""What goes on until somebody ends it. All else ends by itself, and half of it is worth nothing or worse."""


@app.command("sessions", rich_help_panel=LOOK)
def sessions(
    close: Annotated[
        list[str] | None,
        typer.Argument(metavar="[close ID]", help="End a serve, mount or boot of this host, with all that it has open."),
    ] = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What is open: devices, mounts, shares, booted copies, restores. Prune and gc leave these moments alone."""
    context = context_of(locals())
    if close and (close[0] != "close" or len(close) != 2):
        raise WrongUsage("everywhen sessions lists what is open; everywhen sessions close ID ends one.")
    with context.repository() as repository:
        now = repository.surroundings.clock()
        there = [work for work in at_work(repository, "leases/", now) if work.alive and work.presence.began_ns]
        there.sort(key=lambda work: work.presence.began_ns)
        catalog = read_catalog(repository)
        if close:
            _close(context, repository, there, catalog, close[1])
        else:
            _list(context, there, catalog, now)


def _list(context: Context, there: list[Work], catalog: Catalog, now: int) -> None:
    context.output.document([_document(work, catalog, now) for work in there])
    if not there:
        context.output.line("Nothing is open.")
        return
    rows = []
    for work in there:
        one = work.presence
        since = local_time(one.began_ns, context.zone)
        moments = ", ".join(_words(work, catalog)) or "-"
        who = f"{one.holder.user or '?'}@{one.holder.host or '?'} pid {one.holder.pid}"
        rows.append((_id(work)[:_SHOWN], since, age(now - one.began_ns), one.what, moments, who))
    context.output.table(["ID", f"SINCE ({zone_label(now, context.zone)})", "FOR", "WHAT", "MOMENT", "WHO"], rows)


def _close(context: Context, repository: Repository, there: list[Work], catalog: Catalog, session: str) -> None:
    """End the holder of the one whose id begins so. Raises NotFound, WrongUsage, NotAllowed, Failed."""
    found = [work for work in there if session and _id(work).startswith(session)]
    if not found:
        raise NotFound(f"Nothing that is open has the id {session}.", on=session, do=["everywhen sessions"])
    if len(found) > 1:
        raise WrongUsage(f"{len(found)} ids begin with {session}.", on=session, do=[_id(one) for one in found])
    one = found[0].presence
    if not one.what.startswith(_LASTING):
        raise WrongUsage(f"{one.what} ends by itself.", on=session, safe="Nothing was done.", do=["Ctrl-C where it runs"])
    ended = [work for work in there if work.presence.holder == one.holder]
    end_holder(one, repository.surroundings.holder)
    closed = [{"id": _id(work), "what": work.presence.what, "moments": _moments(work, catalog)} for work in ended]
    context.output.document({"closed": closed, "pid": one.holder.pid})
    for work in ended:
        words = ", ".join([work.presence.what, *_words(work, catalog)])
        context.output.line(f"Closed: {words} (pid {one.holder.pid})")


def _id(work: Work) -> str:
    return work.presence.name.removeprefix("leases/")


def _moments(work: Work, catalog: Catalog) -> list[dict[str, str]]:
    return [{"vm": vm, "point": point} for vm, point in _named(work, catalog)]


def _words(work: Work, catalog: Catalog) -> list[str]:
    return [f"{vm}@{point}" for vm, point in _named(work, catalog)]


def _named(work: Work, catalog: Catalog) -> list[tuple[str, str]]:
    """(VM, point) of what a lease keeps."""
    names = {vm.vm: vm.name for vm in catalog.vms}
    vms: dict[str, str] = {point.point: names.get(point.vm, "?") for point in (*catalog.points, *catalog.dropped_points)}
    return [(vms.get(point, "?"), point) for point in work.presence.points]


def _document(work: Work, catalog: Catalog, now_ns: int) -> dict[str, object]:
    one = work.presence
    return {
        "id": _id(work),
        "what": one.what,
        "moments": _moments(work, catalog),
        "since": rfc3339(one.began_ns),
        "age_seconds": round((now_ns - one.began_ns) / SECOND, 3),
        "user": one.holder.user,
        "host": one.holder.host,
        "pid": one.holder.pid,
    }
