# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a restore of a VM says, for people and for programs."""

from __future__ import annotations

from everywhen.interfaces.cli.context import Context
from everywhen.services.opening import OpenedMoment
from everywhen.services.restore import RestoreResult
from everywhen.services.sizes import size
from everywhen.services.times import local_time, rfc3339


def restored_document(vm: str, opened: OpenedMoment, result: RestoreResult) -> dict[str, object]:
    """For programs."""
    return {
        "point": opened.point.point,
        "vm": vm,
        "time": rfc3339(opened.found.moment.time_ns),
        "writes_after_point": opened.found.writes_after,
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
        "verified": result.verified,
        "dry_run": result.dry_run,
    }


def tell_restored(context: Context, vm: str, opened: OpenedMoment, result: RestoreResult) -> None:
    """What is where now."""
    when = local_time(opened.found.moment.time_ns, context.zone)
    for disk in result.disks:
        if result.dry_run:
            what = (
                f"{size(disk.bytes_written)} of {size(disk.size)} differ and would be written" if disk.bytes_written else "same"
            )
            context.output.line(f"{disk.path}, compared with {vm}/{disk.disk} of {when}: {what}. Nothing was done (--dry-run).")
            continue
        resumed = ", going on from an unfinished restore" if disk.resumed else ""
        context.output.line(
            f"{vm}/{disk.disk} of {when} is in {disk.path}: {size(disk.size)}, {size(disk.bytes_written)} written{resumed}"
            + (", read back and compared" if result.verified else "")
        )
    for path in result.files:
        context.output.line(f"configuration file {path}")
