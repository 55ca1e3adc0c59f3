# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command line's frame: options that every command has, groups of commands, and how one is run."""

from __future__ import annotations

import os
import sys
from contextvars import ContextVar
from typing import Annotated, Any

import typer

from everywhen import __version__
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.groups import GroupedCommands
from everywhen.interfaces.cli.output import Output
from everywhen.services.failures import WrongUsage

LOOK, GET_BACK, PROTECT, KEEP, RUN = "Look", "Get back", "Protect", "Keep", "Run"
"""Headings of `everywhen --help`."""

app = typer.Typer(
    name="everywhen",
    cls=GroupedCommands,
    help="Every disk of every virtual machine, at every moment.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Repo = Annotated[str | None, typer.Option("--repo", help="Repository: a path, or s3:// az:// gs:// (EVERYWHEN_REPO).")]
PassphraseFile = Annotated[
    str | None,
    typer.Option("--passphrase-file", help="File whose first line is the repository passphrase (EVERYWHEN_PASSPHRASE_FILE)."),
]
RecoveryKeyFile = Annotated[str | None, typer.Option("--recovery-key-file", help="File with the recovery key instead.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, also for errors.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only, and what is shown only once.")]
ProgressStyle = Annotated[str, typer.Option("--progress", help="auto, or json: lines on standard error.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; do nothing.")]


running_output: ContextVar[Output] = ContextVar("running_output")
"""Where the run under way prints: its failure must know what the command has printed, and what it says is kept."""


def context_of(options: dict[str, Any]) -> Context:
    """The context of a command from its common options (those it does not have are absent)."""
    output = running_output.get(None) or Output(sys.stdout, sys.stderr, os.environ)
    output.as_json, output.quiet = options.get("as_json", False), options.get("quiet", False)
    style = options.get("progress", "auto")
    if style not in ("auto", "json"):
        raise WrongUsage(f"--progress {style}: auto or json.")
    return Context(
        output,
        os.environ,
        repo=options.get("repo"),
        passphrase_file=options.get("passphrase_file"),
        recovery_key_file=options.get("recovery_key_file"),
        progress_style=style,
    )


def version(value: bool) -> None:
    """Print the version and leave."""
    if value:
        typer.echo(f"everywhen {__version__}")
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Every disk of every virtual machine, at every moment."""
