# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen spool import`: what a dead host's disk still holds and never reached the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from everywhen.formats.point import RecoveryPoint
from everywhen.interfaces.cli.app import (
    GET_BACK,
    AsJson,
    DryRun,
    PassphraseFile,
    ProgressStyle,
    Quiet,
    RecoveryKeyFile,
    Repo,
    app,
    context_of,
)
from everywhen.interfaces.cli.context import Context
from everywhen.repository.branches import history
from everywhen.repository.repository import Repository
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.failures import Exit, Failed, NotFound
from everywhen.services.protect.attached_spools import (
    AttachedSpool,
    Unusable,
    bring_in_attached,
    spool_folders,
    surveyed,
)
from everywhen.services.times import local_time, rfc3339, zone_label

_UNTOUCHED = "The files were not touched."

spools = typer.Typer(help="What captures of a dead host left on its disk.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(spools, name="spool", rich_help_panel=GET_BACK)


@spools.callback()
def spool() -> None:
    """What captures of a dead host left on its disk."""


@spools.command("import")
def spool_import(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The dead host's state folder, as it is here now, or one below it.")
    ],
    dry_run: DryRun = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int | None:
    """Bring in what a dead host captured and could not send any more: the last seconds. Its files stay as they are.

    Not for a copy of what a capture that still runs is writing.
    """
    context = context_of(locals())
    context.output.kept = f"What was brought in before is kept; run it again for the rest. {_UNTOUCHED}"
    told: list[dict[str, Any]] = []
    unusable: list[Unusable] = []
    with context.repository() as repository:
        folders = spool_folders(folder)
        if not folders:
            raise NotFound(
                f"{folder} holds nothing that a capture left.",
                on=str(folder),
                do=["Name the state folder of the host that died, where its disk is mounted: MOUNT/var/lib/everywhen"],
            )
        catalog = read_catalog(repository)
        for text in catalog.unreadable:
            context.output.warn(text)
        with context.progress("spools") as job:
            for number, one in enumerate(folders):
                with surveyed(repository, catalog, one) as (found, refused):
                    unusable += refused
                    job.step(str(one), number, len(folders))
                    told += [_imported(context, repository, catalog, here, dry_run=dry_run) for here in found]
                    job.step(str(one), number + 1, len(folders))
    if not told:
        raise Failed(unusable[0].why, on=str(folder), safe=_UNTOUCHED, do=[other.why for other in unusable[1:]])
    for other in unusable:
        context.output.warn(other.why)
    refusals = [{"folder": str(other.folder), "why": other.why} for other in unusable]
    context.output.document({"dry_run": dry_run, "spools": told, "unusable": refusals})
    whole = not unusable and not any(one["damage"] for one in told)
    enough = " All that they hold is in the repository." if whole else ""
    context.output.line("Nothing was done (--dry-run)." if dry_run else f"{_UNTOUCHED}{enough}")
    return None if whole else Exit.LESS_THAN_ASKED


def _imported(
    context: Context, repository: Repository, catalog: Catalog, found: AttachedSpool, *, dry_run: bool
) -> dict[str, Any]:
    """Bring in one capture's spool; what is said of it."""
    made = None if dry_run else bring_in_attached(repository, found, lambda: None)
    point = made.point if made else None
    beside = point is not None and point.point not in _history(catalog, point)
    name, zone = found.vm.name, context.zone
    until = f"{local_time(found.until_ns, zone)} {zone_label(found.until_ns, zone)}"
    if found.damage:
        context.output.warn(f"{name}: {found.damage}. What was written after {until} cannot be brought in")
    if found.lost:
        verb = "would be brought in" if dry_run else "are in it now"
        context.output.line(
            f"{name}: {found.lost:,} writes that never reached the repository {verb}, until {until} "
            f"(it had them until {local_time(found.known_ns, zone)})"
        )
    else:
        context.output.line(f"{name}: the repository has all writes that are here, until {until}")
    if point is not None:
        context.output.line(f"  back to it:  everywhen restore {name}@{point.point} --to DIR")
    if beside:
        context.output.line(
            "  It lies beside the history: a later capture of the VM had begun before that. No time leads to it."
        )
    return {
        "vm": name,
        "folder": str(found.folder),
        "size": found.size,
        "writes": found.writes,
        "lost": found.lost,
        "had_until": rfc3339(found.known_ns),
        "until": rfc3339(found.until_ns),
        "point": point.point if point else None,
        "beside": beside,
        "damage": found.damage or None,
    }


def _history(catalog: Catalog, point: RecoveryPoint) -> set[str]:
    """The points of the VM's history, where `point` is one of its points."""
    return {one.point for one in history([*(one for one in catalog.points if one.vm == point.vm), point])}
