# SPDX-License-Identifier: AGPL-3.0-or-later
"""What hands type that learned another backup program: hidden commands that say our word for it (ux 4.1)."""

from __future__ import annotations

from typing import Annotated

import typer

from everywhen.interfaces.cli.app import app
from everywhen.services.failures import WrongUsage

_OURS = {
    "snapshots": ["everywhen points [VM]"],
    "forget": ["everywhen policy set VM LINE (what stays)", "everywhen prune (drop the rest)", "everywhen gc (free the space)"],
    "check": ["everywhen verify (structure)", "everywhen verify --read-data (every byte)"],
    "dump": ["everywhen restore VM/DISK@WHEN --to - (one disk, to standard output)"],
}
_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def _register(habit: str, ours: list[str]) -> None:
    @app.command(habit, hidden=True, context_settings=_PASSED_ON)
    def hint(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:  # noqa: ARG001 - whatever was typed
        raise WrongUsage(f'There is no command "{habit}" here.', on=habit, safe="Nothing was done.", do=ours)


for _habit, _commands in _OURS.items():
    _register(_habit, _commands)
