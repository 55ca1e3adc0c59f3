# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen restore`."""

from __future__ import annotations

import sys
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
from everywhen.interfaces.cli.group_restore import Into, restore_group
from everywhen.interfaces.cli.restored_words import restored_document, tell_restored
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.services.addresses import parse_address
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import WrongUsage
from everywhen.services.groups import parse_group
from everywhen.services.opening import open_moment
from everywhen.services.restore import Mode, RestoreOrder, restore


@app.command("restore", rich_help_panel=GET_BACK)
def restore_command(
    moment: Annotated[
        str,
        typer.Argument(
            metavar="MOMENT|group:NAME", help="VM[/DISK][@WHEN], as web1@latest or web1/vda@-2d; or group:NAME[@WHEN]."
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="PATH", help="File, folder for several disks, or - (standard output).")],
    image_format: Annotated[str, typer.Option("--format", help="raw, qcow2, vhd, vhd-fixed, vhdx or vmdk.")] = "raw",
    in_place: Annotated[bool, typer.Option("--in-place", help="Over what is there, writing only what differs.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Then read back what was written, and compare it.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --in-place: say what would be written. Write nothing.")
    ] = False,
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
    if dry_run and (verify or not in_place):
        raise WrongUsage("--dry-run goes with --in-place alone: without --overwrite, nothing else that exists is touched.")
    if to == "-" and verify:
        raise WrongUsage("Standard output cannot be read back: leave --verify out.")
    if to == "-" and as_json:
        raise WrongUsage("--json and --to - both want standard output.")
    mode: Mode = "in-place" if in_place else "overwrite" if overwrite else "new"
    context.output.kept = "The repository was only read. A new file that was not complete is removed."
    if (group := parse_group(moment)) is not None:
        restore_group(context, *group, Into(to, image_format, mode, verify, dry_run), exact=exact)
        return
    address = parse_address(moment)
    if address.path is not None:
        raise WrongUsage("This restores disks, not files inside them.", on=moment)
    with context.repository() as repository:
        ship_newest(context, address.vm)
        catalog = read_catalog(repository)
        now = repository.surroundings.clock()
        vm, opened = open_moment(repository, catalog, address, now_ns=now, zone=context.zone, exact=exact)
        if to != "-":
            context.output.line(opened.found.words(vm.name, context.zone))
        disks = [address.disk] if address.disk else sorted(opened.point.disks)
        stdout = sys.stdout.fileno() if to == "-" else -1
        order = RestoreOrder(
            vm,
            opened,
            disks,
            to,
            image_format,
            mode,
            stdout,
            files=address.disk is None,
            state=context.state_folder(),
            verify=verify,
            dry_run=dry_run,
        )
        with context.progress(f"restore {vm.name}") as job:
            result = restore(repository, order, lambda done, total: job.report(done, total))
    context.output.document(restored_document(vm.name, opened, result))
    for remark in result.remarks:
        context.output.warn(remark)
    if to == "-":
        return
    tell_restored(context, vm.name, opened, result)
    context.output.line(f"{result.seconds:.1f} s")
