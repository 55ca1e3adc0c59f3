# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen doctor`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Annotated

import typer

import everywhen
from everywhen.capture import migration
from everywhen.capture.qmp import CommandFailed, MonitorError, QmpMonitor
from everywhen.capture.socket_access import NoAccess
from everywhen.capture.survey import survey
from everywhen.interfaces.cli.app import LOOK, AsJson, Quiet, Repo, app, context_of
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.output import Output
from everywhen.services.diagnosis import Check, DiskJudged, Verdict, judge, judge_domain, judge_hypervisor, worst
from everywhen.services.failures import Exit, Failed, Failure, NotFound, WrongUsage
from everywhen.services.host_checks import check_clock, check_folder, check_repository
from everywhen.services.naming import is_name
from everywhen.services.sizes import size

_STYLES = {Verdict.YES: "", Verdict.CARE: "warn", Verdict.NO: "bad", Verdict.LEFT_OUT: "faint"}
_ANSWER_S = 4.0
_UNSEEN = "Disks that the guest itself reaches over a network (iSCSI, NFS) cannot be seen from here, and are in no point."
"""Said of every VM: nothing outside a guest tells that it has none."""


@dataclass(frozen=True, slots=True)
class _Vm:
    """A VM that was looked at: its name, and where it was found."""

    name: str
    place: str
    disks: list[DiskJudged]
    checks: list[Check]


@app.command("doctor", rich_help_panel=LOOK)
def doctor(
    vms: Annotated[
        list[str] | None, typer.Argument(metavar="VM", help="Domains of libvirt (all when none is named); or what to call it.")
    ] = None,
    qmp: Annotated[str | None, typer.Option("--qmp", metavar="SOCKET", help="QEMU's monitor, a unix socket.")] = None,
    libvirt: Annotated[
        str | None, typer.Option("--libvirt", metavar="URI", help="libvirt of this host, as qemu:///system.")
    ] = None,
    repo: Repo = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """What can be protected here, what cannot, why, and what to do. Changes nothing."""
    context = context_of(locals())
    found = _looked_at(context, vms or [], qmp, libvirt)
    images = [disk.filename for vm in found for disk in vm.disks]
    checks = _of_host(context, found[0].name if len(found) == 1 and is_name(found[0].name) else "", images)
    everything = [*checks, *(check for vm in found for check in vm.checks)]
    verdict = worst([disk.verdict for vm in found for disk in vm.disks] + [check.verdict for check in everything])
    context.output.document(
        {
            "vms": [_document(vm) for vm in found],
            "checks": [_check_document(check) for check in checks],
            "verdict": verdict,
        }
    )
    for vm in found:
        _show_vm(context.output, vm)
    for check in checks:
        _show_check(context.output, check)
    context.output.line()
    context.output.line("Nothing was changed.")
    return Exit.LESS_THAN_ASKED if verdict is Verdict.NO else Exit.DONE


def _looked_at(context: Context, names: list[str], qmp: str | None, uri: str | None) -> list[_Vm]:
    """Raises Failure."""
    if qmp is not None and uri is not None:
        raise WrongUsage("A VM is reached by its monitor or through libvirt, not by both.")
    if uri is not None:
        return _through_libvirt(context, uri, names)
    if qmp is None:
        if names:
            raise WrongUsage(f"Where does {names[0]} run?", do=["--libvirt URI: libvirt", "--qmp SOCKET: its monitor"])
        return []
    if len(names) > 1 or not all(map(is_name, names)):
        raise WrongUsage(f"A monitor is one VM's; its name may have a-z, 0-9, dot, dash and underscore: {' '.join(names)}.")
    try:
        with QmpMonitor.connect(qmp, _ANSWER_S) as monitor:
            found, why_away = survey(monitor), migration.why_away(monitor)
    except (MonitorError, CommandFailed) as error:
        raise Failed(
            f"The monitor cannot be asked: {error}.",
            on=qmp,
            safe="Nothing was changed.",
            do=[
                "A monitor serves one client at a time, and everywhen protect is one: give QEMU a second -qmp for this.",
                "Is it a QMP monitor, and may this user use it?",
            ],
        ) from error
    checks = judge_hypervisor(found)
    if why_away is not None:
        checks.append(Check("guest", Verdict.NO, why_away, "Protect it where it runs: --qmp with the monitor of that QEMU."))
    return [_Vm(names[0] if names else "the VM", qmp, judge(found, context.state_folder()), checks)]


def _through_libvirt(context: Context, uri: str, names: list[str]) -> list[_Vm]:
    try:
        # Only here: most hosts of repositories have no libvirt.
        from everywhen.capture.domain_survey import barred_by, confined_by, domain_names, survey_domain
        from everywhen.capture.libvirt_host import LibvirtHost, NoDomain
    except ImportError as error:
        raise Failed(
            f"libvirt's Python library cannot be loaded: {error}.",
            safe="Nothing was read or changed.",
            do=["apt install libvirt-dev pkg-config gcc python3-dev, then: pip install 'everywhen[libvirt]'"],
        ) from error
    found = []
    try:
        with LibvirtHost(uri) as host:
            for name in names or domain_names(host):
                domain = host.domain(name)
                told = survey_domain(domain)
                running = domain.runs
                barred = barred_by(domain, context.state(domain.name)) if running else None
                checks = judge_domain(running=running, confined=confined_by(domain), barred=barred)
                checks = judge_hypervisor(told) + checks
                found.append(_Vm(domain.name, uri, judge(told, context.state_folder()), checks))
    except NoDomain as error:
        raise NotFound(f"{uri}: {error}.", on=uri, safe="Nothing was changed.") from error
    except NoAccess as error:
        raise Failed(f"{error}.", on=uri, safe="Nothing was changed.") from error
    except MonitorError as error:
        do = ["May this user use it? As root, or: usermod -aG libvirt USER, and log in again."]
        raise Failed(f"libvirt cannot be asked: {error}.", on=uri, safe="Nothing was changed.", do=do) from error
    return found


def _of_host(context: Context, vm: str, images: list[str]) -> list[Check]:
    checks = check_folder(context.state(vm), images)
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


def _show_vm(output: Output, vm: _Vm) -> None:
    output.line(f"{vm.name} at {vm.place}")
    columns = ["DISK", "PROTECT", "SIZE", "FORMAT", "NODE", "FIRST COPY", "AFTER QEMU'S END"]
    output.table(columns, [_row(disk) for disk in vm.disks], right=["SIZE"])
    for disk in vm.disks:
        for reason in disk.reasons:
            output.line(f"{disk.device}: {reason.verdict}: {reason.why}", style=_STYLES[reason.verdict])
            if reason.do:
                output.line(f"  {reason.do}")
    for check in vm.checks:
        _show_check(output, check)
    wanted = [disk for disk in vm.disks if disk.verdict is not Verdict.LEFT_OUT]
    good = sum(disk.verdict is not Verdict.NO for disk in wanted)
    output.line(f"{vm.name}: {good} of {len(wanted)} disks can be protected. {_UNSEEN}")
    output.line()


def _show_check(output: Output, check: Check) -> None:
    word = "ok" if check.verdict is Verdict.YES else check.verdict
    output.line(f"{check.name}: {word}: {check.words}", style=_STYLES[check.verdict])
    if check.do:
        output.line(f"  {check.do}")


def _row(disk: DiskJudged) -> tuple[str, ...]:
    figures = size(disk.size) if disk.size is not None else "-"
    words = (disk.format, disk.node, disk.first_copy, disk.after_qemu)
    return (disk.device, str(disk.verdict), figures, *(word or "-" for word in words))


def _document(vm: _Vm) -> dict[str, object]:
    return {
        "vm": vm.name,
        "place": vm.place,
        "disks": [_disk_document(disk) for disk in vm.disks],
        "checks": [_check_document(check) for check in vm.checks],
    }


def _check_document(check: Check) -> dict[str, object]:
    return {"check": check.name, "verdict": check.verdict, "words": check.words, "do": check.do}


def _disk_document(disk: DiskJudged) -> dict[str, object]:
    return {
        "device": disk.device,
        "kind": disk.kind,
        "size": disk.size,
        "format": disk.format,
        "node": disk.node,
        "file": disk.filename,
        "first_copy": disk.first_copy,
        "iothread": disk.iothread,
        "after_qemu": disk.after_qemu,
        "verdict": disk.verdict,
        "reasons": [{"verdict": one.verdict, "why": one.why, "do": one.do} for one in disk.reasons],
    }
