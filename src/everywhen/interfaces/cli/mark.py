# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen mark`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from everywhen.formats.point import CONSISTENCIES
from everywhen.interfaces.cli.app import PROTECT, AsJson, PassphraseFile, Quiet, RecoveryKeyFile, Repo, app, context_of
from everywhen.interfaces.cli.asking import ask_capture
from everywhen.interfaces.cli.group_mark import mark_group
from everywhen.services.failures import Exit, WrongUsage
from everywhen.services.groups import parse_group_alone
from everywhen.services.times import local_time, rfc3339, zone_label

_LONGEST = 200


@app.command("mark", rich_help_panel=PROTECT)
def mark(
    vm: Annotated[str, typer.Argument(metavar="VM|group:NAME", help="What is captured on this host.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the moment is called from now on.")],
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int | None:
    """Make a recovery point of a captured VM now, with a name; of a group, one instant in each VM (reads the repository)."""
    context = context_of(locals())
    name = text.strip()
    if not name or len(name) > _LONGEST or not name.isprintable() or '"' in name:
        raise WrongUsage(
            f'A mark has 1 to {_LONGEST} characters that can be printed, and no ".', on=text, safe="Nothing was done."
        )
    if (group := parse_group_alone(vm)) is not None:
        return mark_group(context, group, name)
    answer = ask_capture(context, vm, {"wish": "mark", "text": name})
    time_ns = answer["time_ns"]
    reached, why = answer["reached"], answer["why"]
    moment = {"point": answer["point"], "time": rfc3339(time_ns), "consistency": reached, "why": why}
    context.output.document({"vm": vm, "mark": name, **moment})
    when = f"{local_time(time_ns, context.zone)} {zone_label(time_ns, context.zone)}"
    address = shlex.quote(f'{vm}@"{name}"')
    context.output.line(f'{vm} at {when} is recovery point {answer["point"]} ({reached}), "{name}".')
    context.output.line(f"  back to it:  everywhen restore {address} --to DIR")
    if CONSISTENCIES.index(reached) < CONSISTENCIES.index(answer["asked"]):
        context.output.warn(f"{vm}: {answer['asked']} was asked for, {reached} was reached: {why}")
        return Exit.LESS_THAN_ASKED
    return None
