# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen boot`: a copy of a VM, started from the backup."""

from __future__ import annotations

import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from everywhen.capture.agent_socket import AgentSocket
from everywhen.capture.qmp import QmpMonitor
from everywhen.interfaces.cli.app import (
    GET_BACK,
    AsJson,
    DryRun,
    PassphraseFile,
    ProgressStyle,
    Quiet,
    RecoveryKeyFile,
    Repo,
    app,
    context_of,
)
from everywhen.interfaces.cli.boot_words import Told
from everywhen.interfaces.cli.console import Console, guest_console
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.libvirt_needed import needing_libvirt
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.interfaces.nbd_exports import MomentExports, forgotten, kept
from everywhen.interfaces.sockets import unix_socket
from everywhen.nbd.served_client import Terms
from everywhen.nbd.serving import NbdServer
from everywhen.services.addresses import Address, parse_address
from everywhen.services.ages import SECOND, parse_span
from everywhen.services.boot.agent_watch import agent_watched
from everywhen.services.boot.arguments import Places, arguments
from everywhen.services.boot.emulator import BootedCopy, Emulator, State, kvm_opens
from everywhen.services.boot.machine import Bus
from everywhen.services.boot.plan import Plan, Wishes, planned
from everywhen.services.boot.sight import Prompt
from everywhen.services.definition_files import files_of
from everywhen.services.failures import Exit, Failed, WrongUsage
from everywhen.services.sizes import parse_size
from everywhen.services.view.moments import FAILURES, OpenMoments

_RECEIVE = 1 << 16
_SEEN, _OVER = b"s", b"o"
"""What the loop is woken with: the agent has answered; a signal says that it is enough."""
_MOST_CPUS = 255
_NBD, _AGENT = "nbd", "agent"
"""Names of sockets in the copy's folder."""


_NETWORKS = ("none", "user")
"""What a copy reaches: nothing, or what this host reaches."""


@app.command("boot", rich_help_panel=GET_BACK)
def boot(
    moment: Annotated[str, typer.Argument(metavar="MOMENT", help="As web1@-10m; with a disk, web1/vda@-10m, that disk alone.")],
    keep_in: Annotated[
        str | None, typer.Option("--keep-in", metavar="DIR", help="Keep what it writes there, and go on with it next time.")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option("--network", metavar="user|none", help="user: it reaches what this host reaches; else nothing."),
    ] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="As 2GiB; else as it had.")] = None,
    cpus: Annotated[int | None, typer.Option("--cpus", min=1, max=_MOST_CPUS, help="Else as it had.")] = None,
    bus: Annotated[Bus | None, typer.Option("--bus", help="Of all disks; else as it had, or virtio.")] = None,
    wait: Annotated[str, typer.Option("--wait", metavar="SPAN", help="So long it may take until it is up.")] = "5m",
    until_up: Annotated[
        bool, typer.Option("--until-up", help="End it when it is up; exit code 1 if it was not in time.")
    ] = False,
    define: Annotated[
        str | None, typer.Option("--define", metavar="URI", help="With --production: as qemu:///system, this host's libvirt.")
    ] = None,
    production: Annotated[
        bool,
        typer.Option(
            "--production", help="No copy: the VM itself, at once, while it moves to its own storage. No write is lost."
        ),
    ] = False,
    storage: Annotated[
        list[str] | None,
        typer.Option("--storage", metavar="[DISK=]POOL|PATH", help="With --production: where it moves; else where it was."),
    ] = None,
    pace: Annotated[
        str,
        typer.Option("--pace", metavar="SIZE", help="With --production: each disk is copied so fast a second; 0: no limit."),
    ] = "0",
    back: Annotated[bool, typer.Option("--back", help="With --production: stop it, and take back what was made.")] = False,
    dry_run: DryRun = False,
    repo: Repo = None,
    passphrase_file: PassphraseFile = None,
    recovery_key_file: RecoveryKeyFile = None,
    progress: ProgressStyle = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int | None:
    """A copy of the VM in QEMU, its disks from the backup, its writes beside it; no network. Ctrl-] ends it."""
    given = dict(locals())
    context = context_of(given)
    if production or define is not None or storage or back or dry_run:
        _itself(context, given)
        return None
    if network not in (None, *_NETWORKS):
        raise WrongUsage(f"--network {network}: a copy has {' or '.join(_NETWORKS)}.", on=network or "")
    address = parse_address(moment)
    if address.path is not None:
        raise WrongUsage("A VM is booted, not a file inside it.", on=moment)
    wishes = Wishes(None if memory is None else parse_size(memory), cpus, bus)
    wait_s = parse_span(wait) / SECOND
    emulator = Emulator(context.env.get("PATH"))
    with context.repository() as repository, ExitStack() as stack:
        began = time.monotonic()
        moments = OpenMoments(
            repository,
            "boot",
            zone=context.zone,
            monotonic=time.monotonic,
            linger_s=0,
            before=lambda vm: ship_newest(context, vm),
        )
        stack.callback(moments.close)
        overlay = forgotten(str(repository.cache)) if keep_in is None else kept(keep_in)
        view = stack.enter_context(moments.used(address))
        told = Told(context, view, began, keep_in)
        told.opened()
        disks = {name: disk for name, disk in view.disks.items() if address.disk in (None, name)}
        plan = planned(disks, files_of(repository, view.moment.point), wishes, emulator.machine_types())
        told.plan(plan.remarks)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="everywhen-boot-", ignore_cleanup_errors=True))
        waker, woken = socket.socketpair()
        stack.enter_context(closing(waker))
        stack.enter_context(closing(woken))
        stack.enter_context(_signals(waker))
        exports = MomentExports(moments, repository.store.url, only=address, overlay=overlay, opened=lambda _: None)
        stack.callback(exports.close)
        server = NbdServer(Terms(exports, FAILURES, told.failed))
        stack.callback(server.stop)
        server.listen(unix_socket(os.path.join(folder, _NBD), stack))
        order = _Order(view.vm.name, plan, {name: str(_disk(address, name)) for name in disks}, network == "user")
        with guest_console(context.output) as console:
            kvm = kvm_opens()
            while True:
                with (
                    _started(emulator, folder, order, kvm=kvm) as copy,
                    agent_watched(AgentSocket(os.path.join(folder, _AGENT)), lambda: waker.send(_SEEN)),
                ):
                    told.started(copy.accelerator, on_console=console.keys is not None)
                    if _followed(copy, console, woken, told, wait_s, until_up=until_up):
                        break
                told.not_by_kvm()
                kvm = False
    told.over()
    return Exit.FAILED if until_up and not told.seen_by else None


def _itself(context: Context, given: Mapping[str, Any]) -> None:
    """No copy, but the VM itself, as the command's options want it. Raises Failure."""
    if not given["production"] or given["define"] is None:
        raise WrongUsage(
            "--define, --storage, --back and --dry-run are for the VM itself: --define URI --production.",
            do=["A copy beside it, defined and complete: everywhen restore MOMENT --define URI --as new"],
        )
    for name in ("keep_in", "memory", "cpus", "bus", "until_up"):
        if given[name]:
            raise WrongUsage(f"--{name.replace('_', '-')} is for a copy; with --production the VM is as it was.")
    with needing_libvirt(given["moment"]):  # a copy needs none
        from everywhen.interfaces.cli.boot_production import Asked, in_production
    pace = parse_size(given["pace"]) if given["pace"] != "0" else 0
    where = (given["define"], tuple(given["storage"] or ()), given["network"])
    in_production(context, Asked(given["moment"], *where, pace, time.monotonic(), given["back"], given["dry_run"]))


def _disk(address: Address, name: str) -> Address:
    return replace(address, disk=name, when=address.when or "latest")


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be started: `exports` by disk; `network`: whether it has one."""

    vm: str
    plan: Plan
    exports: dict[str, str]
    network: bool


def _started(emulator: Emulator, folder: str, order: _Order, *, kvm: bool) -> BootedCopy:
    """Raises Failed, OSError."""
    machine, flash = order.plan.machine, order.plan.flash
    nbd, variables, agent = (os.path.join(folder, name) for name in (_NBD, "variables", _AGENT))
    if flash is not None:
        with open(variables, "wb") as file:
            file.write(flash.variables)

    def told(monitor_fd: int, console_fd: int) -> list[str]:
        places = Places(order.exports, nbd, variables, monitor_fd, console_fd, agent)
        return arguments(order.vm, machine, flash, places, kvm=kvm, network=order.network)

    return BootedCopy(emulator, told, os.path.join(folder, "log"))


@contextmanager
def _signals(waker: socket.socket) -> Iterator[None]:
    """Until the end of the body, signals that would end the program only wake its loop: QEMU is to flush its disks first."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda _number, _frame: waker.send(_OVER)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _followed(copy: BootedCopy, console: Console, woken: socket.socket, told: Told, wait_s: float, *, until_up: bool) -> bool:
    """Until it is over: the guest or QEMU has ended, somebody wants that, or with `until_up` it is known whether it is up.

    False when it is to be started again without KVM, which failed. Raises Failed when QEMU has failed.
    """
    prompt = Prompt()
    end = told.began + wait_s
    sources: list[socket.socket | QmpMonitor | int] = [
        copy.console,
        copy.monitor,
        woken,
        *([] if console.keys is None else [console.keys]),
    ]
    while True:
        left = None if told.decided else max(0.0, end - time.monotonic())
        ready = select.select(sources, [], [], left)[0]
        state = copy.state() if copy.monitor in ready else State.RUNS
        if state is State.BROKEN:
            if copy.accelerator == "kvm" and not told.decided:
                return False
            raise Failed(f"The copy stands: {copy.last_words() or 'QEMU did not say why'}")
        if state is State.GONE:
            _drain(copy, console)
            code = copy.ended()
            told.ended()
            if code:
                raise Failed(f"QEMU has failed (exit code {code}): {copy.last_words() or 'it said nothing'}")
            return True
        if copy.console in ready:
            text = copy.said(_RECEIVE)
            if not text:  # it ends; the monitor tells so, too
                sources.remove(copy.console)
            console.show(text)
            if prompt.seen(text):
                told.up("login prompt")
        if woken in ready:
            said = woken.recv(_RECEIVE)
            if _OVER in said:
                told.ended()
                return True
            told.up("guest agent")
        if console.keys in ready and not console.typed(copy.console):
            told.ended()
            return True
        if not told.decided and time.monotonic() >= end:
            told.not_up(wait_s)
        if until_up and told.decided:
            return True


def _drain(copy: BootedCopy, console: Console) -> None:
    """What the guest said last."""
    while select.select([copy.console], [], [], 0)[0] and (text := copy.said(_RECEIVE)):
        console.show(text)
