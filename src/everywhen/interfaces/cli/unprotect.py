# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen unprotect`."""

from __future__ import annotations

from typing import Annotated

import typer

from everywhen.interfaces import failed_capture
from everywhen.interfaces.cli.app import PROTECT, AsJson, Quiet, app, context_of
from everywhen.interfaces.cli.asking import LOOK_S, ask_capture
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.hypervisors import Domain, Libvirt, Qmp, hypervisor
from everywhen.interfaces.cli.shipping import left_in_spool
from everywhen.interfaces.control_socket import NoAnswer, NobodyThere, ask, forget
from everywhen.services.failures import Busy, Failed, NotFound
from everywhen.services.naming import is_name
from everywhen.services.protect import unfinished_copy
from everywhen.services.protect.capture_order import ENDS
from everywhen.services.protect.withdrawal import withdraw


@app.command("unprotect", rich_help_panel=PROTECT)
def unprotect(
    vm: Annotated[str, typer.Argument(metavar="VM", help="A VM that is captured on this host, or was.")],
    qmp: Qmp = None,
    libvirt: Libvirt = None,
    domain: Domain = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """End capture and leave nothing of ours with the VM; its moments stay."""
    context = context_of(locals())
    through_capture = qmp is None and libvirt is None
    taken_off = _end(context, vm) if through_capture else _clear(context, vm, qmp, libvirt, domain)
    context.output.document({"vm": vm, "bitmaps_taken_off": taken_off})
    context.output.line(f"{vm}: nothing of ours is left with it. Its moments stay: everywhen points {vm}")


def _end(context: Context, vm: str) -> int:
    """Through the capture that runs."""
    try:
        answer = ask_capture(context, vm, {"wish": "end"})
    except NotFound as error:
        if is_name(vm):
            failed_capture.forget(context.state(vm))  # whoever says this does not want it to go on
        error.do = [
            f"Did a capture of a VM that runs leave something? everywhen unprotect {vm} --qmp SOCKET (or --libvirt URI)",
            "A QEMU that has ended keeps nothing of ours.",
        ]
        raise
    if why := answer.get("not_in_a_point"):
        context.output.warn(f"{vm}: the last recovery point could not be made ({why})")
    return int(answer["taken_off"])


def _clear(context: Context, vm: str, qmp: str | None, libvirt: str | None, domain: str | None) -> int:
    """What a capture that was killed has left. Not under one that runs: it would take itself for lost."""
    place = hypervisor(vm, qmp, libvirt, domain)
    if is_name(vm) and _runs(context, vm):
        raise Busy(f"A capture of {vm} runs on this host.", on=vm, safe="Nothing was done.", do=[f"everywhen unprotect {vm}"])
    try:
        taken_off = withdraw(place)
    except ENDS as error:
        raise Failed(f"{place.place}: {error}.", on=vm, do=["A QEMU that has ended keeps nothing of ours."]) from error
    if is_name(vm):
        forget(context.state(vm))
        failed_capture.forget(context.state(vm))
        unfinished_copy.forget(context.state(vm))
        if left_in_spool(context, vm):
            folder = context.state(vm)
            context.output.warn(
                f"{vm}: what was written last is not in the repository, but in {folder / 'spool'}. It is brought in by "
                f"everywhen spool import {folder}; then that folder can be removed"
            )
    return taken_off


def _runs(context: Context, vm: str) -> bool:
    try:
        ask(context.state(vm), {"wish": "status"}, patience_s=LOOK_S)
    except NoAnswer:
        pass
    except NobodyThere:
        return False
    return True
