# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen gc`."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from everywhen.interfaces.cli.app import (
    KEEP,
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
from everywhen.repository.gc.gc import Collected, collect
from everywhen.services.failures import Exit, WrongUsage
from everywhen.services.keep.brakes import Brake
from everywhen.services.keep.deleting import before_deleting
from everywhen.services.sizes import size

_FLAG = "--yes-the-clock-is-right"


@app.command("gc", rich_help_panel=KEEP)
def gc(
    dry_run: DryRun = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Leave what running backups may need to the next gc.")] = False,
    yes_clock: Annotated[
        bool, typer.Option(_FLAG, help="Even if nothing in the repository is of the day that the clock says.")
    ] = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int | None:
    """Free the space of dropped moments. Backups and restores may run meanwhile; it can be stopped at any time."""
    context = context_of(locals())
    context.output.kept = "gc can be stopped at any time: the next one goes on. Nothing that is needed was deleted."
    with context.repository() as repository:
        brake = None if yes_clock else before_deleting(repository)
        if brake and dry_run:
            context.output.warn(f"{brake.words} Without a terminal: {_FLAG}")
        elif brake:
            _ask(brake)
        with context.progress("gc") as job:
            # Steps are counted in moments and packs, not in bytes: only their names are worth a line.
            result = collect(repository, wait=not no_wait, dry_run=dry_run, note=job.step, pause=time.sleep)
    context.output.document(_document(result, dry_run=dry_run))
    would = "would be " if dry_run else ""
    context.output.line(
        f"{size(result.bytes_freed)} {would}freed: {result.packs_deleted} packs, {result.segments_deleted} segments of "
        f"journals and {result.points_deleted} moments {would}deleted, {size(result.bytes_copied)} {would}copied to make room."
    )
    if result.days_thinned:
        context.output.line(f"Statistics of {result.days_thinned:,} days {would}made coarser.")
    for session in result.sessions:
        context.output.line(
            f"Waiting for {session.what} on {session.holder.host} (pid {session.holder.pid}): the next gc deletes "
            f"{result.packs_waiting} more packs."
        )
    for text in result.damaged:
        context.output.warn(f"{text}. It holds something that is needed, so it was not deleted: everywhen verify --read-data")
    if result.missing:
        context.output.warn(f"{result.missing} chunks that moments need are missing: everywhen verify")
    return Exit.DAMAGED if result.damaged or result.missing else None


def _ask(brake: Brake) -> None:
    """Stop, or ask. Raises WrongUsage, Abort."""
    if not sys.stdin.isatty():
        raise WrongUsage(
            brake.words,
            safe="Nothing was deleted.",
            do=["Look first: everywhen gc --dry-run", f"If it is right: everywhen gc {_FLAG}"],
        )
    typer.echo(brake.words, err=True)
    typer.confirm("Delete them? They cannot be taken back then", abort=True, err=True)


def _document(result: Collected, *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "points_deleted": result.points_deleted,
        "packs_deleted": result.packs_deleted,
        "segments_deleted": result.segments_deleted,
        "days_thinned": result.days_thinned,
        "bytes_freed": result.bytes_freed,
        "bytes_copied": result.bytes_copied,
        "packs_waiting": result.packs_waiting,
        "waiting_for": [session.what for session in result.sessions],
        "damaged": result.damaged,
        "missing": result.missing,
    }
