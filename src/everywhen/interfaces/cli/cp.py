# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen cp`: files of a guest at a moment, into a folder here."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from everywhen.guest.tree import Kind
from everywhen.interfaces.cli.app import (
    GET_BACK,
    AsJson,
    PassphraseFile,
    ProgressStyle,
    Quiet,
    RecoveryKeyFile,
    Repo,
    app,
    context_of,
)
from everywhen.interfaces.cli.opened_files import OpenedFiles, opened_files, path_demanded
from everywhen.services.failures import Exit, Failed, NotFound, WrongUsage, from_system
from everywhen.services.sizes import size
from everywhen.services.view.copying import Copied, Copying
from everywhen.services.view.files import Place
from everywhen.services.view.measuring import Measuring
from everywhen.services.view.target_folder import TargetFolder

_SHOWN = 20


@app.command("cp", rich_help_panel=GET_BACK)
def copy_files(
    moment: Annotated[str, typer.Argument(metavar="MOMENT", help="web1@-10m:/etc or web1/vda@-10m:/p1/etc.")],
    target: Annotated[str, typer.Argument(metavar="PATH", help="A folder into which it is put, or its new name.")],
    recursive: Annotated[bool, typer.Option("-r", help="Folders with all that is in them.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Files of a guest at a moment, copied here."""
    context = context_of(locals())
    path_demanded(moment)
    context.output.kept = "The repository was only read. Files that were copied are whole; one that was not is removed."
    with opened_files(context, moment, "cp") as opened:
        context.output.line(opened.heading)
        place = opened.place()
        opened.note(place)
        copied, where = _copied(opened, place, target, recursive=recursive, overwrite=overwrite)
        opened.note(place)
        _tell(opened, copied, where)
    return Exit.LESS_THAN_ASKED if copied.problems else Exit.DONE


def _copied(opened: OpenedFiles, place: Place, target: str, *, recursive: bool, overwrite: bool) -> tuple[Copied, str]:
    """What came of it, and where it is. Raises WrongUsage, NotFound, Failed, OSError."""
    address, entry = str(opened.address), place.found.entry
    if entry.kind is Kind.FOLDER and not recursive:
        raise WrongUsage(
            f"{address} is a folder.", on=address, safe="Nothing was copied.", do=["With all that is in it: cp -r"]
        )
    name = (opened.address.path or "").rstrip("/").rpartition("/")[2]
    into, as_name = os.path.split(target.rstrip("/") or "/")
    whole = not entry.name  # the root of a file system has no name: its content goes into the folder that is named
    there_already = os.path.isdir(target)
    if whole and not there_already:
        os.mkdir(target, 0o700)
    if whole or there_already:
        into, as_name = target, name
    elif not os.path.isdir(into or ".") or (target.endswith("/") and entry.kind is not Kind.FOLDER):
        missing = target if os.path.isdir(into or ".") else into
        raise NotFound(f"{missing} is not a folder here.", on=target, safe="Nothing was copied.")
    if as_name in ("", ".", "..") and not whole:
        raise WrongUsage(f"{target}: say a name, or a folder that is there.", on=target)
    folder = TargetFolder.at(into or ".", overwrite=overwrite)
    with opened.context.progress(f"cp {opened.view.vm.name}") as job:
        measuring = Measuring(place.system, place.found)

        def report(done: Copied) -> None:
            job.report(done.passed, measuring.total() if job.is_shown else None, files=done.files)

        copying = Copying(place.system, folder, report, umask=_umask())
        try:
            if whole:
                copying.copy_content(entry, made=not there_already)
            else:
                copying.copy(entry, as_name)
        except OSError as error:
            failure = from_system(error)
            failure.safe = opened.context.output.kept
            raise failure from error
        finally:
            folder.close()
    copied = copying.copied
    if copied.problems and not copied.files + copied.folders + copied.links:
        raise Failed(f"{address}: {copied.problems[0][1]}", on=address, safe="Nothing was copied.")
    return copied, into if whole else os.path.join(into, as_name)


def _tell(opened: OpenedFiles, copied: Copied, where: str) -> None:
    output = opened.context.output
    output.document(
        {
            **opened.document,
            "path": opened.address.path,
            "target": where,
            "files": copied.files,
            "folders": copied.folders,
            "links": copied.links,
            "bytes": copied.bytes,
            "problems": [{"path": path, "why": why} for path, why in copied.problems],
            "not_restored": dict(copied.lost),
        }
    )
    for path, why in copied.problems[:_SHOWN]:
        output.warn(f"{path}: {why}")
    if len(copied.problems) > _SHOWN:
        output.warn(f"and {len(copied.problems) - _SHOWN:,} more; --json lists them all")
    folders = f", {_several(copied.folders, 'folder')}" if copied.folders else ""
    links = f", {_several(copied.links, 'link')}" if copied.links else ""
    missing = f"; {len(copied.problems):,} not" if copied.problems else ""
    output.line(f"{_several(copied.files, 'file')}{folders}{links}, {size(copied.bytes)} copied to {where}{missing}.")
    if copied.lost:
        lost = ", ".join(f"{what} ({count:,})" for what, count in copied.lost.most_common())
        output.line(f"Not restored here: {lost}.")


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _umask() -> int:
    """The only way to read it is to set it."""
    found = os.umask(0o077)
    os.umask(found)
    return found
