# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen find`: files of a guest by name, at a moment, or in all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import translate
from typing import Annotated

import typer

from everywhen.guest.tree import Kind
from everywhen.guest.walking import Found, walk
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
from everywhen.interfaces.cli.find_through import find_through
from everywhen.interfaces.cli.opened_files import entry_document, opened_files, volume_demanded, write_raw
from everywhen.services.failures import Exit, WrongUsage
from everywhen.services.view.files import Place

_SHOWN = 20


@app.command("find", rich_help_panel=LOOK)
def find_files(
    moment: Annotated[str, typer.Argument(metavar="MOMENT", help="Where to begin: web1@-10m:/srv or web1/vda@-10m:/p1.")],
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Of the name: * ? and [a-z] are understood.")],
    raw: Annotated[bool, typer.Option("-0", help="Paths as they are, each with a NUL after it.")] = False,
    deleted: Annotated[bool, typer.Option("--deleted", help="What is not there any more, and when it was last.")] = False,
    all_moments: Annotated[bool, typer.Option("--all-moments", help="In all recovery points, from when to when.")] = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Files of a guest by name, in one moment, or in all up to it."""
    context = context_of(locals())
    if raw and (as_json or deleted or all_moments):
        raise WrongUsage("-0 excludes --json, --deleted and --all-moments.")
    if deleted and all_moments:
        raise WrongUsage("--deleted and --all-moments exclude one another.")
    volume_demanded(moment)
    if deleted or all_moments:
        return find_through(context, moment, pattern, deleted=deleted)
    problems: list[tuple[str, str]] = []
    with opened_files(context, moment, "find") as opened:
        (context.output.note if raw else context.output.line)(opened.heading)
        place = opened.place()
        if place.found.entry.kind is not Kind.FOLDER:
            raise WrongUsage(f"{moment} is no folder.", on=moment)
        opened.note(place)
        found = []
        for one in _matching(place, pattern, problems):
            path = place.spelled(one.path)
            if context.output.as_json:
                found.append({**entry_document(one.entry), "path": path})
            elif raw:
                write_raw([path])
            else:
                context.output.line(f"{path}/" if one.entry.kind is Kind.FOLDER else path)
        opened.note(place)
        context.output.document(
            {
                **opened.document,
                "path": opened.address.path or "/",
                "pattern": pattern,
                "notes": list(place.system.notes),
                "found": found,
                "unreadable": [{"path": path, "why": why} for path, why in problems],
            }
        )
    for path, why in problems[:_SHOWN]:
        context.output.warn(f"{path}: {why}")
    if len(problems) > _SHOWN:
        context.output.warn(f"and {len(problems) - _SHOWN:,} more that could not be looked into; --json lists them all")
    return Exit.LESS_THAN_ASKED if problems else Exit.DONE


def _matching(place: Place, pattern: str, problems: list[tuple[str, str]]) -> Iterator[Found]:
    """What has such a name, below a folder; what could not be looked into is put to the `problems`."""
    named = re.compile(translate(pattern), 0 if place.system.case_sensitive else re.IGNORECASE)
    for one in walk(place.system, place.found):
        if not isinstance(one, Found):
            path, unreadable = one
            problems.append((place.spelled(path), str(unreadable.error)))
        elif named.match(one.entry.name):
            yield one
