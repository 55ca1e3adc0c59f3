# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen pause` and `everywhen resume`: the guest's disks without our taps for a while, as for a snapshot or a resize."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from everywhen.capture.agent import AgentError
from everywhen.capture.agent_address import AgentAddress
from everywhen.capture.trimming import trim
from everywhen.interfaces.cli.app import PROTECT, AsJson, Quiet, app, context_of
from everywhen.interfaces.cli.asking import ask_capture
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.control_socket import NoAnswer
from everywhen.services.ages import SECOND, parse_span, span
from everywhen.services.failures import Failed, Failure, NotFound, WrongUsage
from everywhen.services.protect.wishes import LONGEST_PAUSE_S
from everywhen.services.sizes import size
from everywhen.services.times import local_time

_TRIM_S = 900.0
"""A round over all file systems of a guest with large disks takes minutes."""
_BY_SIGNAL = 128
"""What a shell adds to the number of the signal that ended a command."""


@app.command("pause", rich_help_panel=PROTECT)
def pause(
    vm: Annotated[str, typer.Argument(metavar="VM", help="A VM that is captured on this host.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- COMMAND...]", help="Run this in the pause, and end the pause with it."),
    ] = None,
    length: Annotated[str, typer.Option("--for", metavar="SPAN", help="It ends by itself after so long (2h).")] = "1h",
    trims: Annotated[
        bool, typer.Option("--trim", help="Have the guest's agent give back unused space in it, and end it with that.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int | None:
    """Take capture off a VM for a while; what changes meanwhile is remembered."""
    context = context_of(locals())
    ns = parse_span(length)
    if not 0 < ns <= LONGEST_PAUSE_S * SECOND:
        raise WrongUsage(
            f"--for {length}: a pause lasts up to {span(int(LONGEST_PAUSE_S * SECOND))}.", safe="Nothing was done."
        )
    if command and shutil.which(command[0]) is None:
        raise NotFound(f"{command[0]}: no such command.", on=command[0], safe=f"{vm} was not paused.")
    request = {"wish": "pause", "seconds": ns / SECOND}
    if trims:
        if command:
            raise WrongUsage("--trim or a command: a pause is for one of them.", safe=f"{vm} was not paused.")
        _trim(context, vm, request)
        return None
    if command:
        return _around(context, vm, request, command)
    with _taken_back(context, vm):
        ask_capture(context, vm, request)
    until = ask_capture(context, vm, {"wish": "status"}).get("until_ns")
    context.output.document({"vm": vm, "paused_seconds": ns / SECOND})
    ends = f"until {local_time(until, context.zone)}" if until else f"for {span(ns)}"
    context.output.line(f"{vm}: our taps are off its disks {ends}; what changes is remembered.")
    context.output.line(f"  earlier:  everywhen resume {vm}")
    return None


@app.command("resume", rich_help_panel=PROTECT)
def resume(
    vm: Annotated[str, typer.Argument(metavar="VM", help="A VM whose capture is paused.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """End a pause, or have a lost capture begin again at once."""
    context = context_of(locals())
    resumed = bool(ask_capture(context, vm, {"wish": "resume"})["resumed"])
    context.output.document({"vm": vm, "resumed": resumed})
    words = "capture begins again; what changed meanwhile is read now" if resumed else "it was not paused"
    context.output.line(f"{vm}: {words}.")


def _around(context: Context, vm: str, request: dict[str, object], command: list[str]) -> int:
    """Pause, run the command, resume; its exit code."""
    with _taken_back(context, vm):
        ask_capture(context, vm, request)
        context.output.note(f"{vm}: paused; runs {command[0]}")
        # Standard output is for the one document.
        process = None
        try:
            with _signals_wait():
                process = subprocess.Popen(command, stdout=sys.stderr if context.output.as_json else None)
            ended = process.wait()
        except KeyboardInterrupt as interrupt:
            context.output.kept = f"Capture of {vm} begins again."
            if process is not None:
                for number in interrupt.args:  # Ctrl-C the terminal has sent to both
                    process.send_signal(number)
                process.wait()
            raise
    if not _resume(context, vm):
        context.output.warn(f"{vm}: the pause had ended by itself before {command[0]} did: use a longer --for")
    code = _BY_SIGNAL - ended if ended < 0 else ended
    context.output.document({"vm": vm, "command": command, "exit": code})
    return code


def _trim(context: Context, vm: str, request: dict[str, object]) -> None:
    """Pause, have the guest trim, resume."""
    where = ask_capture(context, vm, {"wish": "status"}).get("agent")
    if where is None:
        raise WrongUsage(
            f"Nobody has said where the agent of {vm} is.",
            on=vm,
            safe=f"{vm} was not paused.",
            do=[f"everywhen protect {vm} … --agent SOCKET", f"everywhen pause {vm} -- COMMAND   that has the guest trim"],
        )
    began = time.monotonic()
    with _taken_back(context, vm):
        ask_capture(context, vm, request)
        try:
            with AgentAddress.from_json(where).agent() as agent:
                done = trim(agent, _TRIM_S)
        except AgentError as error:
            raise Failed(f"{vm} was not trimmed: {error}.", on=vm, safe="Capture begins again.") from error
        finally:
            _resume(context, vm)
    seconds = time.monotonic() - began
    context.output.document({"vm": vm, "trimmed": done.paths, "not_trimmed": done.errors, "paused_seconds": round(seconds, 3)})
    for path, why in done.errors.items():
        context.output.warn(f"{vm}: {path} was not trimmed: {why}")
    trimmed = ", ".join(f"{path} {size(count)}" for path, count in done.paths.items())
    context.output.line(f"{vm}: unused in the guest and given back: {trimmed or 'nothing'}; paused for {seconds:.1f} s.")


@contextmanager
def _signals_wait() -> Iterator[None]:
    """One that comes here comes at the end of it: a command that was begun is not left alone, unknown to who would end it."""
    came: list[int] = []

    def later(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, later) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


@contextmanager
def _taken_back(context: Context, vm: str) -> Iterator[None]:
    """Whatever ends this early ends the pause."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except (KeyboardInterrupt, OSError):
        _resume(context, vm)
        raise
    except Failure as failure:
        # One that answers has said that it is not paused. One that does not may hear of it later than we wait.
        if isinstance(failure.__cause__, NoAnswer):
            _resume(context, vm)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resume(context: Context, vm: str) -> bool:
    """Whether it was still paused."""
    try:
        return bool(ask_capture(context, vm, {"wish": "resume"})["resumed"])
    except Failure as failure:
        context.output.warn(f"{vm}: capture does not go on: {failure.what}")
        return True
