# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen restore`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
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
from everywhen.interfaces.cli.group_restore import Into, restore_group
from everywhen.interfaces.cli.libvirt_needed import needing_libvirt
from everywhen.interfaces.cli.restored_words import restored_document, tell_restored
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.services.addresses import parse_address
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import Exit, WrongUsage
from everywhen.services.groups import parse_group
from everywhen.services.opening import open_moment
from everywhen.services.restore import Mode, RestoreOrder, restore
from everywhen.services.returning.wishes import As, Wishes


@app.command("restore", rich_help_panel=GET_BACK)
def restore_command(
    moment: Annotated[
        str | None,
        typer.Argument(
            metavar="MOMENT|group:NAME", help="VM[/DISK][@WHEN], as web1@latest or web1/vda@-2d; or group:NAME[@WHEN]."
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="PATH", help="File, folder for several disks, or - (standard output).")
    ] = None,
    image_format: Annotated[
        str | None,
        typer.Option("--format", help="raw (usual), qcow2, vhd, vhd-fixed, vhdx or vmdk; with --define raw or qcow2."),
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Over what is there, writing only what differs.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Then read back what was written, and compare it.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --in-place, --define or --plan: say what would be done. Write nothing.")
    ] = False,
    define_at: Annotated[
        str | None,
        typer.Option("--define", metavar="URI", help="Define the VM again, as at qemu:///system."),
    ] = None,
    kind: Annotated[
        As, typer.Option("--as", help="new: beside the original; files: disks that are there already.")
    ] = As.original,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Of the domain; else as it was.")] = None,
    storage: Annotated[
        list[str] | None,
        typer.Option("--storage", metavar="[DISK=]POOL|PATH", help="Where disks go; else where they were."),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option("--network", metavar="NAME|none|as-before", help="Of all its cards; none is usual for new."),
    ] = None,
    machine: Annotated[str | None, typer.Option("--machine", metavar="TYPE", help="Machine type; else as it was.")] = None,
    start: Annotated[bool, typer.Option("--start", help="Start it, and wait until its guest is up.")] = False,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="Several VMs, in their order, from a file (TOML; docs/return.md)."),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Refuse a moment that is not exactly the one named.")] = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Disks of a moment as image files, onto devices, or over images; or the whole VM on a hypervisor again (--define)."""
    began = time.monotonic()
    context = context_of(locals())
    if plan is not None:
        other = (to, image_format, define_at, name, storage, network, machine)
        if moment is not None or any(other) or in_place or overwrite or start or kind is not As.original:
            raise WrongUsage("A plan says all of that itself: with --plan go --dry-run, --verify and --exact.", on=str(plan))
        with needing_libvirt(str(plan)):
            from everywhen.interfaces.cli.restore_plan import Carried, carry_out
        return carry_out(context, Carried(plan, repo, exact, verify, dry_run, began))
    if moment is None:
        raise WrongUsage("Which VM? everywhen restore VM[@WHEN] …, or --plan FILE: several, in their order.")
    if define_at is not None:
        if to is not None or in_place:
            raise WrongUsage("--define says itself where disks go (--storage): leave --to and --in-place out.")
        # Only here: most hosts of repositories have no libvirt.
        with needing_libvirt(moment):
            from everywhen.interfaces.cli.define import Definition, define
            from everywhen.interfaces.cli.define_group import define_group
        wishes = Wishes(kind, name, {}, network, image_format, machine, start, overwrite)
        asked = Definition(define_at, wishes, tuple(storage or ()), began, exact, verify, dry_run)
        if (group := parse_group(moment)) is not None:
            return define_group(context, *group, asked)
        return define(context, parse_address(moment), asked)
    if kind is not As.original or name or storage or network or machine or start:
        raise WrongUsage("--as, --name, --storage, --network, --machine and --start go with --define alone.")
    if to is None:
        raise WrongUsage("Where to? --to PATH: image files, or a device. --define URI: a VM on a hypervisor.", on=moment)
    if in_place and overwrite:
        raise WrongUsage("--in-place and --overwrite exclude one another.")
    if dry_run and (verify or not in_place):
        raise WrongUsage("--dry-run goes with --in-place alone: without --overwrite, nothing else that exists is touched.")
    if to == "-" and verify:
        raise WrongUsage("Standard output cannot be read back: leave --verify out.")
    if to == "-" and as_json:
        raise WrongUsage("--json and --to - both want standard output.")
    mode: Mode = "in-place" if in_place else "overwrite" if overwrite else "new"
    _to_images(context, moment, Into(to, image_format or "raw", mode, verify, dry_run), exact=exact)
    return Exit.DONE


def _to_images(context: Context, moment: str, into: Into, *, exact: bool) -> None:
    """Raises Failure."""
    context.output.kept = "The repository was only read. A new file that was not complete is removed."
    if (group := parse_group(moment)) is not None:
        restore_group(context, *group, into, exact=exact)
        return
    to, address = into.folder, parse_address(moment)
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
            into.format,
            into.mode,
            stdout,
            files=address.disk is None,
            state=context.state_folder(),
            verify=into.verify,
            dry_run=into.dry_run,
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
