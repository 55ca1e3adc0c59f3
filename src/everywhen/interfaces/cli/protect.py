# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect`."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from everywhen.formats.point import RecoveryPoint
from everywhen.interfaces import failed_capture
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
from everywhen.interfaces.cli.hypervisors import Domain, Libvirt, Qmp, hypervisor
from everywhen.interfaces.cli.progress import Progress
from everywhen.interfaces.cli.quieting import Agent, AskedFor, HostHook, agent_address, quieting, thaw_again
from everywhen.interfaces.control_socket import Listener
from everywhen.interfaces.service_manager import ServiceManager
from everywhen.interfaces.service_words import ServiceWords
from everywhen.repository.repository import Repository
from everywhen.services.ages import SECOND, parse_span, span
from everywhen.services.failures import Failure, WrongUsage
from everywhen.services.naming import is_name
from everywhen.services.protect.capture_order import CaptureOrder, Figures, Time
from everywhen.services.protect.capture_state import CaptureState
from everywhen.services.protect.local_recipient import LocalRecipient
from everywhen.services.protect.protection import protect
from everywhen.services.sizes import parse_size, size


class _Told:
    """Says on standard error how it goes."""

    def __init__(self, context: Context, vm: str, *, every_write: bool) -> None:
        self._context = context
        self._vm = vm
        self._every_write = every_write
        self.unfinished = (0, 0)
        """Bytes of a copy that was interrupted which need not be read again, and of how many."""
        self._job: Progress | None = None
        self._shown = ExitStack()

    def not_copying(self) -> None:
        """A copy is over, or given up: the next one has a line, a rate and a rest of its own."""
        self._job = None
        self._shown.close()

    def attached(self, disks: list[str], left_out: Mapping[str, str]) -> None:
        self.not_copying()
        besides = "; ".join(f"{name} ({why})" for name, why in left_out.items())
        self._context.output.note(
            f"{self._vm}: capture attached to {', '.join(disks)}" + (f". Not captured: {besides}" if besides else "")
        )

    def copying(self, done: int, total: int) -> None:
        if total:  # else there is nothing to look at
            self._job = self._job or self._shown.enter_context(self._context.progress(f"copy of {self._vm}"))
            self._job.report(done, total)

    def interrupted(self, kept: int, total: int) -> None:
        self.unfinished = kept, total

    def sealed(self, point: RecoveryPoint, writes: int) -> None:
        self.not_copying()
        changed = size(sum(disk.bytes_changed for disk in point.disks.values()))
        amount = f"{writes:,} writes" if self._every_write else f"{changed} changed"
        self._context.output.note(f"{self._vm}: recovery point {point.point}, {amount}{_beside_crash(point)}")

    def measured(self, figures: Figures) -> None:
        """For `status`: it changes all the time."""

    def shipped(self) -> None:
        """Nobody wants to read that every minute."""

    def paused(self, seconds: float) -> None:
        self.not_copying()
        self._context.output.note(f"{self._vm}: paused for {span(round(seconds * SECOND))}; what changes is remembered")

    def waiting(self, why: str) -> None:
        self._context.output.warn(f"{self._vm}: no recovery point could be made ({why}). Capture goes on")

    def left_behind(self, what: str) -> None:
        self._context.output.warn(f"{self._vm}: {what}")

    def displaced(self, why: str) -> None:
        self.not_copying()
        self._context.output.warn(
            f"{self._vm}: {why}. This run stands aside: its taps are off, and it makes no recovery points. What it captured is "
            f"kept, and the VM runs on. Is this the run that should go on? End the other one, then: everywhen resume {self._vm}"
        )

    def off(self, why: str, complete: RecoveryPoint | None) -> None:
        self.not_copying()
        sync = f" In sync since recovery point {complete.point}." if complete else ""
        self._context.output.note(f"{self._vm}: waiting for the VM ({why}).{sync}")

    def alive(self) -> None:
        """Nothing to say."""

    def lost(self, why: str) -> None:
        self.not_copying()
        self._context.output.warn(
            f"{self._vm}: capture was lost ({why}). It begins again by itself, and reads what changed, or all where nothing "
            "remembers that"
        )


_LEAST_SPOOL = 1_000_000
"""Bytes: some of the largest writes that QEMU sends at once."""


def _beside_crash(point: RecoveryPoint) -> str:
    """The consistency, where more than crash consistency was asked for."""
    if point.asked == "crash":
        return ""
    return f", {point.reached}-consistent" + (f" ({point.why})" if point.why else "")


@app.command("protect", rich_help_panel=PROTECT)
def protect_command(
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name of the VM, ours: a-z, 0-9, . _ -")],
    qmp: Qmp = None,
    libvirt: Libvirt = None,
    domain: Domain = None,
    consistency: AskedFor = "crash",
    agent: Agent = None,
    host_hook: HostHook = None,
    disk: Annotated[
        list[str] | None,
        typer.Option("--disk", metavar="DISK[=NODE]", help="Only this one, found by its name or QEMU's node. Repeatable."),
    ] = None,
    seal_every: Annotated[str, typer.Option("--seal-every", metavar="SPAN", help="Between two recovery points.")] = "5m",
    spool_limit: Annotated[str, typer.Option("--spool-limit", metavar="SIZE", help="Bytes that may wait here.")] = "8G",
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="NAME", help="Of VMs that have points of the same instants; '' for none. Is kept."),
    ] = None,
    interval: Annotated[
        str | None,
        typer.Option("--interval", metavar="SPAN", help="Points alone, so far apart, instead of every write: for slow disks."),
    ] = None,
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
    context.output.unheard()
    manager = ServiceManager.of(context.env)
    address = agent_address(vm, agent, libvirt, domain)
    calm = quieting(context, vm, consistency, address, host_hook)
    if (apart_points := parse_span(seal_every)) < SECOND:
        raise WrongUsage(f"--seal-every {seal_every}: points are at least a second apart.", on=seal_every)
    if (room := parse_size(spool_limit)) < _LEAST_SPOOL:
        raise WrongUsage(f"--spool-limit {spool_limit}: at least 1M.", on=spool_limit)
    order = CaptureOrder(
        hypervisor=hypervisor(vm, qmp, libvirt, domain),
        folder=context.state(vm),
        spool_limit=room,
        rate=parse_size(pace) if pace != "0" else 0,
        seal_s=apart_points / SECOND,
        quieting=calm,
        disks=_disks(disk or []),
        waits=libvirt is not None or manager.there,
        group=group,
        interval_s=(apart := _apart(interval, group)) / SECOND,
    )
    thaw_again(context, vm)
    with context.repository() as repository, ExitStack() as stack:
        where = {"agent": asdict(address) if address else None}
        identity = {"vm": vm, "repository": repository.id.hex(), "interval_ns": apart, **where}
        said = _Told(context, vm, every_write=not apart)
        stack.callback(said.not_copying)
        told = ServiceWords(said, manager, time.monotonic, span(apart) if apart else "")
        state = CaptureState(told, repository.surroundings.clock, identity)
        wishes = stack.enter_context(Listener(order.folder, state.document))

        def stop(number: int, _frame: FrameType | None) -> None:
            if wishes.ending:
                if number == signal.SIGHUP:
                    return  # of a terminal that is closed there are two: the kernel's, and the shell's
                raise KeyboardInterrupt  # twice: end at once
            manager.tell(STOPPING="1", STATUS="Making the last recovery point")
            wishes.end()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, stop)
        with _noted(order.folder, repository):
            point = protect(LocalRecipient(repository), vm, order, state, Time(time.monotonic, time.sleep), wishes)
    context.output.document({"vm": vm, "point": point.point if point else None})
    context.output.line(f"{vm}: capture ended; newest recovery point {point.point if point else 'none'}")
    kept, total = said.unfinished
    if kept and wishes.end_wish is None:  # with `unprotect` the bitmaps go
        context.output.note(
            f"Stopped. {size(kept)} of {size(total)} are stored and will not be read again, unless the VM is started anew. "
            "Capture is detached, the VM runs on. Go on with the same command."
        )


@contextmanager
def _noted(folder: Path, repository: Repository) -> Iterator[None]:
    """Let `status` know of an end by an error: whoever reads what this run says may be nobody."""
    failed_capture.forget(folder)
    try:
        yield
    except Exception as error:
        why = error.what if isinstance(error, Failure) else str(error) or type(error).__name__
        now = repository.surroundings.clock()
        with suppress(OSError):  # the error itself is what is to be told
            failed_capture.note(folder, failed_capture.FailedCapture(now, why.rstrip("."), repository.id.hex()))
        raise


def _apart(interval: str | None, group: str | None) -> int:
    """Nanoseconds between two points where these alone are wanted; 0 where every write is. Raises WrongUsage."""
    apart = parse_span(interval) if interval is not None else 0
    if apart and group:
        raise WrongUsage("--interval and --group: only where every write is captured do VMs have points of the same instants.")
    if interval is not None and apart < SECOND:
        raise WrongUsage(f"--interval {interval}: points are at least a second apart.", on=interval)
    return apart


def _disks(given: list[str]) -> dict[str, str]:
    """Names of disks, with nodes where they were given. Raises WrongUsage."""
    found: dict[str, str] = {}
    for item in given:
        name, equals, node = item.partition("=")
        if not is_name(name) or (equals and not node):
            raise WrongUsage(f'"{item}" is not DISK or DISK=NODE; a name has a-z, 0-9, dot, dash and underscore.', on=item)
        if name in found:
            raise WrongUsage(f'"{name}" is given twice.', on=item)
        found[name] = node
    return found
