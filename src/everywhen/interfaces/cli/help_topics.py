# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen help [TOPIC]`: pages that need no internet at three in the morning; the texts are `topics/*.md`."""

from __future__ import annotations

from importlib import resources
from typing import Annotated

import typer

from everywhen.interfaces.cli.app import RUN, AsJson, Quiet, app, context_of
from everywhen.services.failures import NotFound
from everywhen.services.spelling import nearest


def topics() -> dict[str, str]:
    """Name and text of every page."""
    folder = resources.files("everywhen.interfaces.cli") / "topics"
    pages = [page for page in folder.iterdir() if page.name.endswith(".md")]
    return {
        page.name.removesuffix(".md"): page.read_text(encoding="utf-8") for page in sorted(pages, key=lambda page: page.name)
    }


@app.command("help", rich_help_panel=RUN)
def help_command(
    context: typer.Context,
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="A page, or a command.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Pages about moments, restoring, retention, keys and more. They need no internet."""
    run = context_of({"as_json": as_json, "quiet": quiet})
    pages = topics()
    if topic is None:
        titles = {name: text.partition("\n")[0].partition(": ")[2] or name for name, text in pages.items()}
        run.output.document({"topics": titles})
        for name, title in titles.items():
            run.output.line(f"everywhen help {name:12}  {title}")
        return
    text = pages.get(topic) or _of_command(context, topic)
    if text is None:
        close = nearest(topic, pages)
        hint = f" Close: {close[0]}." if close else ""
        raise NotFound(f'No page "{topic}".{hint}', on=topic, do=[f"everywhen help {name}" for name in pages])
    run.output.document({"topic": topic, "text": text})
    for line in text.rstrip("\n").splitlines():
        run.output.line(line)


def _of_command(context: typer.Context, name: str) -> str | None:
    """The help of a command, for those who type `help prune`."""
    parent = context.parent
    command = getattr(parent.command, "commands", {}).get(name) if parent else None
    if command is None or parent is None:
        return None
    return str(command.get_help(command.context_class(command, info_name=name, parent=parent)))
