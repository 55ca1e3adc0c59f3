# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen restore`."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated

import typer

from everywhen.interfaces.cli.app import (
    GET_BACK,
    AsJson,
    PassphraseFile,
    ProgressStyle,
    Quiet,
    RecoveryKeyFile,
    Repo,
    app,
    context_of,
)
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.control_socket import NobodyThere, ask
from everywhen.services.addresses import parse_address
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import WrongUsage
from everywhen.services.naming import is_name
from everywhen.services.opening import open_moment
from everywhen.services.restore import Mode, RestoreOrder, restore
from everywhen.services.sizes import size
from everywhen.services.times import local_time, rfc3339


@app.command("restore", rich_help_panel=GET_BACK)
def restore_command(
    moment: Annotated[str, typer.Argument(metavar="MOMENT", help="VM[/DISK][@WHEN], as web1@latest or web1/vda@-2d.")],
    to: Annotated[str, typer.Option("--to", metavar="PATH", help="File, folder for several disks, or - (standard output).")],
    image_format: Annotated[str, typer.Option("--format", help="raw, qcow2, vhd, vhd-fixed, vhdx or vmdk.")] = "raw",
    in_place: Annotated[bool, typer.Option("--in-place", help="Over what is there, writing only what differs.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Refuse a moment that is not exactly the one named.")] = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Disks of a moment as image files, onto devices, or over images."""
    context = context_of(locals())
    if in_place and overwrite:
        raise WrongUsage("--in-place and --overwrite exclude one another.")
    if to == "-" and as_json:
        raise WrongUsage("--json and --to - both want standard output.")
    address = parse_address(moment)
    if address.path is not None:
        raise WrongUsage("This restores disks, not files inside them.", on=moment)
    mode: Mode = "in-place" if in_place else "overwrite" if overwrite else "new"
    context.output.kept = "The repository was only read. A new file that was not complete is removed."
    with context.repository() as repository:
        _ship(context, address.vm)
        catalog = read_catalog(repository)
        now = repository.surroundings.clock()
        vm, opened = open_moment(repository, catalog, address, now_ns=now, zone=context.zone, exact=exact)
        point, found = opened.point, opened.found
        if to != "-":
            context.output.line(found.words(vm.name, context.zone))
        disks = [address.disk] if address.disk else sorted(point.disks)
        stdout = sys.stdout.fileno() if to == "-" else -1
        order = RestoreOrder(vm, opened, disks, to, image_format, mode, stdout, files=address.disk is None)
        with context.progress(f"restore {vm.name}") as job:
            result = restore(repository, order, lambda done, total: job.report(done, total))
    context.output.document(
        {
            "point": point.point,
            "vm": vm.name,
            "time": rfc3339(found.moment.time_ns),
            "writes_after_point": found.writes_after,
            "disks": {
                disk.disk: {
                    "path": disk.path,
                    "size": disk.size,
                    "bytes_data": disk.bytes_data,
                    "bytes_written": disk.bytes_written,
                }
                for disk in result.disks
            },
            "files": result.files,
            "seconds": round(result.seconds, 3),
        }
    )
    for remark in result.remarks:
        context.output.warn(remark)
    if to == "-":
        return
    for disk in result.disks:
        resumed = ", going on from an unfinished restore" if disk.resumed else ""
        context.output.line(
            f"{vm.name}/{disk.disk} of {local_time(found.moment.time_ns, context.zone)} is in {disk.path}: {size(disk.size)}, "
            f"{size(disk.bytes_written)} written{resumed}"
        )
    for path in result.files:
        context.output.line(f"configuration file {path}")
    context.output.line(f"{result.seconds:.1f} s")


def _ship(context: Context, vm: str) -> None:
    """Where the VM is captured on this host, have the newest moments brought into the repository first."""
    if not is_name(vm):
        return  # a hypervisor's name, or no name at all
    with suppress(NobodyThere):
        why = ask(context.state(vm), {"wish": "ship"}).get("error")
        if why:
            context.output.warn(f"{vm}: what was written last is not in the repository yet ({why})")
