# SPDX-License-Identifier: AGPL-3.0-or-later
"""The options by which a user asks for more than crash consistency, and what they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from everywhen.capture.agent_address import AgentAddress
from everywhen.formats.point import CONSISTENCIES
from everywhen.interfaces.cli.context import Context
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.protect.quieting import Quieting, QuietOrder, thaw_left

AskedFor = Annotated[
    str,
    typer.Option(
        "--consistency",
        metavar="LEVEL",
        help="Of points by time, and of marks: crash; filesystem, by the guest's agent; application, with VSS or hooks.",
    ),
]
Agent = Annotated[str | None, typer.Option("--agent", metavar="SOCKET", help="The guest agent's channel, a unix socket.")]
HostHook = Annotated[
    str | None, typer.Option("--host-hook", metavar="PROGRAM", help="Run here with `freeze`, and with `thaw` afterwards.")
]


def agent_address(vm: str, socket: str | None, uri: str | None, domain: str | None) -> AgentAddress | None:
    """Where the guest's agent is, if that was said. Raises WrongUsage."""
    if socket is not None and uri is not None:
        raise WrongUsage("libvirt knows the socket of the guest's agent: leave --agent away.", on=vm)
    if socket is not None:
        return AgentAddress(socket=os.path.abspath(socket))
    return AgentAddress(uri=uri, domain=domain or vm) if uri is not None else None


def quieting(context: Context, vm: str, asked: str, agent: AgentAddress | None, host_hook: str | None) -> Quieting | None:
    """What was asked for. Raises WrongUsage, NotFound."""
    if asked not in CONSISTENCIES[1:]:
        raise WrongUsage(f"--consistency {asked}: there are {', '.join(CONSISTENCIES[1:])}.", safe="Nothing was done.")
    if host_hook is not None:
        if asked != "application":
            raise WrongUsage("--host-hook makes applications quiet: it goes with --consistency application.", on=vm)
        if not os.access(host_hook, os.X_OK):
            raise NotFound(f"{host_hook}: no such program.", on=host_hook, safe="Nothing was done.")
    if asked == "crash":
        return None
    if agent is None:
        raise WrongUsage(
            f"--consistency {asked} needs the guest's agent: where is it?",
            on=vm,
            do=["--agent SOCKET: of the channel org.qemu.guest_agent.0, as QEMU's -chardev says"],
        )
    hook = os.path.abspath(host_hook) if host_hook else ""
    return Quieting(QuietOrder(asked, agent, hook), _record(context, vm), lambda why: _warn(context, vm, why))


def thaw_again(context: Context, vm: str) -> None:
    """What a run that was killed may have left frozen."""
    if why := thaw_left(_record(context, vm)):
        _warn(context, vm, why)


def _record(context: Context, vm: str) -> Path:
    return context.state(vm) / "frozen"


def _warn(context: Context, vm: str, why: str) -> None:
    context.output.warn(
        f"{vm}: the guest's file systems MAY STILL BE FROZEN ({why}). Thawing is tried again and again;"
        " by hand: fsfreeze -u in the guest, or virsh domfsthaw"
    )
