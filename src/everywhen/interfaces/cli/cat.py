# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen cat`: the content of a guest's file at a moment, to standard output."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from everywhen.guest.messages import CHUNK
from everywhen.guest.tree import Kind
from everywhen.interfaces.cli.app import GET_BACK, PassphraseFile, Quiet, RecoveryKeyFile, Repo, app, context_of
from everywhen.interfaces.cli.opened_files import opened_files, path_demanded
from everywhen.services.failures import WrongUsage


@app.command("cat", rich_help_panel=GET_BACK)
def show_content(
    moment: Annotated[str, typer.Argument(metavar="MOMENT", help="web1@-10m:/etc/hosts or web1/vda@-10m:/p1/etc/hosts.")],
    stream: Annotated[str, typer.Option("--stream", metavar="NAME", help="A named stream of it (NTFS).")] = "",
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    quiet: Quiet = False,
) -> None:
    """The content of a file of a guest, as it is."""
    context = context_of(locals())
    path_demanded(moment)
    with opened_files(context, moment, "cat") as opened:
        context.output.note(opened.heading)
        place = opened.place()
        if place.found.entry.kind is Kind.FOLDER and not stream:
            raise WrongUsage(f"{moment} is a folder.", on=moment, do=[f"everywhen ls {moment}"])
        opened.note(place)
        content = place.system.open(place.found.entry, stream)
        at = 0
        while piece := content.read(at, CHUNK):
            sys.stdout.buffer.write(piece)
            at += len(piece)
        sys.stdout.buffer.flush()
