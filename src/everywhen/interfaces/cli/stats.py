# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen stats`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from everywhen.interfaces.cli.app import (
    LOOK,
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
from everywhen.services.ages import DAY, SECOND, span
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import Exit
from everywhen.services.protect.written import Activity, Amplification, activity, amplification, together
from everywhen.services.sizes import size
from everywhen.services.statistics import GROWTH_DAYS, Statistics, VmFigures, statistics


@app.command("stats", rich_help_panel=LOOK)
def stats(
    names: Annotated[list[str] | None, typer.Argument(metavar="VM", help="In depth: what it shares, what it frees.")] = None,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int | None:
    """How much there is, how much is stored, and how fast it grows.

    history: what all moments would take as plain images side by side, without blocks of zeroes.

    unique: the same with each different block (64 KiB) counted once.

    stored: what the repository takes on its disk: unique blocks, compressed, most of them as differences.

    Blocks are shared by moments and by VMs, so no VM has a size of its own: `stats VM` says what would come free if all
    its moments were dropped (±10 %), and how much of its content other VMs have as well.

    Of VMs that are captured also, over the last 30 days, what is stored for each byte that the guest writes (written as
    zeroes: not counted): journal, for all that was WRITTEN; sealed, with second copies, for what was written in DIFFERENT
    places: a byte counts once between two recovery points, however often it was written, also where it did not change.
    """
    context = context_of(locals())
    with context.repository() as repository:
        catalog = read_catalog(repository)
        named = [catalog.vm(name) for name in names or []]
        repository.refresh()
        with context.progress("stats") as job:
            found = statistics(repository, catalog, named, lambda done, total: job.step("looking at moments", done, total))
        now = repository.surroundings.clock()
        written = {vm.name: activity(repository, vm, now - DAY, now) for vm in named}
        since = now - GROWTH_DAYS * DAY
        amplified = {vm.vm.name: amplification(repository, vm.vm, since) for vm in found.vms}
    context.output.document(_document(found, written, amplified))
    _show(context, found, in_depth=bool(named))
    _show_amplification(context, amplified)
    for name, last_day in written.items():
        if last_day.writes:
            context.output.line(f"{name}, the last 24 hours: {_written(last_day)}")
    for text in catalog.unreadable:
        context.output.warn(text)
    if found.missing:
        context.output.warn(f"{found.missing} chunks that moments need are missing: everywhen verify")
    return Exit.DAMAGED if found.missing or catalog.unreadable else None


def _show(context: Context, found: Statistics, *, in_depth: bool) -> None:
    factor = f"  ({found.logical_bytes / found.stored_bytes:.1f}×)" if found.stored_bytes and found.logical_bytes else ""
    context.output.line(
        f"{size(found.logical_bytes)} of history in {size(found.stored_bytes)}{factor}      "
        f"{found.points:,} moments, {found.chunks:,} different blocks ({size(found.unique_bytes)})"
    )
    if found.growth.stored is not None and found.growth.changed is not None:
        context.output.line(
            f"grows by {size(found.growth.stored)} a day (mean of {found.growth.days:.0f} days), "
            f"{size(found.growth.changed)} a day are changed"
        )
    context.output.line()
    columns = ["VM", "MOMENTS", "HISTORY", "ADDS PER DAY", "CHANGES PER DAY"]
    deep = ["UNIQUE", "SHARED WITH OTHER VMS", "WOULD BE FREED (±10 %)"] if in_depth else []
    rows = []
    for vm in found.vms:
        row = [vm.vm.name, f"{vm.points:,}", size(vm.logical_bytes), _size(vm.growth.stored), _size(vm.growth.changed)]
        rows.append(row + [_size(vm.unique_bytes), _size(vm.shared_bytes), _size(vm.would_free_bytes)][: len(deep)])
    context.output.table(columns + deep, rows, right=(columns + deep)[1:])


def _show_amplification(context: Context, amplified: Mapping[str, Amplification]) -> None:
    captured = [(name, found) for name, found in amplified.items() if found.written]
    if not captured:
        return
    if len(captured) > 1:
        captured.append(("together", together(found for _, found in captured)))
    rows = [
        (name, size(one.written), _times(one.journal, one.of_journal), size(one.different), _times(one.sealed, one.of_sealed))
        for name, one in captured
    ]
    context.output.line()
    columns = ["CAPTURED", "WRITTEN", "JOURNAL", "DIFFERENT", "SEALED"]
    context.output.table(columns, rows, right=columns[1:])
    context.output.line()


def _times(stored: int, factor: float | None) -> str:
    return "-" if factor is None else f"{size(stored)} ({factor:.2f}×)"


def _written(found: Activity) -> str:
    parts = [f"{found.writes:,} writes, {size(found.size)}, in {found.blocks:,} blocks (each counted once a minute)"]
    if found.data:
        parts.append(f"compressed to {100 * found.compressed / found.data:.0f} %")
    if found.worst_ns:
        parts.append(f"a write waited for us {found.median_ns / 1e6:.2g} ms (median), {found.worst_ns / 1e6:.2g} ms (longest)")
    if found.gap_ns:
        parts.append(f"not captured for {span(found.gap_ns)}")
    return "; ".join(parts)


def _size(count: int | None) -> str:
    return "-" if count is None else size(count)


def _document(found: Statistics, written: Mapping[str, Activity], amplified: Mapping[str, Amplification]) -> dict[str, object]:
    return {
        "logical_bytes": found.logical_bytes,
        "unique_bytes": found.unique_bytes,
        "stored_bytes": found.stored_bytes,
        "points": found.points,
        "chunks": found.chunks,
        "missing_chunks": found.missing,
        "stored_bytes_per_day": found.growth.stored,
        "changed_bytes_per_day": found.growth.changed,
        "write_amplification": _amplification_document(together(amplified.values())),
        "vms": [_vm_document(vm, written.get(vm.vm.name), amplified[vm.vm.name]) for vm in found.vms],
    }


def _amplification_document(found: Amplification) -> dict[str, object]:
    return {
        "days": GROWTH_DAYS,
        "written_bytes": found.written,
        "journal_bytes": found.journal,
        "journal_per_written": None if found.of_journal is None else round(found.of_journal, 4),
        "different_bytes": found.different,
        "sealed_bytes": found.sealed,
        "sealed_per_different": None if found.of_sealed is None else round(found.of_sealed, 4),
        "points": found.points,
    }


def _vm_document(vm: VmFigures, last_day: Activity | None, amplified: Amplification) -> dict[str, object]:
    return {
        "vm": vm.vm.name,
        "points": vm.points,
        "logical_bytes": vm.logical_bytes,
        "stored_bytes_per_day": vm.growth.stored,
        "changed_bytes_per_day": vm.growth.changed,
        "unique_bytes": vm.unique_bytes,
        "shared_bytes": vm.shared_bytes,
        "would_free_bytes": vm.would_free_bytes,
        "write_amplification": _amplification_document(amplified),
        "last_24_hours": last_day
        and {
            "writes": last_day.writes,
            "written_bytes": last_day.size,
            "blocks": last_day.blocks,
            "gap_seconds": round(last_day.gap_ns / SECOND, 3),
            "compressed_share": round(last_day.compressed / last_day.data, 4) if last_day.data else None,
            "added_latency_ns": {"median": last_day.median_ns, "worst": last_day.worst_ns} if last_day.worst_ns else None,
        },
    }
