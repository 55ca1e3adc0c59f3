# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command line's entry point: all commands, one place where they end."""

from __future__ import annotations

import importlib
import os
import sys

import typer

from everywhen.interfaces.cli.app import app, running_output
from everywhen.interfaces.cli.failures import guarded, two_step_interrupt
from everywhen.interfaces.cli.output import Output
from everywhen.storage.allocator import keep_large_buffers

ALONE = {
    "backup": "backup",
    "boot": "boot",
    "cat": "cat",
    "cp": "cp",
    "diff": "diff",
    "doctor": "doctor",
    "find": "find",
    "gc": "gc",
    "history": "history",
    "hold": "hold",
    "init": "initialize",
    "key": "key",
    "ls": "ls",
    "mark": "mark",
    "mount": "mount",
    "pause": "pause",
    "points": "points",
    "policy": "policy",
    "protect": "protect",
    "prune": "prune",
    "release": "hold",
    "restore": "restore",
    "resume": "pause",
    "rollback": "rollback",
    "serve": "serve",
    "sessions": "sessions",
    "spool": "spool",
    "stats": "stats",
    "status": "status",
    "timeline": "timeline",
    "unprotect": "unprotect",
    "verify": "verify",
}
"""Commands that need no other command's module, and theirs. Loading one instead of all saves 50 ms at each start."""
LINUX_ONLY = {
    *("boot", "cat", "cp", "diff", "doctor", "find", "history", "ls", "mount", "protect", "rollback", "spool", "unprotect")
}
"""Modules of commands that reach into hypervisors or the kernel, or have guests' files parsed by a process that it confines."""
MODULES = sorted({*ALONE.values(), "completion", "habits", "help_topics"} - (set() if sys.platform == "linux" else LINUX_ONLY))
"""All modules of commands that there are; the three describe or stand for all others."""


def load_commands(first_word: str) -> None:
    """Register the command that is called, or all of them where that is not sure from the first word."""
    if first_word == "--version":
        return
    alone = ALONE.get(first_word)
    for module in [alone] if alone in MODULES else MODULES:
        importlib.import_module(f"everywhen.interfaces.cli.{module}")


def _stand_in_for_closed_streams() -> None:
    """`everywhen … >&-`: without this, the next file that is opened would get the number of the stream."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open as long as the program runs


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with the exit code of the contract."""
    keep_large_buffers()
    _stand_in_for_closed_streams()
    given = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # The parser's own errors happen before a command has read its options: --json must hold for them too.
    output = Output(sys.stdout, sys.stderr, os.environ, as_json="--json" in given, quiet="-q" in given or "--quiet" in given)
    running_output.set(output)
    load_commands(given[0])
    command = typer.main.get_command(app)

    def run() -> int | None:
        # Not `command.main`: even when not standalone it ends quietly on Ctrl-C and on a closed pipe.
        with command.make_context("everywhen", list(given)) as context:
            result = command.invoke(context)
        return result if isinstance(result, int) else None

    with two_step_interrupt(output):
        code = guarded(output, run)
    sys.exit(code)
