# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen doctor`."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

import everywhen
from everywhen.capture.qmp import CommandFailed, MonitorError, QmpMonitor
from everywhen.capture.survey import survey
from everywhen.interfaces.cli.app import LOOK, AsJson, Quiet, Repo, app, context_of
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.output import Output
from everywhen.services.diagnosis import Check, DiskJudged, Verdict, judge, judge_hypervisor, worst
from everywhen.services.failures import Exit, Failed, Failure, WrongUsage
from everywhen.services.host_checks import check_clock, check_folder, check_repository
from everywhen.services.naming import is_name
from everywhen.services.sizes import size

_STYLES = {Verdict.YES: "", Verdict.CARE: "warn", Verdict.NO: "bad", Verdict.LEFT_OUT: "faint"}
_ANSWER_S = 5.0
_UNSEEN = "Disks that the guest itself reaches over a network (iSCSI, NFS) cannot be seen from here."


@app.command("doctor", rich_help_panel=LOOK)
def doctor(
    vm: Annotated[str | None, typer.Argument(metavar="VM", help="What to call it here.")] = None,
    qmp: Annotated[str | None, typer.Option("--qmp", metavar="SOCKET", help="QEMU's monitor, a unix socket.")] = None,
    repo: Repo = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """What can be protected here, what cannot, why, and what to do. Changes nothing."""
    context = context_of(locals())
    if vm is not None and not is_name(vm):
        raise WrongUsage(f'"{vm}" is not a name for a VM: use a-z, 0-9, dot, dash and underscore.', on=vm)
    if vm is not None and qmp is None:
        raise WrongUsage(f"Where does {vm} run?", do=["--qmp SOCKET: its monitor"])
    disks, checks = _asked(qmp) if qmp is not None else ([], [])
    checks += _of_host(context, vm, [disk.filename for disk in disks])
    verdict = worst([*(disk.verdict for disk in disks), *(check.verdict for check in checks)])
    context.output.document(
        {
            "vm": vm,
            "monitor": qmp,
            "disks": [_document(disk) for disk in disks],
            "checks": [{"check": one.name, "verdict": one.verdict, "words": one.words, "do": one.do} for one in checks],
            "verdict": verdict,
        }
    )
    _show(context.output, vm or "The VM", disks, checks)
    return Exit.LESS_THAN_ASKED if verdict is Verdict.NO else Exit.DONE


def _asked(socket: str) -> tuple[list[DiskJudged], list[Check]]:
    try:
        with QmpMonitor.connect(socket, _ANSWER_S) as monitor:
            found = survey(monitor)
    except (MonitorError, CommandFailed) as error:
        raise Failed(
            f"The monitor cannot be asked: {error}.",
            on=socket,
            safe="Nothing was changed.",
            do=[
                "A monitor serves one client at a time, and everywhen protect is one: give QEMU a second -qmp for this.",
                "Is it a QMP monitor, and may this user use it?",
            ],
        ) from error
    return judge(found), judge_hypervisor(found)


def _of_host(context: Context, vm: str | None, images: list[str]) -> list[Check]:
    checks = check_folder(context.state(vm or ""), images)
    not_before = os.stat(everywhen.__file__).st_mtime_ns
    if context.repo or context.env.get("EVERYWHEN_REPO"):
        try:
            found, created = check_repository(context.store(), images)
        except Failure as failure:
            checks.append(Check("repository", Verdict.NO, failure.what, "; ".join(failure.do)))
        else:
            checks += found
            not_before = max(not_before, created)
    return [*checks, check_clock(time.time_ns(), not_before)]


def _show(output: Output, vm: str, disks: list[DiskJudged], checks: list[Check]) -> None:
    if disks:
        columns = ["DISK", "SIZE", "FORMAT", "NODE", "FIRST COPY", "AFTER QEMU'S END", "PROTECT"]
        output.table(columns, [_row(disk) for disk in disks], right=["SIZE"])
        output.line()
        for disk in disks:
            for reason in disk.reasons:
                output.line(f"{disk.device}: {reason.verdict}: {reason.why}", style=_STYLES[reason.verdict])
                if reason.do:
                    output.line(f"  {reason.do}")
    for check in checks:
        word = "ok" if check.verdict is Verdict.YES else check.verdict
        output.line(f"{check.name}: {word}: {check.words}", style=_STYLES[check.verdict])
        if check.do:
            output.line(f"  {check.do}")
    output.line()
    if disks:
        wanted = [disk for disk in disks if disk.verdict is not Verdict.LEFT_OUT]
        good = sum(disk.verdict is not Verdict.NO for disk in wanted)
        output.line(f"{vm}: {good} of {len(wanted)} disks can be protected. {_UNSEEN}")
    output.line("Nothing was changed.")


def _row(disk: DiskJudged) -> tuple[str, ...]:
    figures = size(disk.size) if disk.size is not None else "-"
    words = (disk.format, disk.node, disk.first_copy, disk.after_qemu)
    return (disk.device, figures, *(word or "-" for word in words), str(disk.verdict))


def _document(disk: DiskJudged) -> dict[str, object]:
    return {
        "device": disk.device,
        "kind": disk.kind,
        "size": disk.size,
        "format": disk.format,
        "node": disk.node,
        "file": disk.filename,
        "first_copy": disk.first_copy,
        "after_qemu": disk.after_qemu,
        "verdict": disk.verdict,
        "reasons": [{"verdict": one.verdict, "why": one.why, "do": one.do} for one in disk.reasons],
    }
