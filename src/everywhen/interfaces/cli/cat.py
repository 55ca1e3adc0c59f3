# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen cat`: the content of a guest's file at a moment, to standard output.

As it is, byte by byte, but on a terminal: there what steers it is shown as codes, as names are (ux R13).
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from everywhen.guest.messages import CHUNK
from everywhen.guest.tree import Content, Kind
from everywhen.interfaces.cli.app import GET_BACK, PassphraseFile, Quiet, RecoveryKeyFile, Repo, app, context_of
from everywhen.interfaces.cli.opened_files import opened_files, path_demanded
from everywhen.services.escape import visible_text
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
    """The content of a file of a guest, as it is; on a terminal, control characters are shown as codes."""
    context = context_of(locals())
    path_demanded(moment)
    with opened_files(context, moment, "cat") as opened:
        context.output.note(opened.heading)
        place = opened.place()
        if place.found.entry.kind is Kind.FOLDER and not stream:
            raise WrongUsage(f"{moment} is a folder.", on=moment, do=[f"everywhen ls {moment}"])
        opened.note(place)
        content = place.system.open(place.found.entry, stream)
        if sys.stdout.isatty():
            for text in _harmless(content):
                sys.stdout.write(text.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding))
        else:
            for piece in _pieces(content):
                sys.stdout.buffer.write(piece)
        sys.stdout.flush()


def _pieces(content: Content) -> Iterator[bytes]:
    at = 0
    while piece := content.read(at, CHUNK):
        yield piece
        at += len(piece)


def _harmless(content: Content) -> Iterator[str]:
    """As text for a terminal. Windows' line ends are line ends; what is no UTF-8 are codes."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    held = ""
    for piece in _pieces(content):
        text = held + decoder.decode(piece)
        held = "\r" if text.endswith("\r") else ""  # the other half of a line end may be in the next piece
        yield visible_text(text.removesuffix("\r").replace("\r\n", "\n"))
    yield visible_text(held + decoder.decode(b"", final=True))
