# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen diff`: what changed between two moments: files, the text of one file, or blocks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Annotated

import typer

from everywhen.guest.tree import Entry, Kind
from everywhen.interfaces.cli.app import (
    LOOK,
    AsJson,
    PassphraseFile,
    ProgressStyle,
    Quiet,
    RecoveryKeyFile,
    Repo,
    app,
    context_of,
)
from everywhen.interfaces.cli.diff_blocks import show_blocks
from everywhen.interfaces.cli.opened_files import OpenedFiles, entry_document, files_of_several
from everywhen.services.addresses import parse_address
from everywhen.services.failures import Exit, NotFound, WrongUsage
from everywhen.services.view.comparing import Difference, Differences, What, compare
from everywhen.services.view.files import Place
from everywhen.services.view.text_difference import text_difference

_SHOWN = 20
_FOLDERS = 40
"""Of a summary: those in which most has changed."""
_SIGNS = {What.APPEARED: "+", What.VANISHED: "-", What.CHANGED: "M", What.ATTRIBUTES: "a", What.RENAMED: "R"}


@app.command("diff", rich_help_panel=LOOK)
def show_differences(
    before: Annotated[str, typer.Argument(metavar="MOMENT", help="web1@-1h, or a disk: web1/vda@-1h.")],
    after: Annotated[str, typer.Argument(metavar="MOMENT", help="web1@latest:/srv; of a file: its text.")],
    summary: Annotated[bool, typer.Option("--summary", help="Numbers for each folder instead of names.")] = False,
    blocks: Annotated[bool, typer.Option("--blocks", help="The disks' bytes that differ, instead of files.")] = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """What changed between two moments: + appeared, - vanished, M changed, a attributes only, R renamed.

    Files of the same size, times, owner and mode are taken to be the same, unread.
    """
    context = context_of(locals())
    paths = [parse_address(moment).path for moment in (before, after)]
    if blocks and (summary or any(paths)):
        raise WrongUsage("--blocks is about disks: without a path, and without --summary.")
    with files_of_several(context, [before, after], "diff") as (old, new):
        context.output.line(f"from {old.heading}")
        context.output.line(f"to   {new.heading}")
        if blocks:
            return show_blocks(old, new)
        sides = _with_path(old, paths[0] or paths[1]), _with_path(new, paths[1] or paths[0])
        places = _place(sides[0]), _place(sides[1])
        if places[0] is None and places[1] is None:
            sides[1].place()  # says what there is of the way
            raise NotFound(f"{sides[1].address} is in neither moment.", on=str(sides[1].address))
        if not summary and _is_one_file(places):
            return _show_text(sides, places)
        return _show_files(sides, places, summary=summary)


def _with_path(opened: OpenedFiles, path: str | None) -> OpenedFiles:
    address = opened.address
    if path is None and address.disk is not None:
        whole = str(address)
        raise WrongUsage(
            f"{whole}: which volume? Say {whole}:/p1.",
            on=whole,
            do=[f"everywhen ls {whole}", "The bytes of the disk: --blocks"],
        )
    return replace(opened, address=replace(address, path=path or "/"))


def _place(opened: OpenedFiles) -> Place | None:
    """Where the path leads; None where it is not there."""
    try:
        place = opened.place()
    except NotFound:
        return None
    opened.note(place)
    return place


def _is_one_file(places: tuple[Place | None, Place | None]) -> bool:
    return all(place is None or place.found.entry.kind is Kind.FILE for place in places)


def _show_text(sides: tuple[OpenedFiles, OpenedFiles], places: tuple[Place | None, Place | None]) -> int:
    """Of one file, which may be there on one side only."""
    output = sides[0].context.output
    old, new = (None if place is None else place.system.open(place.found.entry) for place in places)
    found = text_difference(old, new, (str(sides[0].address), str(sides[1].address)))
    entries = [None if place is None else place.found.entry for place in places]
    output.document(
        {
            **_heads(*sides),
            "before": entries[0] and entry_document(entries[0]),
            "after": entries[1] and entry_document(entries[1]),
            "equal": found.equal and all(entries),
            "lines": found.lines,
            "why_no_lines": found.why,
        }
    )
    for entry, side in zip(entries, sides, strict=True):
        if entry is None:
            output.line(f"not there: {side.address}")
    for line in found.lines:
        output.line(line, style="good" if line.startswith("+") else "bad" if line.startswith("-") else "")
    if found.equal and all(entries):
        output.line("The content is the same.")
    elif found.why:
        output.line(f"The content differs ({found.why}): {_sizes(entries[0], entries[1])}.")
    return Exit.DONE


def _show_files(sides: tuple[OpenedFiles, OpenedFiles], places: tuple[Place | None, Place | None], *, summary: bool) -> int:
    context, output = sides[0].context, sides[0].context.output
    with context.progress("compared") as job:
        found = compare(*places, lambda looked: job.step(f"{looked:,} entries", looked, None))
    for side, place in zip(sides, places, strict=True):
        if place is not None:
            side.note(place)
    counts = Counter(one.what for one in found.found)
    folders = _by_folder(found) if summary else []
    output.document(
        {
            **_heads(*sides),
            "counts": {what.value: counts[what] for what in What},
            "looked_at": found.looked_at,
            **({"folders": folders} if summary else {"differences": [_document(one) for one in found.found]}),
            "unreadable": [{"path": path, "why": why} for path, why in found.unreadable],
        }
    )
    if summary:
        columns = ["FOLDER", *(what.value.upper() for what in What)]
        rows = [(str(one["path"]), *(f"{one[what.value]:,}" for what in What)) for one in folders[:_FOLDERS]]
        output.table(columns, rows, right=columns[1:])
        if len(folders) > _FOLDERS:
            output.line(f"and {len(folders) - _FOLDERS:,} more folders (--json has them all)")
    else:
        for one in found.found:
            output.line(_line(one))
    told = ", ".join(f"{counts[what]:,} {what.value}" for what in What if counts[what])
    output.line(f"{told or 'Nothing differs'}; {found.looked_at:,} entries looked at.")
    for path, why in found.unreadable[:_SHOWN]:
        output.warn(f"{path}: {why}")
    if len(found.unreadable) > _SHOWN:
        output.warn(f"and {len(found.unreadable) - _SHOWN:,} more that could not be compared; --json lists them all")
    return Exit.LESS_THAN_ASKED if found.unreadable else Exit.DONE


def _heads(old: OpenedFiles, new: OpenedFiles) -> dict[str, object]:
    return {"from": {**old.document, "path": old.address.path}, "to": {**new.document, "path": new.address.path}}


def _by_folder(found: Differences) -> list[dict[str, str | int]]:
    """Numbers by folder, most first."""
    folders: dict[str, Counter[What]] = {}
    for one in found.found:
        folders.setdefault(one.path.rpartition("/")[0] or "/", Counter())[one.what] += 1
    ordered = sorted(folders.items(), key=lambda item: (-item[1].total(), item[0]))
    return [{"path": path, **{what.value: counts[what] for what in What}} for path, counts in ordered]


def _document(one: Difference) -> dict[str, object]:
    return {
        "what": one.what.value,
        "path": one.path,
        "old_path": one.old_path,
        "before": one.before and entry_document(one.before),
        "after": one.after and entry_document(one.after),
    }


def _line(one: Difference) -> str:
    entry = one.after or one.before
    path = f"{one.path}/" if entry is not None and entry.kind is Kind.FOLDER and one.path != "/" else one.path
    if one.what is What.RENAMED:
        return f"{_SIGNS[one.what]} {one.old_path} -> {path}"
    if one.what is What.CHANGED:
        return f"{_SIGNS[one.what]} {path}  {_sizes(one.before, one.after)}"
    return f"{_SIGNS[one.what]} {path}"


def _sizes(before: Entry | None, after: Entry | None) -> str:
    sizes = ["-" if entry is None else f"{entry.size:,}" for entry in (before, after)]
    return f"{sizes[0]} bytes" if sizes[0] == sizes[1] else f"{sizes[0]} -> {sizes[1]} bytes"
