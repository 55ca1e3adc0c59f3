# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect`."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from everywhen.formats.point import RecoveryPoint
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
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.progress import Progress
from everywhen.services.ages import SECOND, parse_span
from everywhen.services.protection import ProtectOrder, protect
from everywhen.services.sizes import parse_size


class _Told:
    """Says on standard error how it goes."""

    def __init__(self, context: Context, vm: str, job: Progress) -> None:
        self._context = context
        self._vm = vm
        self._job = job

    def attached(self, disks: list[str]) -> None:
        self._context.output.note(f"{self._vm}: capture attached to {', '.join(disks)}")

    def copying(self, done: int, total: int) -> None:
        self._job.report(done, total)

    def sealed(self, point: RecoveryPoint, records: int) -> None:
        self._context.output.note(f"{self._vm}: recovery point {point.point}, {records:,} writes")

    def waiting(self, why: str) -> None:
        self._context.output.warn(f"{self._vm}: no recovery point could be made ({why}). Capture goes on")

    def lost(self, why: str) -> None:
        self._context.output.warn(
            f"{self._vm}: capture was lost ({why}). What changes is remembered; it begins again by itself"
        )


class _Time:
    """The clock of this machine, and Ctrl-C: once to end in order, twice to end at once."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self.monotonic = time.monotonic
        self.sleep = time.sleep

    def stopped(self, seconds: float) -> bool:
        return self._stopping.wait(seconds)

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        if self._stopping.is_set():
            raise KeyboardInterrupt
        self._stopping.set()


@app.command("protect", rich_help_panel=PROTECT)
def protect_command(
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name of the VM, ours: a-z, 0-9, . _ -")],
    qmp: Annotated[str, typer.Option("--qmp", metavar="SOCKET", help="QEMU's monitor, a unix socket.")],
    folder: Annotated[str, typer.Option("--folder", metavar="DIR", help="Where sockets and the spool go, on this host.")],
    seal_every: Annotated[str, typer.Option("--seal-every", metavar="SPAN", help="Between two recovery points.")] = "5m",
    spool_limit: Annotated[str, typer.Option("--spool-limit", metavar="SIZE", help="Bytes that may wait here.")] = "8G",
    pace: Annotated[str, typer.Option("--pace", metavar="SIZE", help="Copies read so much a second; 0: no limit.")] = "50M",
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Capture every write of a running VM, until Ctrl-C."""
    context = context_of(locals())
    clock = _Time()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, clock.stop)
    order = ProtectOrder(
        monitor=qmp,
        folder=Path(folder).absolute(),  # QEMU has a working folder of its own
        spool_limit=parse_size(spool_limit),
        rate=parse_size(pace) if pace != "0" else 0,
        seal_s=parse_span(seal_every) / SECOND,
    )
    with context.repository() as repository, context.progress(f"first copy of {vm}") as job:
        told = _Told(context, vm, job)
        point = protect(repository, vm, order, told, clock)
    context.output.document({"vm": vm, "point": point.point if point else None})
    context.output.line(f"{vm}: capture ended; newest recovery point {point.point if point else 'none'}")
