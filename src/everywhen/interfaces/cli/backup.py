# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen backup`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from everywhen.interfaces.cli.app import (
    PROTECT,
    AsJson,
    PassphraseFile,
    ProgressStyle,
    Quiet,
    RecoveryKeyFile,
    Repo,
    app,
    context_of,
)
from everywhen.interfaces.cli.completion import write_names
from everywhen.interfaces.cli.named_values import pairs
from everywhen.services.backup import BackupOrder, BackupResult, back_up
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.failures import Exit, WrongUsage
from everywhen.services.sizes import size
from everywhen.services.times import rfc3339


@app.command("backup", rich_help_panel=PROTECT)
def backup(
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name of the VM, ours: a-z, 0-9, . _ -")],
    disks: Annotated[list[str], typer.Argument(metavar="DISK=IMAGE...", help="Disk images or block devices, by disk name.")],
    changed_blocks: Annotated[
        list[str] | None, typer.Option("--changed-blocks", metavar="DISK=FILE", help="Look only at these extents (JSON).")
    ] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="POINT", help="Where the changed blocks begin.")] = None,
    config: Annotated[list[str] | None, typer.Option("--config", metavar="FILE", help="Configuration file to keep.")] = None,
    image_format: Annotated[
        list[str] | None, typer.Option("--image-format", metavar="DISK=FORMAT", help="Instead of detecting it.")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Read images in use, with consistency `none`.")] = False,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Follow parents and data files outside the image's folder.")
    ] = False,
    compression: Annotated[int, typer.Option("--compression", min=-7, max=19, help="zstd level.")] = 1,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int | None:
    """One recovery point of these images."""
    context = context_of(locals())
    order = BackupOrder(
        vm=vm,
        images=pairs(disks, "DISK=IMAGE"),
        state=context.state_folder(),
        files=config or [],
        changed_blocks=pairs(changed_blocks or [], "DISK=FILE"),
        since=since,
        formats=pairs(image_format or [], "DISK=FORMAT"),
        live=live,
        allow_outside=allow_outside,
    )
    unknown = sorted((order.changed_blocks.keys() | order.formats.keys()) - order.images.keys())
    if unknown:
        raise WrongUsage(f"Disk {unknown[0]} is not among the images.", on=unknown[0])
    if since is not None and not changed_blocks:
        raise WrongUsage("--since says where a list of changes begins: it needs --changed-blocks.", on=since)
    with context.repository(compression) as repository:
        context.output.kept = "What was stored so far is kept for a day: the same command goes on from there."
        with context.progress(f"backup {vm}") as job:
            catalog = read_catalog(repository)
            result = back_up(repository, catalog, order, lambda done, total: job.report(done, total))
    write_names(context.env, context.repository_name(), _with(catalog, result))
    context.output.document(_document(result))
    for remark in result.remarks:
        context.output.warn(remark)
    point = result.point
    stored = sum(disk.bytes_stored for disk in point.disks.values())
    changed = sum(disk.bytes_changed for disk in point.disks.values())
    context.output.line(
        f"{vm}: recovery point {point.point}, {len(point.disks)} disk{'s' if len(point.disks) != 1 else ''}, "
        f"{size(changed)} changed, {size(stored)} stored, {result.seconds:.1f} s ({point.reached})"
    )
    for disk, block in result.misses.items():
        context.output.warn(
            f"{vm}/{disk}: block {block} had changed, but the list of changes did not name it. The whole disk was "
            "compared by hash; the point is right, the list is not"
        )
    if result.misses:
        return Exit.DAMAGED
    if point.why:
        context.output.warn(f"{vm}: consistency is `{point.reached}`: an image was {point.why}")
        return None if live else Exit.LESS_THAN_ASKED
    return None


def _with(catalog: Catalog, result: BackupResult) -> Catalog:
    """The catalog as it is after the backup, without asking the store again."""
    vms = catalog.vms if result.vm in catalog.vms else [*catalog.vms, result.vm]
    return replace(catalog, vms=vms, points=[*catalog.points, result.point])


def _document(result: BackupResult) -> dict[str, object]:
    point = result.point
    disks = {
        name: {
            "size": disk.tree.size,
            "format": disk.format,
            "bytes_read": disk.bytes_read,
            "bytes_changed": disk.bytes_changed,
            "bytes_stored": disk.bytes_stored,
        }
        for name, disk in point.disks.items()
    }
    sums = {key: sum(int(str(disk[key])) for disk in disks.values()) for key in ("size", "bytes_read", "bytes_changed")}
    return {
        "point": point.point,
        "vm": result.vm.name,
        "time": rfc3339(point.time_ns),
        "consistency": point.reached,
        "why": point.why,
        "disks": disks,
        **sums,
        "bytes_stored": sum(disk.bytes_stored for disk in point.disks.values()),
        "misses": result.misses,
        "seconds": round(result.seconds, 3),
    }
